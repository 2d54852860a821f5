package ingest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/testimages"
)

// TestAdd: a store gets the chunks of an index that it lacks, and no others of the image are read.
func TestAdd(t *testing.T) {
	image := image()
	x, made := mustBuild(t, source(image), newWriter(t, &mem.Bucket{}, store.WriterOptions{}), Options{Params: fixed})
	for _, c := range []struct {
		o    Options
		held int // bytes of the image whose chunks the store holds
	}{{Options{Workers: 3}, 0}, {Options{}, len(image)}, {Options{AtOnce: 8}, 1 << 20}} {
		b := &mem.Bucket{}
		if c.held > 0 {
			mustBuild(t, source(image[:c.held]), newWriter(t, b, store.WriterOptions{}), Options{Params: fixed})
		}
		from := &counted{ReaderAt: bytes.NewReader(image)}
		got, err := Add(t.Context(), x, from, newWriter(t, b, store.WriterOptions{}), c.o)
		if err != nil {
			t.Fatal(err)
		}
		checkStored(t, x, b, image)
		if got.NewBytes != from.bytes.Load() || c.held == 0 && got.New != made.New || c.held == len(image) && got.New != 0 {
			t.Errorf("%d bytes held: %+v, of %d bytes read", c.held, got, from.bytes.Load())
		}
		want := made
		want.New, want.NewBytes, want.Stored, want.Zeros = got.New, got.NewBytes, got.Stored, got.Zeros
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("stats (-want +got):\n%s", diff)
		}
	}
}

// TestAddFails: another image, a failed store and a cancelled Add are errors, and nothing is committed.
func TestAddFails(t *testing.T) {
	image, failure := image(), errors.New("failed")
	x, _ := mustBuild(t, source(image), newWriter(t, &mem.Bucket{}, store.WriterOptions{}), Options{Params: fixed})
	changed := bytes.Clone(image)
	changed[5<<20] ^= 1 // in a chunk of zeros that repeats
	changed[1<<20] ^= 1
	for name, c := range map[string]struct {
		image []byte
		hook  string // fails or cancels
		want  error
	}{
		"another image":      {image: changed},
		"a shorter image":    {image: image[:1<<20], want: io.EOF},
		"has":                {image: image, hook: "has", want: failure},
		"put":                {image: image, hook: "put", want: failure},
		"cancelled at a has": {image: image, hook: "cancel has", want: context.Canceled},
		"cancelled at a put": {image: image, hook: "cancel put", want: context.Canceled},
	} {
		for _, o := range []Options{{Workers: 1}, {AtOnce: 8}} {
			ctx, cancel := context.WithCancel(t.Context())
			r := newRecorder(func(_ context.Context, op string, n int) error {
				switch {
				case n == 20 && op == c.hook:
					return failure
				case n == 20 && "cancel "+op == c.hook:
					cancel()
				}
				return nil
			})
			_, err := Add(ctx, x, bytes.NewReader(c.image), r, o)
			if mismatch, is := errors.AsType[*MismatchError](err); is {
				if at := mismatch.Chunk; c.want != nil || at.Offset > 1<<20 || at.End() <= 1<<20 {
					t.Errorf("%s: %v", name, err)
				}
			} else if c.want == nil || !errors.Is(err, c.want) {
				t.Errorf("%s: Add = %v, want %v", name, err, c.want)
			}
			if r.calls["commit"] != 0 {
				t.Errorf("%s: it commits what it gave up", name)
			}
			cancel()
		}
	}
	r := newRecorder(func(_ context.Context, op string, _ int) error {
		if op == "commit" {
			return failure
		}
		return nil
	})
	if _, err := Add(t.Context(), x, bytes.NewReader(image), r, Options{}); !errors.Is(err, failure) {
		t.Errorf("Commit fails: Add = %v", err)
	}
}

// TestAddMemory: the bytes of the chunks in flight are limited.
func TestAddMemory(t *testing.T) {
	const most = relayBytes / (16 << 20)
	params := chunker.Params{Min: 16 << 20, Avg: 16 << 20, Max: 16 << 20}
	image := testimages.Random(1, (most+2)*16<<20)
	x, _ := mustBuild(t, source(image), newRecorder(nil), Options{Params: params})
	r := newRecorder(nil)
	r.hook = func(_ context.Context, op string, _ int) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.inFlight > most {
			t.Errorf("%d chunks of 16 MiB are in flight, want at most %d", r.inFlight, most)
		}
		return nil
	}
	if _, err := Add(t.Context(), x, bytes.NewReader(image), r, Options{AtOnce: 100}); err != nil {
		t.Fatal(err)
	}
}
