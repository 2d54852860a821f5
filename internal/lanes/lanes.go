// Package lanes hashes many messages at once: a vector register holds a word of 4, 8 or 16 messages, and one
// instruction works on all of them. SHA-512/256 gains most from it, and SHA-256 where AVX-512 is; elsewhere the
// standard library does the work, and it always gives the same digests. The package knows nothing of chunks.
package lanes

import (
	"crypto/sha256"
	"crypto/sha512"
	"sync"

	"cairn/internal/simd"
)

//go:generate go -C gen run ./sha2 -out ../sha2_amd64.s -stubs ../sha2_amd64.go -pkg lanes

// Sum512_256 sets dst[i] to the SHA-512/256 of messages[i], for all of them; dst must be as long as messages at
// least. Many messages of like sizes are hashed fastest. It may be called by several goroutines at once.
func Sum512_256[D ~[32]byte](dst []D, messages [][]byte) {
	best512().sumAll(messages, func(i int, sum [32]byte) { dst[i] = D(sum) })
}

// Sum256 is Sum512_256 for SHA-256.
func Sum256[D ~[32]byte](dst []D, messages [][]byte) {
	best256().sumAll(messages, func(i int, sum [32]byte) { dst[i] = D(sum) })
}

// Active says which kernels this process uses, for people to read.
func Active() string {
	return "sha512-256 " + string(best512().kernel) + ", sha256 " + string(best256().kernel)
}

// kernel names a way to hash some messages at once.
type kernel string

const (
	none kernel = "plain"
	x4   kernel = "avx2x4"
	x8   kernel = "avx512x8"
	x16  kernel = "avx512x16"
)

// method is how one of the hash functions is computed.
type method struct {
	sum   func([]byte) [32]byte // of a message by itself
	start [8]uint64             // the function's initial state
	word  int                   // bytes
	kernel
	width int // messages at once
	// delay is how many times longer a message takes in a lane than by sum, in tenths. Where it was measured sum
	// was at its fastest, so that a wrong figure costs little.
	delay int
}

func (m *method) block() int { return 16 * m.word }

// FIPS 180-4, 5.3.6.2.
var sha512_256 = method{
	sum: sha512.Sum512_256,
	start: [8]uint64{
		0x22312194fc2bf72c, 0x9f555fa3c84c64c2, 0x2393b86b6f53b151, 0x963877195940eabd,
		0x96283ee2a88effe3, 0xbe5e1e2553863992, 0x2b0199fc2c85b8aa, 0x0eb72ddc81c52ca2,
	},
	word: 8, kernel: none,
}

// FIPS 180-4, 5.3.3.
var sha256_ = method{
	sum: sha256.Sum256,
	start: [8]uint64{
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	},
	word: 4, kernel: none,
}

var (
	best512 = sync.OnceValue(func() *method { return method512(simd.Allowed()) })
	best256 = sync.OnceValue(func() *method { return method256(simd.Allowed()) })
)

func method512(level simd.Level) *method {
	m := sha512_256
	switch level {
	case simd.AVX512:
		m.kernel, m.width, m.delay = x8, 8, 15
	case simd.AVX2:
		m.kernel, m.width, m.delay = x4, 4, 29
	}
	return &m
}

// method256 leaves AVX2 to the standard library: most CPUs with it have instructions for SHA-256 too, and then
// there is little to gain.
func method256(level simd.Level) *method {
	m := sha256_
	if level == simd.AVX512 {
		m.kernel, m.width, m.delay = x16, 16, 48
	}
	return &m
}
