package deploy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/blockdev"
	"cairn/internal/test/looptest"
	"cairn/testimages"
)

// device is size bytes, zeros except for data. It counts the bytes read.
type device struct {
	size int64
	data map[int64][]byte // by offset; none overlap
	mu   sync.Mutex
	read int64
}

func (d *device) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), d.size-off))
	clear(p[:n])
	for at, data := range d.data {
		if lo, hi := max(at, off), min(at+int64(len(data)), off+int64(n)); lo < hi {
			copy(p[lo-off:hi-off], data[lo-at:])
		}
	}
	d.mu.Lock()
	d.read += int64(n)
	d.mu.Unlock()
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// sparse is a device that knows its holes.
type sparse struct{ *device }

func (d sparse) NextData(off int64) (start, end int64, err error) {
	start, end = d.size, d.size
	for at, data := range d.data {
		if e := at + int64(len(data)); e > off && max(at, off) < start {
			start, end = max(at, off), e
		}
	}
	return start, end, nil
}

// indexAt cuts an image of size bytes, zeros except for data.
func indexAt(t *testing.T, size int64, data map[int64][]byte) *blob.Index {
	t.Helper()
	x, _, err := scan.Image(t.Context(), chunker.FromReaderAt(sparse{&device{size: size, data: data}}, size),
		scan.Options{Params: params, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// unit is a size of test images. It has as many chunks of params as a MiB has of chunker.Default.
const unit = 1 << 16

// TestMeasureUse: measureUse selects the useful part of a device's old content, and reads little.
func TestMeasureUse(t *testing.T) {
	image := testimages.Random(1, 96*unit)
	dense := indexAt(t, 96*unit, map[int64][]byte{0: image})
	// A file system of 8,192 units, almost empty.
	few := map[int64][]byte{0: image[:4*unit], 3 << 26: image[8*unit : 40*unit], 7 << 26: image[50*unit : 70*unit]}
	rare := indexAt(t, 8<<26, few)
	// The former release has its content at other offsets, as a compressed file system does.
	moved := append(testimages.Random(3, 1_234), image...)
	// One in ten runs of 2 units of this is in the image.
	tenth := testimages.Random(4, 96*unit)
	for at := 5 * unit; at+2*unit <= len(tenth); at += 20 * unit {
		copy(tenth[at:], image[at+3*unit:at+5*unit])
	}
	other := testimages.Random(5, 96*unit)
	front := int64(96+12) * unit
	for _, c := range []struct {
		name   string
		index  *blob.Index
		size   int64
		data   map[int64][]byte
		lo, hi int64 // range of the result
	}{
		{"blank", dense, 1 << 26, nil, 0, 0},
		{"erased flash", dense, 128 * unit, map[int64][]byte{0: bytes.Repeat([]byte{0xff}, 128*unit)}, 0, 0},
		{"other content", dense, 100 * unit, map[int64][]byte{0: other}, 0, 0},
		{"other content, large", dense, 1 << 36, map[int64][]byte{0: other, 1 << 35: other}, 0, 0},
		{"the image", dense, 100 * unit, map[int64][]byte{0: image}, 100 * unit, 100 * unit},
		{"moved", dense, 1 << 26, map[int64][]byte{0: moved}, front, front},
		{"moved, most is discarded", dense, 1 << 26, map[int64][]byte{20 * unit: moved[20*unit : 40*unit]}, front, front},
		{"a tenth", dense, 100 * unit, map[int64][]byte{0: tenth}, 100 * unit, 100 * unit},
		{"half of it, then blank", dense, 1 << 26, map[int64][]byte{0: image[:48*unit]}, front, front},
		{"longer release", dense, 1 << 26, map[int64][]byte{0: other, 110 * unit: image}, 170 * unit, 400 * unit},
		{"at the end only", dense, 1 << 26, map[int64][]byte{1<<26 - 400*unit: bytes.Repeat(image, 4)}, 1<<26 - 300*unit, 1 << 26},
		{"small target", indexAt(t, 8*unit, map[int64][]byte{0: image[:8*unit]}), 40 * unit, nil, 40 * unit, 40 * unit},
		{"hardly filled", rare, 8 << 26, few, 8 << 26, 8 << 26},
		{"hardly filled, larger device", rare, 100 << 26, few, 9 << 26, 9 << 26},
		{"no data wanted", indexAt(t, 256*unit, nil), 256 * unit, map[int64][]byte{0: image}, 0, 0},
	} {
		for _, holes := range []bool{false, true} {
			d := &device{size: c.size, data: c.data}
			var r io.ReaderAt = d
			if holes {
				r = sparse{d}
			}
			got, err := measureUse(t.Context(), c.index, r, c.size, 2)
			if err != nil || got < c.lo || got > c.hi {
				t.Errorf("%s, holes known %v: measureUse = %d, %v, want %d to %d", c.name, holes, got, err, c.lo, c.hi)
			}
			if d.read > 17*unit {
				t.Errorf("%s, holes known %v: %d bytes were read", c.name, holes, d.read)
			}
			if holes && c.data == nil && d.read > 0 {
				t.Errorf("%s: %d bytes of holes were read", c.name, d.read)
			}
		}
	}
}

// TestHolesAreNotSampled: the samples of a large sparse file are taken where it has data.
func TestHolesAreNotSampled(t *testing.T) {
	image := testimages.Random(1, 64*unit)
	x := indexAt(t, 64*unit, map[int64][]byte{0: image})
	d := &device{size: 1 << 36, data: map[int64][]byte{700 << 26: image[:3*unit]}}
	if got, err := measureUse(t.Context(), x, sparse{d}, d.size, 1); err != nil || got < 700<<26 {
		t.Errorf("measureUse = %d, %v, want more than what lies before the data", got, err)
	}
}

// TestUnreadable: measureUse returns an error for a short device and for a cancelled context.
func TestUnreadable(t *testing.T) {
	x := indexAt(t, 96*unit, map[int64][]byte{0: testimages.Random(1, 96*unit)})
	if got, err := measureUse(t.Context(), x, bytes.NewReader(make([]byte, 90*unit)), 100*unit, 1); err == nil {
		t.Errorf("measureUse of a short device = %d, want an error", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := measureUse(ctx, x, &device{size: 1 << 26}, 1<<26, 1); err == nil {
		t.Error("measureUse goes on when it is cancelled")
	}
}

// bytesRead returns how many bytes this process has read so far.
func bytesRead(t *testing.T) (n int64) {
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip(err)
	}
	if _, err := fmt.Sscanf(string(text), "rchar: %d", &n); err != nil {
		t.Skip(err)
	}
	return n
}

// TestBlankTargetIsNotReadFirst: with a blank target of 1 GiB, only some MiB are read before the first
// fetch.
func TestBlankTargetIsNotReadFirst(t *testing.T) {
	p := publish(t, testimages.Random(1, 8<<20), chunker.Default)
	file := looptest.File(t, 1<<30)
	for name, location := range map[string]func(t *testing.T) string{
		"partition of a file": func(*testing.T) string { return file },
		"device":              func(t *testing.T) string { return looptest.Attach(t, looptest.File(t, 1<<30), 512) },
	} {
		t.Run(name, func(t *testing.T) {
			slot, err := blockdev.OpenTarget(t.Context(), location(t), blockdev.Options{})
			if err != nil {
				t.Fatal(err)
			}
			to := targetInPlace("slot", slot, nil)
			defer to.Close()
			var first atomic.Int64
			before := bytesRead(t)
			p.begun = func() { first.CompareAndSwap(0, bytesRead(t)-before) }
			var notes noted
			o := Options{Workers: 2, Notes: notes.add}
			plan, err := NewPlan(t.Context(), p.index, to, o)
			if err != nil {
				t.Fatal(err)
			}
			defer plan.Close()
			if _, err := plan.Run(t.Context(), p, nil); err != nil {
				t.Fatal(err)
			}
			if n := first.Load(); n == 0 || n > 20<<20 {
				t.Errorf("%d bytes were read before the first fetch", n)
			}
			if want := (Sampled{"slot", 0, 1 << 30}); len(notes) != 1 || notes[0] != want {
				t.Errorf("notes %+v, want %+v", notes, want)
			}
			got := make([]byte, len(p.image))
			if _, err := slot.ReadAt(got, 0); err != nil || !bytes.Equal(got, p.image) {
				t.Errorf("the slot does not hold the image, %v", err)
			}
		})
	}
}

// TestOldReleaseIsUsed: the target's own old content is used, on a device and in a partly written slot.
func TestOldReleaseIsUsed(t *testing.T) {
	old := testimages.Random(1, 90*unit)
	next := publish(t, append(testimages.Random(2, unit), old...), params)
	image := looptest.File(t, 128*unit)
	if err := os.WriteFile(image, append(old, make([]byte, 38*unit)...), 0o600); err != nil {
		t.Fatal(err)
	}
	node := looptest.Attach(t, image, 512)
	want := previewJob(t, next, node, Options{Workers: 2})
	if want.Fetched > 3*unit {
		t.Errorf("%d bytes are to be fetched, want about one unit", want.Fetched)
	}
	next.limit = 5
	if _, err := runJob(t, next, node, Options{Workers: 2}); err == nil {
		t.Fatal("it did not fail")
	}
	next.limit = 0
	next.gets.Store(0)
	stats, err := runJob(t, next, node, Options{Workers: 2})
	if err != nil || stats.Fetched > 3*unit || stats.Fetches != next.gets.Load() || !next.isHeldBy(t, node) {
		t.Errorf("after an interruption %d bytes were fetched, %v", stats.Fetched, err)
	}
}
