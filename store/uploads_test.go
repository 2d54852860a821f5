package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

// uploading is a bucket whose batches are uploads.
type uploading struct {
	mem.Bucket
	options store.UploadOptions
}

func (u *uploading) NewBatch() (store.Batch, error) {
	return store.NewUploads(&u.Bucket, u.options), nil
}

func TestUploads(t *testing.T) {
	for name, o := range map[string]store.UploadOptions{"usual": {}, "one at a time": {AtOnce: 1}, "few bytes": {Bytes: 1}} {
		t.Run(name, func(t *testing.T) {
			storetest.TestBucket(t, func(*testing.T) store.Bucket { return &uploading{options: o} })
		})
	}
}

// TestUploadsOverlap: with 100 ms for each object, many uploads run at once, within the limits.
func TestUploadsOverlap(t *testing.T) {
	for _, c := range []struct {
		options store.UploadOptions
		want    time.Duration
	}{
		{store.UploadOptions{AtOnce: 1}, 64 * 100 * time.Millisecond},
		{store.UploadOptions{AtOnce: 16}, 4 * 100 * time.Millisecond},
		{store.UploadOptions{AtOnce: 16, Bytes: 8000}, 8 * 100 * time.Millisecond},
		{store.UploadOptions{}, 2 * 100 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			remote := &storetest.Remote{Full: new(mem.Bucket), Latency: 100 * time.Millisecond}
			batch, begun := store.NewUploads(remote, c.options), time.Now()
			for i := range 64 {
				if err := batch.Write(t.Context(), fmt.Sprint(i), make([]byte, 1000)); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(batch.Commit(t.Context()), batch.Close()); err != nil {
				t.Fatal(err)
			}
			if got := time.Since(begun); got != c.want {
				t.Errorf("64 objects with %+v take %v, want %v", c.options, got, c.want)
			}
		})
	}
}

var errRefused = errors.New("refused")

// refusing is a bucket whose writes fail while it is set to.
type refusing struct {
	mem.Bucket
	fails atomic.Bool
}

func (f *refusing) Write(ctx context.Context, name string, data []byte) error {
	if f.fails.Load() {
		return errRefused
	}
	return f.Bucket.Write(ctx, name, data)
}

// TestUploadFails: the next Write returns the failure, then Commit does, until a Commit writes the
// object.
func TestUploadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(refusing)
		b.fails.Store(true)
		batch := store.NewUploads(b, store.UploadOptions{})
		defer batch.Close()
		if err := batch.Write(t.Context(), "x", []byte("data")); err != nil {
			t.Fatalf("the first Write = %v", err)
		}
		synctest.Wait()
		if err := batch.Write(t.Context(), "y", nil); !errors.Is(err, errRefused) {
			t.Errorf("Write after a failure = %v, want %v", err, errRefused)
		}
		for range 2 {
			if err := batch.Commit(t.Context()); !errors.Is(err, errRefused) {
				t.Errorf("Commit after a failure = %v, want %v", err, errRefused)
			}
		}
		b.fails.Store(false)
		if err := batch.Commit(t.Context()); err != nil {
			t.Errorf("Commit when nothing fails any more = %v", err)
		}
		if got, err := b.Read(t.Context(), "x", nil, 10); string(got) != "data" || err != nil {
			t.Errorf("x = %q, %v after Commit", got, err)
		}
	})
}

// TestUploadsEnd: cancelling ends a wait. After Close nothing runs (else synctest.Test would not
// return) and no object is accepted.
func TestUploadsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		remote := &storetest.Remote{Full: new(mem.Bucket), Latency: time.Hour}
		batch := store.NewUploads(remote, store.UploadOptions{AtOnce: 2})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for i, want := range []error{nil, nil, context.DeadlineExceeded} {
			if err := batch.Write(ctx, fmt.Sprint(i), nil); !errors.Is(err, want) {
				t.Errorf("Write %d = %v, want %v", i, err, want)
			}
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := batch.Commit(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Commit = %v, want %v", err, context.DeadlineExceeded)
		}
		if err := batch.Close(); err != nil {
			t.Error(err)
		}
		if err := batch.Write(t.Context(), "x", nil); err == nil {
			t.Error("Write after Close succeeded")
		}
		if err := batch.Commit(t.Context()); err == nil {
			t.Error("Commit after Close succeeded")
		}
	})
}
