// Package lanes hashes many messages at once. A vector register holds a word of 4, 8 or 16 messages, and one
// instruction works on all of them. SHA-512/256 gains most, and SHA-256 gains with AVX-512. Otherwise the standard
// library computes the hashes. The digests are the same in any case. The package does not know chunks.
package lanes

import (
	"crypto/sha256"
	"crypto/sha512"
	"sync"

	"cairn/internal/simd"
)

//go:generate go -C gen run ./sha2 -out ../sha2_amd64.s -stubs ../sha2_amd64.go -pkg lanes

// Sum512_256 sets dst[i] to the SHA-512/256 of messages[i] for each i. dst must be at least as long as messages. Many
// messages of similar sizes are hashed fastest. Safe for concurrent use.
func Sum512_256[D ~[32]byte](dst []D, messages [][]byte) {
	best512().sumAll(messages, func(i int, sum [32]byte) { dst[i] = D(sum) })
}

// Sum256 is Sum512_256 for SHA-256.
func Sum256[D ~[32]byte](dst []D, messages [][]byte) {
	best256().sumAll(messages, func(i int, sum [32]byte) { dst[i] = D(sum) })
}

// Active returns the names of the kernels that this process uses, for display.
func Active() string {
	return "sha512-256 " + string(best512().kernel) + ", sha256 " + string(best256().kernel)
}

// kernel is the name of a vectorized hash function, or none.
type kernel string

const (
	none kernel = "plain"
	x4   kernel = "avx2x4"
	x8   kernel = "avx512x8"
	x16  kernel = "avx512x16"
)

// hasher computes one of the hash functions.
type hasher struct {
	sum     func([]byte) [32]byte // hashes one message
	initial [8]uint64             // the function's initial state
	word    int                   // bytes
	kernel
	width int // messages that the kernel hashes at once; 0 without a kernel
	// laneCost is the time of a message in a lane, in tenths of its time in sum. It was measured where sum is
	// fastest, so an error costs little.
	laneCost int
}

func (h *hasher) blockSize() int { return 16 * h.word }

// FIPS 180-4, 5.3.6.2.
var sha512_256 = hasher{
	sum: sha512.Sum512_256,
	initial: [8]uint64{
		0x22312194fc2bf72c, 0x9f555fa3c84c64c2, 0x2393b86b6f53b151, 0x963877195940eabd,
		0x96283ee2a88effe3, 0xbe5e1e2553863992, 0x2b0199fc2c85b8aa, 0x0eb72ddc81c52ca2,
	},
	word: 8, kernel: none,
}

// FIPS 180-4, 5.3.3.
var sha256_ = hasher{
	sum: sha256.Sum256,
	initial: [8]uint64{
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	},
	word: 4, kernel: none,
}

var (
	best512 = sync.OnceValue(func() *hasher { return newHasher512(simd.Allowed()) })
	best256 = sync.OnceValue(func() *hasher { return newHasher256(simd.Allowed()) })
)

func newHasher512(level simd.Level) *hasher {
	h := sha512_256
	switch level {
	case simd.AVX512:
		h.kernel, h.width, h.laneCost = x8, 8, 15
	case simd.AVX2:
		h.kernel, h.width, h.laneCost = x4, 4, 29
	}
	return &h
}

// newHasher256 uses no AVX2 kernel. Most CPUs with AVX2 also have instructions for SHA-256, which the standard
// library uses, and then a kernel gains little.
func newHasher256(level simd.Level) *hasher {
	h := sha256_
	if level == simd.AVX512 {
		h.kernel, h.width, h.laneCost = x16, 16, 48
	}
	return &h
}
