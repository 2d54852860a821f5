package assemble

import (
	"bytes"
	"io"
	"runtime"
	"sync/atomic"
	"testing"

	"cairn/seed"
)

// counted counts the reads and their bytes.
type counted struct {
	io.ReaderAt
	calls, bytes atomic.Int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.calls.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.ReaderAt.ReadAt(p, off)
}

// TestReadsOfSeed: a seed equal to the image is read once, in reads much larger than chunks, with few
// allocations. The test counts instead of measuring time, so the load of the machine does not matter.
func TestReadsOfSeed(t *testing.T) {
	image := random(1, 32<<20)
	x := index(t, image)
	once := func() (*counted, uint64) {
		c := &counted{ReaderAt: bytes.NewReader(image)}
		plan := seed.NewPlan(x, seed.Seed{Name: "a", Index: x, Data: c})
		target, empty := &device{data: make([]byte, len(image))}, newStore(t, nil)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := Run(t.Context(), plan, empty, target, Options{}); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if !bytes.Equal(target.data, image) {
			t.Fatal("the target does not hold the image")
		}
		return c, after.Mallocs - before.Mallocs
	}
	once() // work that is done only once in a process
	c, allocations := once()
	if n, most := c.bytes.Load(), int64(len(image)+len(image)/8); n > most {
		t.Errorf("%d bytes are read of a seed of %d, want at most %d", n, len(image), most)
	}
	if n, most := c.calls.Load(), int64(x.Len()/50); n > most {
		t.Errorf("%d reads for %d chunks, want at most %d", n, x.Len(), most)
	}
	if most := uint64(x.Len() / 4); allocations > most {
		t.Errorf("%d allocations for %d chunks, want at most %d", allocations, x.Len(), most)
	}
}
