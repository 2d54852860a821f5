// Package testimages makes images for tests and benchmarks from a number: random and sparse bytes, a small
// operating system and its next releases as squashfs and ext4, and GPT disks with two slots. Equal arguments
// give equal content. It knows nothing of chunks and stores, and nothing but tests and benchmarks may import
// it.
package testimages

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
)

// generator is the source of all that is made from a number and a name. ChaCha8 is specified, so the bytes
// stay the same with any Go.
func generator(seed uint64, name string) *rand.ChaCha8 {
	return rand.NewChaCha8(sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(name), seed)))
}

// Random is n bytes that do not compress.
func Random(seed uint64, n int) []byte {
	p := make([]byte, n)
	generator(seed, "random").Read(p) // never fails
	return p
}

// Sparse is n bytes in runs of up to 256 KiB, of which about half hold random bytes and the others zeros.
func Sparse(seed uint64, n int) []byte {
	p := make([]byte, n)
	source := generator(seed, "sparse")
	runs := rand.New(source)
	for rest := p; len(rest) > 0; {
		run := rest[:min(len(rest), 1+runs.IntN(256<<10))]
		if runs.IntN(2) == 0 {
			source.Read(run)
		}
		rest = rest[len(run):]
	}
	return p
}

// SHA256Stream is the first n bytes of SHA256(LE64(0)) || SHA256(LE64(1)) || …, which any language makes in a
// line; golden vectors are cut from it.
func SHA256Stream(n int) []byte {
	p := make([]byte, 0, n+sha256.Size)
	for i := uint64(0); len(p) < n; i++ {
		sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, i))
		p = append(p, sum[:]...)
	}
	return p[:n]
}
