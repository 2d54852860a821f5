package chunker

import (
	"bytes"
	"math/bits"
)

// window is how many bytes before a position decide whether it is a candidate.
const window = 48

// Finder finds candidates for cuts. It does not change, and may be shared.
type Finder struct {
	divisor uint32 // a hash h is a candidate when (h+1) mod divisor = 0
	inverse uint32 // of divisor's odd part, modulo 2^32
	shift   int    // divisor = odd part << shift
	limit   uint32 // multiples of divisor, times inverse, rotated by shift, are at most this
	zeros   bool   // 48 zero bytes make a candidate
}

func newFinder(p Params) *Finder {
	d := p.discriminator()
	shift := bits.TrailingZeros32(d)
	f := &Finder{divisor: d, shift: shift, inverse: invert(d >> shift), limit: ^uint32(0) / d}
	f.zeros = f.hit(zeroHash)
	return f
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

// maybe is hit without the division (divisibility by multiplication, Granlund and Montgomery 1994); h =
// 2^32-1 wraps round to 0 and is the one value it may let through wrongly.
func (f *Finder) maybe(h uint32) bool {
	return bits.RotateLeft32((h+1)*f.inverse, -f.shift) <= f.limit
}

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

var zeroBytes [zeroBlock]byte

// find adds the candidates among positions 1 to len(buf)-before to set, where position 0 lies before
// bytes into buf. Windows that would begin before buf are left out.
func (f *Finder) find(set candidates, buf []byte, before int) {
	pos := max(before+1, window)
	if pos > len(buf) {
		return
	}
	h := hashWindow(buf[pos-window:])
	if f.hit(h) {
		set.add(pos - before)
	}
	for pos < len(buf) {
		end := min(pos+zeroBlock, len(buf))
		if !f.zeros && h == zeroHash && isZero(buf[pos-window:pos]) && isZero(buf[pos:end]) {
			pos = end // the hash stays that of zeros
			continue
		}
		h = f.roll(set, buf[pos-window:end], pos-before, h)
		pos = end
	}
}

func isZero(p []byte) bool { return bytes.Equal(p, zeroBytes[:len(p)]) }

// roll moves the window over buf, which begins with the window that h is the hash of; pos is the
// position behind that window. It returns the hash of the last window.
func (f *Finder) roll(set candidates, buf []byte, pos int, h uint32) uint32 {
	out, in := buf[:len(buf)-window], buf[window:]
	i := 0
	for ; i+4 <= len(in); i += 4 {
		o, n := (*[4]byte)(out[i:]), (*[4]byte)(in[i:])
		h1 := bits.RotateLeft32(h, 1) ^ bits.RotateLeft32(buzhash[o[0]], window%32) ^ buzhash[n[0]]
		h2 := bits.RotateLeft32(h1, 1) ^ bits.RotateLeft32(buzhash[o[1]], window%32) ^ buzhash[n[1]]
		h3 := bits.RotateLeft32(h2, 1) ^ bits.RotateLeft32(buzhash[o[2]], window%32) ^ buzhash[n[2]]
		h = bits.RotateLeft32(h3, 1) ^ bits.RotateLeft32(buzhash[o[3]], window%32) ^ buzhash[n[3]]
		if f.maybe(h1) || f.maybe(h2) || f.maybe(h3) || f.maybe(h) {
			f.confirm(set, pos+i+1, h1, h2, h3, h)
		}
	}
	for ; i < len(in); i++ {
		h = bits.RotateLeft32(h, 1) ^ bits.RotateLeft32(buzhash[out[i]], window%32) ^ buzhash[in[i]]
		if f.maybe(h) {
			f.confirm(set, pos+i+1, h)
		}
	}
	return h
}

// confirm adds those of the positions from pos on whose hash is a true hit.
func (f *Finder) confirm(set candidates, pos int, hashes ...uint32) {
	for i, h := range hashes {
		if f.hit(h) {
			set.add(pos + i)
		}
	}
}
