package chunker

import (
	"bytes"
	"math/bits"

	"cairn/internal/buzscan"
)

// window is the number of bytes before a position that decide whether it is a candidate.
const window = buzscan.Window

// finder finds candidates for cuts. It is immutable, so goroutines may share it.
type finder struct {
	divisor        uint32       // a hash h is a candidate if (h+1) mod divisor = 0
	test           buzscan.Test // passes all candidates and few other hashes
	scanner        *buzscan.Scanner
	zeroCandidates bool // 48 zero bytes are a candidate
}

func newFinder(p Params) *finder {
	d := p.discriminator()
	f := &finder{divisor: d, test: quickTest(d)}
	f.scanner = buzscan.New(&buzhash, f.test)
	f.zeroCandidates = f.isCandidate(zeroHash)
	return f
}

// quickTest returns a test for multiples of d without a division. A multiple of an odd number, times
// the number's inverse, is small (Granlund and Montgomery 1994). A multiple of 2^k, times 2^(32-k), is
// 0. The test uses the larger such factor of d. At most one in √d of all hashes passes wrongly, and
// none for odd d except 2^32-1, which wraps to 0.
func quickTest(d uint32) buzscan.Test {
	k := bits.TrailingZeros32(d)
	if odd := d >> k; odd > 1<<k {
		return buzscan.Test{Factor: invertOdd(odd), Limit: ^uint32(0) / odd}
	}
	return buzscan.Test{Factor: 1 << (32 - k), Limit: 0}
}

// invertOdd returns the inverse of an odd number modulo 2^32, by Newton's method. Each step doubles the
// number of right bits.
func invertOdd(odd uint32) uint32 {
	x := odd
	for range 5 {
		x *= 2 - odd*x
	}
	return x
}

// isCandidate is the definition of a candidate.
func (f *finder) isCandidate(h uint32) bool { return h%f.divisor == f.divisor-1 }

// zeroHash is the hash of 48 zero bytes, and so of every window in a run of zeros.
var zeroHash = hashWindow(make([]byte, window))

func hashWindow(p []byte) uint32 {
	var h uint32
	for _, b := range p[:window] {
		h = bits.RotateLeft32(h, 1) ^ buzhash[b]
	}
	return h
}

// candidates is a set of candidate positions with one bit per position, so that its size does not
// depend on the content. Position c stands for a cut with c bytes before it.
type candidates []uint64

func (s candidates) add(c int) { s[c>>6] |= 1 << (c & 63) }

// reset returns an empty set for positions up to n. It reuses the memory of s if that is large enough.
func (s candidates) reset(n int) candidates {
	words := n>>6 + 1
	if cap(s) < words {
		return make(candidates, words)
	}
	s = s[:words]
	clear(s)
	return s
}

// firstIn returns the smallest candidate in [lo, hi], or -1.
func (s candidates) firstIn(lo, hi int) int {
	if hi = min(hi, len(s)<<6-1); lo > hi {
		return -1
	}
	word := s[lo>>6] >> (lo & 63) << (lo & 63)
	for i := lo >> 6; ; word = s[i] {
		if word != 0 {
			if c := i<<6 + bits.TrailingZeros64(word); c <= hi {
				return c
			}
			return -1
		}
		if i++; i<<6 > hi {
			return -1
		}
	}
}

// zeroBlock is the number of bytes that are compared at once to skip runs of zeros.
const zeroBlock = 4096

var zeroBytes [window + zeroBlock]byte

// findCandidates adds the candidates among the positions 1 to len(buf)-before to set. Position 0 lies
// before bytes into buf. Windows that would begin before buf are ignored.
func (f *finder) findCandidates(set candidates, buf []byte, before int) {
	pos := max(before+1, window)
	if pos > len(buf) {
		return
	}
	if f.isCandidate(hashWindow(buf[pos-window:])) {
		set.add(pos - before)
	}
	for pos < len(buf) {
		if f.isZeroBlock(buf, pos) {
			pos = min(pos+zeroBlock, len(buf))
			continue
		}
		end := min(pos+zeroBlock, len(buf))
		for end < len(buf) && !f.isZeroBlock(buf, end) {
			end = min(end+zeroBlock, len(buf))
		}
		data, at := buf[pos-window:end], pos-window-before
		f.scanner.Narrow(data, func(lo, hi int) { f.rollHash(set, data[lo-window:hi], at+lo) })
		pos = end
	}
}

// isZeroBlock reports whether the block behind pos and the window before it are zero, so that the block
// has no candidates.
func (f *finder) isZeroBlock(buf []byte, pos int) bool {
	return !f.zeroCandidates && isZero(buf[pos-window:min(pos+zeroBlock, len(buf))])
}

func isZero(p []byte) bool { return bytes.Equal(p, zeroBytes[:len(p)]) }

// rollHash rolls the hash over buf, which begins with a whole window, and adds the candidates behind
// that. pos is the position behind the first window.
func (f *finder) rollHash(set candidates, buf []byte, pos int) {
	h := hashWindow(buf)
	out, in := buf[:len(buf)-window], buf[window:]
	i, test := 0, f.test
	for ; i+4 <= len(in) && i+4 <= len(out); i += 4 {
		o, n := (*[4]byte)(out[i:i+4]), (*[4]byte)(in[i:i+4])
		h1 := bits.RotateLeft32(h, 1) ^ (bits.RotateLeft32(buzhash[o[0]], window%32) ^ buzhash[n[0]])
		h2 := bits.RotateLeft32(h1, 1) ^ (bits.RotateLeft32(buzhash[o[1]], window%32) ^ buzhash[n[1]])
		h3 := bits.RotateLeft32(h2, 1) ^ (bits.RotateLeft32(buzhash[o[2]], window%32) ^ buzhash[n[2]])
		h = bits.RotateLeft32(h3, 1) ^ (bits.RotateLeft32(buzhash[o[3]], window%32) ^ buzhash[n[3]])
		if test.Pass(h1) || test.Pass(h2) || test.Pass(h3) || test.Pass(h) {
			f.addCandidates(set, pos+i+1, h1, h2, h3, h)
		}
	}
	for ; i < len(in); i++ {
		h = bits.RotateLeft32(h, 1) ^ bits.RotateLeft32(buzhash[out[i]], window%32) ^ buzhash[in[i]]
		f.addCandidates(set, pos+i+1, h)
	}
}

// addCandidates adds the candidates among the positions from pos on with these hashes.
func (f *finder) addCandidates(set candidates, pos int, hashes ...uint32) {
	for i, h := range hashes {
		if f.isCandidate(h) {
			set.add(pos + i)
		}
	}
}
