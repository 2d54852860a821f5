package buzscan

import (
	"bytes"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"testing"

	"cairn/internal/simd"
)

func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return p
}

func table(seed uint64) *[256]uint32 {
	rng := rand.New(rand.NewPCG(seed, 1))
	var t [256]uint32
	for i := range t {
		t[i] = rng.Uint32()
	}
	return &t
}

// scanners returns the scanners that this CPU can run, by name.
func scanners(table *[256]uint32, test Test) map[string]*Scanner {
	plain, fast := New(table, test), New(table, test)
	plain.fast, fast.fast = false, true
	if !hasKernel(simd.Available()) {
		return map[string]*Scanner{"plain": plain}
	}
	return map[string]*Scanner{"plain": plain, "fast": fast}
}

// passing returns the last bytes in text[lo:hi] of all windows that pass, by the definition.
func passing(table *[256]uint32, test Test, text []byte, lo, hi int) (ends []int) {
	var h uint32
	for _, c := range text[lo-Window : lo] {
		h = bits.RotateLeft32(h, 1) ^ table[c]
	}
	for i := lo; i < hi; i++ {
		h = bits.RotateLeft32(h, 1) ^ bits.RotateLeft32(table[text[i-Window]], Window) ^ table[text[i]]
		if test.Pass(h) {
			ends = append(ends, i)
		}
	}
	return ends
}

// compare checks that the ranges of a scanner contain all hits of the text. It returns the number of
// ranges without a hit.
func compare(t *testing.T, s *Scanner, table *[256]uint32, text []byte) (empty int) {
	t.Helper()
	var want, got []int
	if len(text) > Window {
		want = passing(table, s.test, text, Window, len(text))
	}
	s.Narrow(text, func(lo, hi int) {
		ends := passing(table, s.test, text, lo, hi)
		if got = append(got, ends...); len(ends) == 0 {
			empty++
		}
	})
	slices.Sort(got)
	if got = slices.Compact(got); !slices.Equal(got, want) { // there may be too many for cmp.Diff
		t.Errorf("%d hits in the ranges of %d bytes, want %d, as in the whole text", len(got), len(text), len(want))
	}
	return empty
}

// odd returns a test for multiples of d.
func odd(d uint32) Test {
	inverse := d
	for range 5 {
		inverse *= 2 - d*inverse
	}
	return Test{inverse, ^uint32(0) / d}
}

// texts returns texts that failed before, and contents as in images.
func texts() map[string][]byte {
	const size = lanes*maxStretch + 30_000
	s := random(1, size)
	low := bytes.Clone(s)
	for i := range low {
		low[i] %= 3
	}
	runs := bytes.Clone(s)
	for at := 0; at < len(runs); at += 1 + int(s[at]) {
		copy(runs[at:], bytes.Repeat(s[at:at+1], 1+int(s[at])))
	}
	sparse := make([]byte, size)
	copy(sparse[200_000:], s[:5000])
	copy(sparse[size-100:], s)
	return map[string][]byte{
		"random": s, "low entropy": low, "runs": runs, "sparse": sparse, "zeros": make([]byte, size),
		"one byte": bytes.Repeat([]byte{0xff}, size), "upper half": bytes.Repeat([]byte{0x80, 0xfe}, size/2),
	}
}

func TestNarrow(t *testing.T) {
	tests := map[string]Test{
		"d=49535": odd(49535), "d=3075": odd(3075), "d=3": odd(3), "d=2^25": {1 << 7, 0}, "d=2^8": {1 << 24, 0},
		"nothing": {1, 0}, "everything": {0, 0},
	}
	for name, text := range texts() {
		for kind, test := range tests {
			hash := table(7)
			for path, s := range scanners(hash, test) {
				t.Run(fmt.Sprintf("%s/%s/%s", name, kind, path), func(t *testing.T) { compare(t, s, hash, text) })
			}
		}
	}
}

func TestNarrowSizes(t *testing.T) {
	text := random(2, 2*lanes*maxStretch)
	hash, least := table(3), lanes*minStretch
	var sizes []int
	for _, around := range []int{Window, Window + turnSize, least + Window, 2*least + Window, lanes*maxStretch + Window} {
		for n := -17; n <= 17; n += 2 {
			sizes = append(sizes, around+n)
		}
	}
	for path, s := range scanners(hash, odd(999)) {
		t.Run(path, func(t *testing.T) {
			for i, n := range append(sizes, len(text)) {
				from := min(i%64, len(text)-n) // at all alignments
				compare(t, s, hash, text[from:from+n])
			}
		})
	}
}

// TestSharp: except for the rest at the end, every range has a hit.
func TestSharp(t *testing.T) {
	hash := table(4)
	s := scanners(hash, odd(49535))["fast"]
	if s == nil {
		t.Skip("this CPU has no kernel")
	}
	if empty := compare(t, s, hash, random(5, 4<<20)); empty > 1 {
		t.Errorf("%d ranges held no hit, want the last at most", empty)
	}
}

// TestDense: with hits everywhere, a region is visited once.
func TestDense(t *testing.T) {
	hash := table(6)
	for path, s := range scanners(hash, Test{0, 0}) {
		looked := 0
		const size = 4 << 20
		s.Narrow(make([]byte, size), func(lo, hi int) { looked += hi - lo })
		if looked > size+size/maxHitShare {
			t.Errorf("%s: visited %d bytes of %d", path, looked, size)
		}
	}
}

func TestNoGarbage(t *testing.T) {
	text, s, looked := random(1, 1<<20), New(table(1), odd(49535)), 0
	if n := testing.AllocsPerRun(10, func() { s.Narrow(text, func(lo, hi int) { looked += hi - lo }) }); n > 0 {
		t.Errorf("%v allocations a call, want none", n)
	}
}

// FuzzNarrow: any text with any hash and test.
func FuzzNarrow(f *testing.F) {
	f.Add(random(1, 300), uint16(50), uint64(1), uint32(255), uint32(1<<24))
	f.Add([]byte{0}, uint16(9000), uint64(2), uint32(1<<24), uint32(0))
	f.Add([]byte{0x80, 1, 2}, uint16(3000), uint64(3), uint32(0), uint32(0))
	f.Fuzz(func(t *testing.T, part []byte, repeat uint16, seed uint64, factor, limit uint32) {
		text := bytes.Repeat(part, min(int(repeat), 100_000/(len(part)+1)))
		for i := 0; i < len(text); i += 777 { // so that lanes differ
			text[i] += byte(i)
		}
		hash := table(seed)
		for _, s := range scanners(hash, Test{factor, limit}) {
			compare(t, s, hash, text)
		}
	})
}

func BenchmarkNarrow(b *testing.B) {
	const size = 8 << 20
	text, s := random(1, size), New(table(1), odd(49535))
	b.SetBytes(size)
	for b.Loop() {
		s.Narrow(text, func(lo, hi int) {})
	}
}
