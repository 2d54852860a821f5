package ingest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"cairn/chunker"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/local"
	"cairn/testimages"
)

// The tests in this file count the work of an ingest instead of measuring its time, so the load of the
// machine does not matter. The bounds are generous. They detect a second read of the image, or work per
// byte that should be per chunk.

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

// TestReadsOnce: an image is read once, in large reads.
func TestReadsOnce(t *testing.T) {
	image := testimages.Random(1, 24<<20)
	for _, workers := range []int{1, 3} {
		c := &counted{ReaderAt: bytes.NewReader(image)}
		src := chunker.FromReaderAt(c, int64(len(image)))
		if _, _, err := Image(t.Context(), src, newRecorder(nil), Options{Params: chunker.Default, Workers: workers}); err != nil {
			t.Fatal(err)
		}
		if n, most := c.bytes.Load(), int64(len(image)+64<<10); n > most {
			t.Errorf("%d workers: %d bytes are read of %d", workers, n, len(image))
		}
		if n, most := c.calls.Load(), int64(len(image)>>20); n > most {
			t.Errorf("%d workers: %d reads, want at most %d", workers, n, most)
		}
	}
}

// TestAllocations: an ingest allocates little per chunk, and nothing in proportion to the chunks'
// bytes.
func TestAllocations(t *testing.T) {
	image := testimages.Random(1, 32<<20)
	allocated := func(times int) (count, size uint64, chunks int) {
		larger := bytes.NewReader(image[:times*8<<20])
		r := newRecorder(nil)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		x, _ := mustBuild(t, chunker.FromReaderAt(larger, larger.Size()), r, Options{Params: chunker.Default, Workers: 2})
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs, after.TotalAlloc - before.TotalAlloc, x.Len()
	}
	allocated(1) // work that is done only once in a process
	count1, size1, chunks1 := allocated(1)
	count4, size4, chunks4 := allocated(4)
	more := uint64(chunks4 - chunks1)
	if n := count4 - min(count4, count1); n > 2*more {
		t.Errorf("%d more chunks take %d more allocations", more, n)
	}
	if n := size4 - min(size4, size1); n > 6<<20 { // for 24 MiB more of image
		t.Errorf("%d more chunks take %d more bytes", more, n)
	}
}

// TestCallsForEachChunk counts reads and writes as the kernel does: a chunk is written with one call.
func TestCallsForEachChunk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	mustWrite(t, path, testimages.Random(1, 16<<20))
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := local.Create(filepath.Join(t.TempDir(), "store"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, b, store.WriterOptions{})
	reads, writes := calls(t)
	x, _ := mustBuild(t, chunker.FromReaderAt(f, 16<<20), w, Options{Params: chunker.Default, Workers: 2})
	readsAfter, writesAfter := calls(t)
	const others = 100 // of the runtime, and for opening files
	if n := readsAfter - reads; n > others {
		t.Errorf("%d reads for an image of 16 MiB", n)
	}
	if n := writesAfter - writes; n > int64(x.Len())+others {
		t.Errorf("%d writes for %d chunks", n, x.Len())
	}
}

// calls returns the number of reads and writes of this process so far.
func calls(t *testing.T) (reads, writes int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		need.Missing(t, "/proc/self/io cannot be read")
	}
	var rchar, wchar int64
	_, err = fmt.Sscanf(string(text), "rchar: %d\nwchar: %d\nsyscr: %d\nsyscw: %d\n", &rchar, &wchar, &reads, &writes)
	if err != nil {
		t.Fatal(err)
	}
	return reads, writes
}
