package assemble

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"sync/atomic"
	"testing"

	"cairn/seed"
)

// imageSum returns the sum of an image.
func imageSum(image []byte) *ImageSum {
	sum := ImageSum(sha256.Sum256(image))
	return &sum
}

// wantSumError fails the test unless err reports the sum of image in place of want.
func wantSumError(t *testing.T, err error, image []byte, want *ImageSum) {
	t.Helper()
	e, ok := errors.AsType[*ImageSumError](err)
	if !ok || e.Want != *want || e.Got != *imageSum(image) {
		t.Errorf("error = %v, want %v", err, &ImageSumError{*want, *imageSum(image)})
	}
}

// TestImageSum: with the right sum the image is written. With another one the head of a target in place stays invalid,
// and a target that holds the image already is not written.
func TestImageSum(t *testing.T) {
	a, b := releases()
	old := append(bytes.Clone(a), make([]byte, len(b)-len(a))...)
	sameHead := append(bytes.Clone(b[:len(b)/2]), old[len(b)/2:]...)
	zeros := append(make([]byte, 400_000), b...)
	other := imageSum(a)
	for name, c := range map[string]struct {
		old, image []byte
		o          Options
	}{
		"in place":                {old, b, Options{}},
		"in place, read back":     {old, b, Options{Verify: All, Far: true}},
		"the same head":           {sameHead, b, Options{Segments: 1}},
		"equal":                   {b, b, Options{}},
		"a new file":              {make([]byte, len(b)), b, Options{New: true}},
		"zeros in the head":       {random(9, len(zeros)), zeros, Options{}},
		"zeros in a new file":     {make([]byte, len(zeros)), zeros, Options{New: true}},
		"zeros, equal":            {zeros, zeros, Options{}},
		"smaller than the head":   {random(9, 5000), b[:5000], Options{}},
		"of the size of the head": {random(9, headSize), b[:headSize], Options{}},
		"empty":                   {nil, nil, Options{}},
	} {
		t.Run(name, func(t *testing.T) {
			plan := seed.NewPlan(index(t, c.image), seedOf(t, a))
			right, wrong := c.o, c.o
			right.ImageSum, wrong.ImageSum = imageSum(c.image), other
			d := &device{data: bytes.Clone(c.old)}
			_, err := Run(t.Context(), plan, newStore(t, c.image), d, wrong)
			wantSumError(t, err, c.image, other)
			switch {
			case bytes.Equal(c.old, c.image):
				if n, _ := d.written(); n > 0 {
					t.Errorf("%d bytes were written to a target that holds the image", n)
				}
			case bytes.HasPrefix(c.image, zeros[:headSize]): // such a head is invalid
			case !c.o.New && looksLike(d.data, 0, c.old, c.image):
				t.Error("a target with another sum looks whole")
			}
			mustRun(t, plan, newStore(t, c.image), d, right, c.image)
			mustRun(t, plan, newStore(t, c.image), &device{data: bytes.Clone(c.old)}, right, c.image)
		})
	}
}

// TestImageSumOfMedium: the sum is that of the medium, if the medium is read back.
func TestImageSumOfMedium(t *testing.T) {
	_, b := releases()
	plan, at := seed.NewPlan(index(t, b)), int64(700_000)
	d := &device{data: bytes.Clone(b)}
	copy(d.data, random(9, 1000)) // only the head is written, so only the head is compared with the index
	_, err := Run(t.Context(), plan, newStore(t, b), medium{d, at}, Options{Verify: Changed, ImageSum: imageSum(b)})
	bad := bytes.Clone(b)
	bad[at] ^= 1
	wantSumError(t, err, bad, imageSum(b))
	if looksLike(d.data, 0, b) {
		t.Error("the target looks whole")
	}
}

// TestImageSumReadsOnce: the read that gives the sum is the one that reads the image back. A chunk that the medium does
// not hold is reported as that.
func TestImageSumReadsOnce(t *testing.T) {
	_, b := releases()
	plan := seed.NewPlan(index(t, b))
	o := Options{Verify: All, ImageSum: imageSum(b)}
	for name, old := range map[string][]byte{"changed": random(9, len(b)), "equal": b} {
		m := countedMedium{medium{&device{data: bytes.Clone(old)}, -1}, new(atomic.Int64)}
		if _, err := Run(t.Context(), plan, newStore(t, b), m, o); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := m.read.Load(); got != int64(len(b)) {
			t.Errorf("%s: %d bytes were read back of an image of %d", name, got, len(b))
		}
	}
	bad := medium{&device{data: random(9, len(b))}, 700_000}
	if _, err := Run(t.Context(), plan, newStore(t, b), bad, o); !errors.Is(err, ErrMedium) {
		t.Errorf("Run onto a bad medium = %v, want %v", err, ErrMedium)
	}
}

// countedMedium counts the bytes that are read back.
type countedMedium struct {
	medium
	read *atomic.Int64
}

func (m countedMedium) ReadBack(p []byte, off int64) (int, error) {
	m.read.Add(int64(len(p)))
	return m.medium.ReadBack(p, off)
}

// TestStreamSum: a stream whose image has another sum is not completed.
func TestStreamSum(t *testing.T) {
	a, b := releases()
	for _, image := range [][]byte{b, append(make([]byte, 300_000), b...), b[:10], nil} {
		p, from := seed.NewPlan(index(t, image), seedOf(t, a)), newStore(t, image)
		for _, o := range []Options{{}, {Memory: 1 << 20, Segments: 3}, {Far: true}} {
			o.ImageSum = imageSum(image)
			stream(t, p, from, image, 0, len(image), o)
			o.ImageSum = imageSum(a)
			for _, out := range []interface {
				Write([]byte) (int, error)
				Bytes() []byte
			}{new(bytes.Buffer), new(holes)} {
				_, err := Stream(t.Context(), p, from, Sink{out, 0, int64(len(image))}, o)
				wantSumError(t, err, image, o.ImageSum)
				if got := out.Bytes(); !bytes.HasPrefix(image, got) || len(image) > 0 && len(got) == len(image) {
					t.Errorf("%d of %d bytes were written, want fewer", len(got), len(image))
				}
			}
		}
	}
}
