package store_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/supply"
)

// suspecting marks all reads as suspect, as if each answer had the content type of a web page.
type suspecting struct{ store.Reader }

func (s suspecting) doubt() error {
	return &store.SuspectError{Err: &store.UnavailableError{Err: errors.New("a web page")}}
}

func (s suspecting) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	out, err := s.Reader.Read(ctx, name, dst, limit)
	if err == nil {
		err = s.doubt()
	}
	return out, err
}

func (s suspecting) Stat(ctx context.Context, name string) (int64, error) {
	size, err := s.Reader.Stat(ctx, name)
	if err == nil {
		err = s.doubt()
	}
	return size, err
}

// TestSuspicion: behind every wrapper correct bytes are accepted, and wrong ones return the
// suspicion.
func TestSuspicion(t *testing.T) {
	data := storetest.Bytes(1, 10_000)
	d, wrong := blob.SHA256.Sum(data), blob.SHA256.Sum([]byte("other"))
	bucket := new(mem.Bucket)
	for _, of := range []blob.Digest{d, wrong} {
		if err := bucket.Write(t.Context(), store.ObjectName(of, false), data); err != nil {
			t.Fatal(err)
		}
	}
	budget := supply.NewBudget(3*int64(len(data)) - 1)
	for name, r := range map[string]store.Reader{
		"bare":   suspecting{bucket},
		"retry":  store.Retry(suspecting{bucket}, store.Policy{Patience: 1}),
		"rate":   supply.NewRate(1 << 30).Limit(suspecting{bucket}),
		"budget": budget.Limit(suspecting{bucket}),
	} {
		chunks, dst := store.NewChunks(r, blob.SHA256), make([]byte, len(data))
		if err := store.GetOne(t.Context(), chunks, d, dst); err != nil || !bytes.Equal(dst, data) {
			t.Errorf("%s: Get = %v", name, err)
		}
		if err := store.GetOne(t.Context(), chunks, wrong, dst); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: Get of other bytes = %v, want ErrUnavailable", name, err)
		}
		if name == "budget" { // it is nearly used up
			if err := store.GetOne(t.Context(), chunks, d, dst); !errors.Is(err, supply.ErrBudget) {
				t.Errorf("Get beyond the budget = %v", err)
			}
			continue
		}
		if size, err := chunks.Stat(t.Context(), d); size != int64(len(data)) || err != nil {
			t.Errorf("%s: Stat = %d, %v", name, size, err)
		}
		if _, err := chunks.Stat(t.Context(), wrong); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: Stat of other bytes = %v, want ErrUnavailable", name, err)
		}
	}
}

// sizeless reports no sizes.
type sizeless struct{ store.Reader }

func (s sizeless) Stat(ctx context.Context, name string) (int64, error) {
	_, err := s.Reader.Stat(ctx, name)
	if err == nil {
		err = store.ErrNoSize
	}
	return 0, err
}

// TestNoSize: a chunk whose size the store does not report counts as present, and is read to get
// its size.
func TestNoSize(t *testing.T) {
	bucket, d := new(mem.Bucket), blob.SHA256.Sum([]byte("data"))
	w, err := store.NewWriter(struct {
		sizeless
		writes
	}{sizeless{bucket}, writes{bucket}}, store.WriterOptions{Compression: store.None})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{false, true} {
		if has, err := w.Has(t.Context(), d); has != want || err != nil {
			t.Errorf("Has = %v, %v; want %v", has, err, want)
		}
		_, err := w.Put(t.Context(), d, []byte("data"))
		if err := errors.Join(err, w.Commit(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	chunks := store.NewChunks(sizeless{bucket}, blob.SHA256)
	if size, err := chunks.Stat(t.Context(), d); size != 4 || err != nil {
		t.Errorf("Stat = %d, %v; want 4", size, err)
	}
	if err := bucket.Write(t.Context(), store.ObjectName(d, false), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := chunks.Stat(t.Context(), d); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Stat of an empty object = %v, want ErrNotFound", err)
	}
}

// writes is the writing half of a bucket.
type writes struct{ b store.Bucket }

func (w writes) Write(ctx context.Context, name string, data []byte) error {
	return w.b.Write(ctx, name, data)
}
