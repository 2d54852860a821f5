package deploy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"cairn/blob/assemble"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/blockdev"
	"cairn/internal/test/looptest"
	"cairn/seed/learn"
	"cairn/testimages"
)

// sequence opens a file and claims it for data, from offset on.
func sequence(t *testing.T, path string, flags int, offset int64, data []byte) (*os.File, io.Writer, func(error) error, error) {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	to, err := Options{}.ClaimSequence(t.Context(), f, f, int64(len(data)))
	if err != nil {
		return f, nil, nil, err
	}
	return f, to.Writer, to.Finish, nil
}

// TestSequenceKeepsTheRest: a regular file keeps what stands before and behind the written bytes.
func TestSequenceKeepsTheRest(t *testing.T) {
	path, old, data := filepath.Join(t.TempDir(), "file"), testimages.Random(1, 100_000), testimages.Random(2, 20_000)
	for _, offset := range []int64{0, 5000, 100_000} {
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
		_, w, finish, err := sequence(t, path, os.O_RDWR, offset, data)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.Write(data)
		if err := finish(err); err != nil {
			t.Fatal(err)
		}
		want := slices.Concat(old[:offset], data, old[min(offset+20_000, 100_000):])
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("from %d: the file is not what it was, with the data in it (%v)", offset, err)
		}
	}
}

// TestSequenceFailed: finish returns the error of the writes.
func TestSequenceFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, finish, err := sequence(t, path, os.O_RDWR, 0, []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	if failed := errors.New("failed"); !errors.Is(finish(failed), failed) {
		t.Error("finish hides the failure of the writes")
	}
}

// TestSequenceOntoDevice: a block device is claimed, and its offset is behind the bytes at the end.
func TestSequenceOntoDevice(t *testing.T) {
	device := looptest.Attach(t, looptest.File(t, 1<<20), 512)
	data := testimages.Random(1, 8192)
	f, w, finish, err := sequence(t, device, os.O_RDWR, 4096, data)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := sequence(t, device, os.O_RDWR, 0, data); err == nil {
		t.Error("a claimed device is claimed again")
	}
	_, err = w.Write(data)
	if err := finish(err); err != nil {
		t.Fatal(err)
	}
	if at, err := f.Seek(0, io.SeekCurrent); err != nil || at != 4096+8192 {
		t.Errorf("the offset is %d, %v", at, err)
	}
	got := make([]byte, len(data))
	if _, err := f.ReadAt(got, 4096); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the device does not hold the data (%v)", err)
	}
	_, _, _, err = sequence(t, device, os.O_RDWR, 0, make([]byte, 2<<20))
	if _, refused := errors.AsType[*blockdev.RefusedError](err); !refused {
		t.Errorf("a device that is too small: %v", err)
	}
}

// TestSequenceIsNoSeed: an output that is a seed is refused, and keeps its bytes.
func TestSequenceIsNoSeed(t *testing.T) {
	path, data := filepath.Join(t.TempDir(), "file"), testimages.Random(1, 100_000)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	x, _, err := scan.Image(t.Context(), chunker.FromReaderAt(bytes.NewReader(data), int64(len(data))), scan.Options{Params: chunker.Default})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o := Options{Seeds: []learn.Place{{Path: path}}, Workers: 1}
	to, err := o.ClaimSequence(t.Context(), f, f, x.Size())
	if err != nil {
		t.Fatal(err)
	}
	_, err = NewSequencePlan(t.Context(), x, assemble.Sink{Size: x.Size()}, to, o)
	if refused, is := errors.AsType[*blockdev.RefusedError](err); !is || refused.Check != blockdev.CheckOverlap {
		t.Errorf("the plan: %v, want a refused overlap", err)
	}
	if err := to.Finish(err); err == nil {
		t.Error("Finish reports no error")
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file has changed (%v)", err)
	}
}
