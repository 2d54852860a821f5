// Package buzscan narrows down where a rolling hash over 48 bytes may pass a test: a vector kernel looks at 16 places
// of a text at once, many times faster than a loop could, and what it points at is for the caller to look at closely.
// It knows nothing of chunks, nor what the test is for.
package buzscan

import (
	"math/bits"

	"golang.org/x/sys/cpu"

	"cairn/internal/simd"
)

//go:generate go -C ../lanes/gen run ./buzscan -out ../../buzscan/scan_amd64.s -stubs ../../buzscan/scan_amd64.go -pkg buzscan

// Window is how many bytes the hash is over. With a table of values v it is the exclusive or of v[byte] for these
// bytes, rotated to the left as often as bytes follow in the window.
const Window = 48

// Test is on a hash h: (h+1)*Factor, modulo 2^32, is at most Limit.
type Test struct{ Factor, Limit uint32 }

// Pass does the test.
func (t Test) Pass(h uint32) bool { return (h+1)*t.Factor <= t.Limit }

// Scanner knows a hash and a test. It does not change, and may be shared.
type Scanner struct {
	test   Test
	planes [1024]byte // the table: the lowest byte of all its values, and so on
	fast   bool
}

// New is a scanner for the hash with this table.
func New(table *[256]uint32, test Test) *Scanner {
	s := &Scanner{test: test, fast: usable(simd.Allowed())}
	for i, v := range table {
		for k := range 4 {
			s.planes[256*k+i] = byte(v >> (8 * k))
		}
	}
	return s
}

// Active says which kernel this process uses, for people to read.
func Active() string {
	if usable(simd.Allowed()) {
		return "avx512vbmi"
	}
	return "plain"
}

// usable: a table of 256 values must be in registers, which takes VBMI; AVX2 would be no faster than the plain loop.
func usable(level simd.Level) bool { return level == simd.AVX512 && cpu.X86.HasAVX512VBMI }

const (
	lanes = 16
	turn  = 16 // bytes of each lane in a turn of the kernel
	// A lane's stretch of the text is short enough to lie in the nearer caches, and not a multiple of 4 KiB, or all
	// lanes would contend for the same few lines of the nearest one.
	maxStretch = 16<<10 + 256
	// minStretch is where what the kernel does before it starts begins to pay.
	minStretch = 256
	// With more hits than one in so many places, looking at all of the text is faster than at the hits.
	sparse = 8
)

// Narrow calls look for ranges text[lo:hi] that may overlap, but together hold the last byte of every window that
// passes the test. The windows are those that end with text[Window] or behind it; the one before is left out.
func (s *Scanner) Narrow(text []byte, look func(lo, hi int)) {
	at := Window
	for s.fast {
		stretch := min((len(text)-at)/lanes/turn*turn, maxStretch)
		if stretch < minStretch {
			break
		}
		s.region(text, at, stretch, look)
		at += lanes * stretch
	}
	if at < len(text) {
		look(at, len(text))
	}
}

// region narrows down text[at:] for a stretch of each lane.
func (s *Scanner) region(text []byte, at, stretch int, look func(lo, hi int)) {
	var room [maxStretch / turn]uint16
	masks := room[:stretch/turn]
	s.scan(text[at-Window:at+lanes*stretch], masks)
	hits := 0
	for i, mask := range masks {
		for ; mask != 0; mask &= mask - 1 {
			if hits++; hits > lanes*len(masks)/sparse {
				look(at, at+lanes*stretch)
				return
			}
			lo := at + bits.TrailingZeros16(mask)*stretch + turn*i
			look(lo, lo+turn)
		}
	}
}
