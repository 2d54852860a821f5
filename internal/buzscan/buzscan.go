// Package buzscan finds the places where a rolling hash over 48 bytes may pass a test. A vector kernel
// tests 16 places of a text at once, many times faster than a loop. The caller tests the reported
// ranges again. The package knows nothing of chunks or of the purpose of the test.
package buzscan

import (
	"math/bits"

	"golang.org/x/sys/cpu"

	"cairn/internal/simd"
)

//go:generate go -C ../lanes/gen run ./buzscan -out ../../buzscan/scan_amd64.s -stubs ../../buzscan/scan_amd64.go -pkg buzscan

// Window is the length of the hashed window in bytes. The hash is the exclusive or of v[byte] over
// these bytes, where v is a table. Each value is rotated left by the number of bytes that follow in the
// window.
const Window = 48

// Test is a test of a hash h: (h+1)*Factor, modulo 2^32, must be at most Limit.
type Test struct{ Factor, Limit uint32 }

// Pass reports whether h passes the test.
func (t Test) Pass(h uint32) bool { return (h+1)*t.Factor <= t.Limit }

// Scanner scans for a hash and a test. It is immutable, so goroutines may share it.
type Scanner struct {
	test   Test
	planes [1024]byte // the table by byte: the lowest bytes of all values, then the next ones
	fast   bool
}

// New returns a scanner for the hash with this table.
func New(table *[256]uint32, test Test) *Scanner {
	s := &Scanner{test: test, fast: hasKernel(simd.Allowed())}
	for i, v := range table {
		for k := range 4 {
			s.planes[256*k+i] = byte(v >> (8 * k))
		}
	}
	return s
}

// Active returns the name of the kernel that this process uses, for messages.
func Active() string {
	if hasKernel(simd.Allowed()) {
		return "avx512vbmi"
	}
	return "plain"
}

// hasKernel reports whether the kernel runs at a level. The kernel needs a table of 256 values in
// registers, which takes VBMI. AVX2 would not be faster than the plain loop.
func hasKernel(level simd.Level) bool { return level == simd.AVX512 && cpu.X86.HasAVX512VBMI }

const (
	lanes    = 16
	turnSize = 16 // bytes of each lane in a turn of the kernel
	// A lane's stretch of the text fits into the nearer caches. It is not a multiple of 4 KiB, or all
	// lanes would contend for the same few lines of the nearest one.
	maxStretch = 16<<10 + 256
	// For a shorter stretch the setup of the kernel costs more than it saves.
	minStretch = 256
	// With more than one hit in so many places, a visit of the whole text is faster than one for each
	// hit.
	maxHitShare = 8
)

// Narrow calls visit for ranges text[lo:hi], which may overlap. Together they contain the last byte of
// every window that passes the test. Windows that end before text[Window] are ignored.
func (s *Scanner) Narrow(text []byte, visit func(lo, hi int)) {
	at := Window
	for s.fast {
		stretch := min((len(text)-at)/lanes/turnSize*turnSize, maxStretch)
		if stretch < minStretch {
			break
		}
		s.narrowRegion(text, at, stretch, visit)
		at += lanes * stretch
	}
	if at < len(text) {
		visit(at, len(text))
	}
}

// narrowRegion narrows text[at:] for one stretch of each lane.
func (s *Scanner) narrowRegion(text []byte, at, stretch int, visit func(lo, hi int)) {
	var room [maxStretch / turnSize]uint16
	masks := room[:stretch/turnSize]
	s.scanLanes(text[at-Window:at+lanes*stretch], masks)
	hits := 0
	for i, mask := range masks {
		for ; mask != 0; mask &= mask - 1 {
			if hits++; hits > lanes*len(masks)/maxHitShare {
				visit(at, at+lanes*stretch)
				return
			}
			lo := at + bits.TrailingZeros16(mask)*stretch + turnSize*i
			visit(lo, lo+turnSize)
		}
	}
}
