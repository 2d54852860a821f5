package chunker

import (
	"bytes"
	"math/bits"

	"cairn/internal/buzscan"
)

// window is how many bytes before a position decide whether it is a candidate.
const window = buzscan.Window

// Finder finds candidates for cuts. It does not change, and may be shared.
type Finder struct {
	divisor uint32       // a hash h is a candidate when (h+1) mod divisor = 0
	test    buzscan.Test // what all candidates pass, and few others
	scanner *buzscan.Scanner
	zeros   bool // 48 zero bytes make a candidate
}

func newFinder(p Params) *Finder {
	d := p.discriminator()
	f := &Finder{divisor: d, test: quickTest(d)}
	f.scanner = buzscan.New(&buzhash, f.test)
	f.zeros = f.hit(zeroHash)
	return f
}

// quickTest is for multiples of d, without a division. A multiple of an odd number, times the number's inverse,
// is small (Granlund and Montgomery 1994); one of 2^k, times 2^(32-k), is 0. The larger such factor of d is
// tested: of all hashes at most one in √d passes wrongly, and none for odd d but 2^32-1, which wraps to 0.
func quickTest(d uint32) buzscan.Test {
	k := bits.TrailingZeros32(d)
	if odd := d >> k; odd > 1<<k {
		return buzscan.Test{Factor: invert(odd), Limit: ^uint32(0) / odd}
	}
	return buzscan.Test{Factor: 1 << (32 - k), Limit: 0}
}

// invert is the inverse of an odd number modulo 2^32, by Newton's method: each step doubles the right bits.
func invert(odd uint32) uint32 {
	x := odd
	for range 5 {
		x *= 2 - odd*x
	}
	return x
}

// hit is the definition of a candidate.
func (f *Finder) hit(h uint32) bool { return h%f.divisor == f.divisor-1 }

// zeroHash is the hash of 48 zero bytes, and so of every window inside a run of zeros.
var zeroHash = hashWindow(make([]byte, window))

func hashWindow(p []byte) uint32 {
	var h uint32
	for _, b := range p[:window] {
		h = bits.RotateLeft32(h, 1) ^ buzhash[b]
	}
	return h
}

// candidates is the set of candidate positions within some bytes: one bit each, so that no content makes
// it large. Position c stands for a cut with c bytes before it.
type candidates []uint64

func (s candidates) add(c int) { s[c>>6] |= 1 << (c & 63) }

// reset makes room for positions up to n, all absent.
func (s candidates) reset(n int) candidates {
	words := n>>6 + 1
	if cap(s) < words {
		return make(candidates, words)
	}
	s = s[:words]
	clear(s)
	return s
}

// first is the smallest candidate in [lo, hi], or -1.
func (s candidates) first(lo, hi int) int {
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

// zeroBlock is how many bytes are looked at together to pass over runs of zeros.
const zeroBlock = 4096

var zeroBytes [window + zeroBlock]byte

// find adds the candidates among positions 1 to len(buf)-before to set, where position 0 lies before
// bytes into buf. Windows that would begin before buf are left out.
func (f *Finder) find(set candidates, buf []byte, before int) {
	pos := max(before+1, window)
	if pos > len(buf) {
		return
	}
	if f.hit(hashWindow(buf[pos-window:])) {
		set.add(pos - before)
	}
	for pos < len(buf) {
		if f.barren(buf, pos) {
			pos = min(pos+zeroBlock, len(buf))
			continue
		}
		end := min(pos+zeroBlock, len(buf))
		for end < len(buf) && !f.barren(buf, end) {
			end = min(end+zeroBlock, len(buf))
		}
		f.scan(set, buf[pos-window:end], pos-before)
		pos = end
	}
}

// barren says that the block behind pos holds no candidates: it and the window before it are zero.
func (f *Finder) barren(buf []byte, pos int) bool {
	return !f.zeros && isZero(buf[pos-window:min(pos+zeroBlock, len(buf))])
}

func isZero(p []byte) bool { return bytes.Equal(p, zeroBytes[:len(p)]) }

// scan adds the candidates behind the window that buf begins with; pos is the position there.
func (f *Finder) scan(set candidates, buf []byte, pos int) {
	f.scanner.Narrow(buf, func(lo, hi int) {
		f.roll(set, buf[lo-window:hi], pos+lo-window)
	})
}

// roll moves the window over buf, which begins with the first one, and adds the candidates behind that; pos is the
// position behind the first window.
func (f *Finder) roll(set candidates, buf []byte, pos int) {
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
			f.confirm(set, pos+i+1, h1, h2, h3, h)
		}
	}
	for ; i < len(in); i++ {
		h = bits.RotateLeft32(h, 1) ^ bits.RotateLeft32(buzhash[out[i]], window%32) ^ buzhash[in[i]]
		f.confirm(set, pos+i+1, h)
	}
}

// confirm adds those of the positions from pos on whose hash is a true hit.
func (f *Finder) confirm(set candidates, pos int, hashes ...uint32) {
	for i, h := range hashes {
		if f.hit(h) {
			set.add(pos + i)
		}
	}
}
