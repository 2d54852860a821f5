package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"testing"

	"cairn/store"
)

// ReadRange reads a range with store.StreamRange. It returns the part and all bytes of the reader.
func ReadRange(ctx context.Context, r store.Reader, name string, off, n int64) (part store.Part, got []byte, err error) {
	err = store.StreamRange(ctx, r, name, off, n, func(p store.Part, in io.Reader) (err error) {
		part = p
		got, err = io.ReadAll(in)
		return err
	})
	return part, got, err
}

func testRange(t *testing.T, r store.Reader, put Put) {
	want := Bytes(1, 2<<20+300_000)
	put("dir/x", want)
	size := int64(len(want))
	for _, c := range []struct{ off, n int64 }{
		{0, 1}, {0, 1000}, {0, size - 1}, {0, size}, {0, size + 1}, {0, math.MaxInt64},
		{1, 1}, {1000, 300_000}, {1 << 20, 4 << 20}, {123_457, 2<<20 + 1},
		{size - 1, 1}, {size - 1, 1 << 20}, {size - 1000, 1000}, {size - 5, 1 << 40}, {1, math.MaxInt64 - 1},
	} {
		part, got, err := ReadRange(t.Context(), r, "dir/x", c.off, c.n)
		if err != nil {
			t.Errorf("StreamRange(%d, %d): %v", c.off, c.n, err)
			continue
		}
		checkPart(t, r, part, got, want, c.off, c.n)
	}
}

// checkPart checks what a reader of a range returned. A store that does not implement
// store.RangeStreamer returns the whole object. A server may do that for a range that covers it.
func checkPart(t *testing.T, r store.Reader, part store.Part, got, object []byte, off, n int64) {
	t.Helper()
	size := int64(len(object))
	_, supports := r.(store.RangeStreamer)
	end := min(size-off, n) + off
	want := store.Part{Offset: off, Size: size}
	switch {
	case part.Whole && (!supports || off == 0 && n >= size):
		want, off, end = store.Part{Size: part.Size, Whole: true}, 0, size
	case part.Size == -1:
		t.Errorf("StreamRange(%d, %d) tells no size", off, n)
	}
	if part != want {
		t.Errorf("StreamRange(%d, %d) returned the part %+v, want %+v", off, n, part, want)
	}
	if !bytes.Equal(got, object[off:end]) {
		t.Errorf("StreamRange(%d, %d) read %d other bytes, want those from %d to %d", off, n, len(got), off, end)
	}
}

func testRangeAfterEnd(t *testing.T, r store.Reader, put Put) {
	put("ten", []byte("0123456789"))
	put("empty", nil)
	for _, c := range []struct {
		name   string
		off, n int64
	}{{"ten", 10, 1}, {"ten", 11, 5}, {"ten", 1 << 40, 4 << 20}, {"empty", 0, 1}, {"empty", 5, 100}} {
		part, _, err := ReadRange(t.Context(), r, c.name, c.off, c.n)
		if err == nil && part.Whole {
			continue
		}
		if !errors.Is(err, store.ErrRange) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("StreamRange(%s, %d, %d) = %v, want ErrRange alone", c.name, c.off, c.n, err)
		}
	}
}

func testRangeRefused(t *testing.T, r store.Reader, put Put) {
	put("dir/x", Bytes(1, 1<<20))
	unused := func(store.Part, io.Reader) error {
		t.Error("StreamRange called use, want an error before that")
		return nil
	}
	for _, name := range []string{"absent", "dir/absent", "no/such/dir"} {
		checkAbsent(t, "StreamRange", name, store.StreamRange(t.Context(), r, name, 100, 10, unused))
	}
	for _, name := range []string{"", "../x", "a//x"} {
		err := store.StreamRange(t.Context(), r, name, 0, 10, unused)
		if err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("StreamRange(%q) = %v, want a refusal", name, err)
		}
	}
	for _, c := range []struct{ off, n int64 }{{-1, 10}, {0, 0}, {0, -1}, {5, 0}, {1, math.MaxInt64}, {math.MaxInt64, 1}} {
		if err := store.StreamRange(t.Context(), r, "dir/x", c.off, c.n, unused); err == nil {
			t.Errorf("StreamRange(%d, %d) succeeded, want a refusal", c.off, c.n)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.StreamRange(ctx, r, "dir/x", 0, 10, unused); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled StreamRange = %v, want context.Canceled", err)
	}
}

// testRangeStops ends the reading of a range early, by an error, without one, and by cancelling.
func testRangeStops(t *testing.T, r store.Reader, put Put) {
	want := Bytes(1, 4<<20)
	put("x", want)
	enough := errors.New("enough")
	for _, result := range []error{enough, nil} {
		err := store.StreamRange(t.Context(), r, "x", 0, 4<<20, func(_ store.Part, in io.Reader) error {
			p := make([]byte, 10)
			if _, err := io.ReadFull(in, p); err != nil || !bytes.Equal(p, want[:10]) {
				t.Errorf("reading the first 10 bytes of a range: %v", err)
			}
			return result
		})
		if !errors.Is(err, result) || errors.Is(err, store.ErrUnavailable) {
			t.Errorf("StreamRange that use ends early = %v, want %v", err, result)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := store.StreamRange(ctx, r, "x", 0, 4<<20, func(_ store.Part, in io.Reader) error {
		if _, err := io.ReadFull(in, make([]byte, 10)); err != nil {
			return err
		}
		cancel()
		n, err := io.Copy(io.Discard, in)
		if err == nil && n != 4<<20-10 {
			t.Errorf("reading after cancelling ends without an error after %d bytes", n)
		}
		return err
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("StreamRange cancelled during use = %v, want context.Canceled or nil", err)
	}
	_, got, err := ReadRange(t.Context(), r, "x", 0, 4<<20)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("StreamRange after that = %d bytes, %v", len(got), err)
	}
}

func testRangeConcurrent(t *testing.T, r store.Reader, put Put) {
	want := Bytes(1, 2<<20)
	put("x", want)
	var wg sync.WaitGroup
	for i := range int64(32) {
		wg.Go(func() {
			part, got, err := ReadRange(t.Context(), r, "x", i<<16, 1<<16)
			if err != nil {
				t.Errorf("concurrent StreamRange: %v", err)
				return
			}
			checkPart(t, r, part, got, want, i<<16, 1<<16)
		})
	}
	wg.Wait()
}
