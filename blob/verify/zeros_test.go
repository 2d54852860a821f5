package verify

import (
	"bytes"
	"context"
	"testing"

	"cairn/testimages"
)

// sparse is an image whose hole [lo, hi) must not be read.
type sparse struct {
	*bytes.Reader
	t      *testing.T
	lo, hi int64
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.lo && off+int64(len(p)) <= s.hi {
		s.t.Errorf("%d bytes at %d were read, in a hole", len(p), off)
	}
	return s.Reader.ReadAt(p, off)
}

func (s sparse) NextData(off int64) (start, end int64, err error) {
	switch {
	case off < s.lo:
		return off, s.lo, nil
	case off < s.hi:
		return s.hi, s.Size(), nil
	}
	return off, s.Size(), nil
}

// TestZeros: zeros and holes are verified like other data, and holes are not read.
func TestZeros(t *testing.T) {
	const lo, hi = 5 * chunkSize, 205 * chunkSize
	image := testimages.Random(1, 220*chunkSize+10)
	clear(image[lo:hi])
	clear(image[len(image)-10:])
	x := index(t, image)
	for name, c := range map[string]struct {
		flips  []int
		lo, hi int64 // the hole of the image
		want   int
	}{
		"right":                     {nil, lo, hi, 0},
		"zeros that are no hole":    {nil, 0, 0, 0},
		"a byte where zeros belong": {[]int{lo, lo + 100*chunkSize + 5, hi - 1, len(image) - 1}, 0, 0, 4},
		"beside the hole":           {[]int{lo - 1, hi}, lo, hi, 2},
	} {
		t.Run(name, func(t *testing.T) {
			r := sparse{bytes.NewReader(flipped(image, c.flips...)), t, c.lo, c.hi}
			got, err := Image(t.Context(), x, r, Options{Workers: 2})
			if err != nil || got.Bad != c.want || got.Done != int64(len(image)) {
				t.Errorf("Image = %+v, %v; want %d bad chunks", got, err, c.want)
			}
		})
	}
}

// TestHoleWhereDataBelongs: a hole counts as zeros, and is wrong where the image has data.
func TestHoleWhereDataBelongs(t *testing.T) {
	image := testimages.Random(1, 100*chunkSize)
	x := index(t, image)
	held := bytes.Clone(image)
	clear(held[10*chunkSize : 90*chunkSize])
	r := sparse{bytes.NewReader(held), t, 0, 0}
	r.lo, r.hi = 10*chunkSize, 90*chunkSize
	got, err := Image(t.Context(), x, holeMayBeRead{r}, Options{})
	if err != nil || got.Bad != 80 {
		t.Errorf("Image = %+v, %v; want 80 bad chunks", got, err)
	}
}

// holeMayBeRead is sparse, but allows reads of the hole.
type holeMayBeRead struct{ sparse }

func (h holeMayBeRead) ReadAt(p []byte, off int64) (int, error) { return h.Reader.ReadAt(p, off) }

// TestZerosOfRange: exactly the range is checked, and its holes are not read.
func TestZerosOfRange(t *testing.T) {
	const lo, hi = 2 * readSize, 5*readSize + 7
	image := make([]byte, hi+3*readSize)
	image[lo-1], image[hi], image[hi+readSize+1], image[len(image)-1] = 1, 1, 1, 1
	r := sparse{bytes.NewReader(image), t, lo, hi}
	for _, c := range []struct {
		from, to int64
		want     bool
	}{
		{lo, hi, true}, {lo + 5, hi, true}, {lo - 1, hi, false}, {lo, hi + 1, false}, {hi, hi, true}, {0, lo - 1, true},
		{hi + 1, hi + readSize + 1, true}, {hi + 1, hi + readSize + 2, false},
		{hi + readSize + 2, int64(len(image)) - 1, true}, {hi + readSize + 2, int64(len(image)), false},
	} {
		if got, err := Zeros(t.Context(), r, c.from, c.to); got != c.want || err != nil {
			t.Errorf("Zeros from %d to %d = %v, %v, want %v", c.from, c.to, got, err, c.want)
		}
	}
	if _, err := Zeros(t.Context(), bytes.NewReader(image[:10]), 5, 11); err == nil {
		t.Error("Zeros beyond the end = nil, want an error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Zeros(ctx, r, 0, lo-1); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}
