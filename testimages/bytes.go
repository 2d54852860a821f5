// Package testimages makes images for tests and benchmarks from a seed: random and sparse bytes, a small
// operating system and its next releases as squashfs and ext4, and GPT disks with two slots. Equal arguments
// give equal content. The package knows nothing of chunks and stores. Only tests and benchmarks may import it.
package testimages

import (
	"crypto/sha256"
	"encoding/binary"
	"math/rand/v2"
)

// newGenerator returns the source of the content for a seed and a name. ChaCha8 is specified, so the bytes are
// the same with every version of Go.
func newGenerator(seed uint64, name string) *rand.ChaCha8 {
	return rand.NewChaCha8(sha256.Sum256(binary.LittleEndian.AppendUint64([]byte(name), seed)))
}

// Random returns n incompressible bytes.
func Random(seed uint64, n int) []byte {
	p := make([]byte, n)
	newGenerator(seed, "random").Read(p) // never fails
	return p
}

// Sparse returns n bytes in runs of up to 256 KiB. About half of the runs hold random bytes, the others zeros.
func Sparse(seed uint64, n int) []byte {
	p := make([]byte, n)
	source := newGenerator(seed, "sparse")
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

// SHA256Stream returns the first n bytes of SHA256(LE64(0)) || SHA256(LE64(1)) || …. Golden vectors use it, because a
// program in any language can make it in a line.
func SHA256Stream(n int) []byte {
	p := make([]byte, 0, n+sha256.Size)
	for i := uint64(0); len(p) < n; i++ {
		sum := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, i))
		p = append(p, sum[:]...)
	}
	return p[:n]
}
