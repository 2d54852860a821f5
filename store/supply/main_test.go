package supply

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

// sample is a chunk for tests, with its digest.
type sample struct {
	data   []byte
	digest blob.Digest
}

func newSample(seed uint64, size int) sample {
	data := append(storetest.Bytes(seed, size/2), make([]byte, size-size/2)...)
	return sample{data, blob.SHA512_256.Sum(data)}
}

func (s sample) packed() string { return s.digest.String()[:4] + "/" + s.digest.String() + ".cacnk" }

func (s sample) get(t *testing.T, g store.Getter) error {
	t.Helper()
	return store.GetOne(t.Context(), g, s.digest, make([]byte, len(s.data)))
}

// wantFrom checks that g supplies the chunk.
func (s sample) wantFrom(t *testing.T, g store.Getter) {
	t.Helper()
	dst := make([]byte, len(s.data))
	if err := store.GetOne(t.Context(), g, s.digest, dst); err != nil || !bytes.Equal(dst, s.data) {
		t.Errorf("Get = %v, want the chunk", err)
	}
}

// wants returns wants for the chunks, each with its memory.
func wants(samples ...sample) (list []store.Want) {
	for _, s := range samples {
		list = append(list, store.Want{Digest: s.digest, Dst: make([]byte, len(s.data))})
	}
	return list
}

// outcomes gets all wants. It checks that each has one outcome, and that the bytes are correct
// where it is nil.
func outcomes(t *testing.T, ctx context.Context, g store.Getter, list []store.Want) []error {
	t.Helper()
	missing := errors.New("no outcome")
	errs := make([]error, len(list))
	for i := range errs {
		errs[i] = missing
	}
	g.Get(ctx, list, func(i int, err error) {
		if errs[i] != missing {
			t.Errorf("a second outcome of want %d: %v after %v", i, err, errs[i])
		}
		errs[i] = err
	})
	for i, err := range errs {
		if err == missing || err == nil && blob.SHA512_256.Sum(list[i].Dst) != list[i].Digest {
			t.Errorf("want %d: %v, and its bytes are wrong or it has no outcome", i, err)
		}
	}
	return errs
}

// bucketOf returns a bucket with these chunks, compressed.
func bucketOf(t testing.TB, samples ...sample) *mem.Bucket {
	t.Helper()
	b := new(mem.Bucket)
	w := newWriter(t, b)
	for _, s := range samples {
		if _, err := w.Put(t.Context(), s.digest, s.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func newWriter(t testing.TB, b store.Bucket) *store.Writer {
	t.Helper()
	w, err := store.NewWriter(b, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func chunksOf(r store.Reader) *store.Chunks { return store.NewChunks(r, blob.SHA512_256) }

func mustWrite(t *testing.T, b store.Bucket, name string, data []byte) {
	t.Helper()
	if err := b.Write(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

// locals returns getters on this machine.
func locals(getters ...store.Getter) *fallback {
	f := new(fallback)
	for _, g := range getters {
		f.members = append(f.members, &member{from: g, link: NewFixedLink(32), local: true, noHedge: true})
	}
	return f
}

// remotes returns getters over a network.
func remotes(members ...*member) *fallback { return &fallback{members: members} }

func failing(err error) store.Getter {
	return storetest.GetterFunc(func(context.Context, blob.Digest, []byte) error { return err })
}
