package release_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"testing"

	"cairn/blob"
	"cairn/blob/ingest"
	"cairn/blob/release"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/local"
	"cairn/store/locate"
	"cairn/store/storetest"
	"cairn/testimages"
)

var sizes = chunker.Params{Min: 16 << 10, Avg: 16 << 10, Max: 16 << 10}

// releases returns two images. The second shares all but some chunks with the first.
func releases() (old, next []byte) {
	old = testimages.Random(1, 64<<10)
	return old, bytes.Join([][]byte{old[:32<<10], testimages.Random(2, 32<<10), old[48<<10:]}, nil)
}

// publish ingests an image into a bucket and publishes it under a name there.
func publish(
	ctx context.Context, image []byte, to store.Bucket, name string, o release.PublisherOptions, create bool,
) (*blob.Index, error) {
	return publishBeside(ctx, image, to, to, name, o, create)
}

// publishTo publishes an image into a bucket, and its index into another.
func publishTo(t *testing.T, image []byte, chunks, indexes store.Bucket, name string, o release.PublisherOptions) {
	t.Helper()
	if _, err := publishBeside(t.Context(), image, chunks, indexes, name, o, false); err != nil {
		t.Fatal(err)
	}
}

func publishBeside(
	ctx context.Context, image []byte, to, indexes store.Bucket, name string, o release.PublisherOptions, create bool,
) (*blob.Index, error) {
	outlet, err := release.OutletIn(ctx, indexes, locate.Location{}, name, release.OutletOptions{CreateOnly: create})
	if err != nil {
		return nil, err
	}
	o.Params = blob.Params(sizes)
	p, err := release.NewPublisher(ctx, to, o)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	src := chunker.FromReaderAt(bytes.NewReader(image), int64(len(image)))
	x, _, err := ingest.Image(ctx, src, p, ingest.Options{Params: sizes, Workers: 2, AtOnce: o.Writer.Uploads})
	if err != nil {
		return nil, err
	}
	return x, p.Publish(ctx, outlet, x)
}

func mustPublish(t *testing.T, image []byte, b store.Bucket, name string, o release.PublisherOptions) *blob.Index {
	t.Helper()
	x, err := publish(t.Context(), image, b, name, o, false)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// published reads an index by its name in a bucket, and checks that all its chunks are there. It
// returns nil without an index.
func published(t *testing.T, b store.Reader, name string) *blob.Index {
	t.Helper()
	file, err := b.Read(t.Context(), name, nil, 1<<20)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	x, err := blob.Decode(bytes.NewReader(file))
	if err != nil {
		t.Fatalf("an index that is visible is not whole: %v", err)
	}
	chunks, buf := store.NewChunks(b, x.Algorithm()), make([]byte, x.Params().Max)
	for _, c := range x.All() {
		if err := store.GetOne(t.Context(), chunks, c.Digest, buf[:c.Size]); err != nil {
			t.Fatalf("an index is visible before its chunks: %v", err)
		}
	}
	return x
}

// The ways in which an operation of a bucket fails.
const (
	ends    = "ends"    // this and every later operation fail, as in a power cut
	fails   = "fails"   // only this operation fails
	loses   = "loses"   // this operation succeeds, but returns an error
	cancels = "cancels" // the job is cancelled during the operation
)

var errFault = errors.New("it fails")

// faulty is a bucket with one failing operation.
type faulty struct {
	storetest.Full
	at     int64 // number of the failing operation, from 1
	how    string
	cancel func()
	ops    atomic.Int64

	unheeded atomic.Bool // the job was cancelled during a listing
}

func (f *faulty) runOp(op func() error) error {
	n := f.ops.Add(1)
	switch {
	case n == f.at && f.how == cancels:
		f.cancel()
	case n == f.at && f.how == loses:
		return errors.Join(op(), errFault)
	case n == f.at, n > f.at && f.how == ends && f.at > 0:
		return errFault
	}
	return op()
}

func (f *faulty) reached() bool { return f.at > 0 && f.ops.Load() >= f.at }

func (f *faulty) Read(ctx context.Context, name string, dst []byte, limit int64) (data []byte, err error) {
	err = f.runOp(func() error { data, err = f.Full.Read(ctx, name, dst, limit); return err })
	return data, err
}

func (f *faulty) Stat(ctx context.Context, name string) (size int64, err error) {
	err = f.runOp(func() error { size, err = f.Full.Stat(ctx, name); return err })
	return size, err
}

func (f *faulty) Write(ctx context.Context, name string, data []byte) error {
	return f.runOp(func() error { return f.Full.Write(ctx, name, data) })
}

func (f *faulty) Create(ctx context.Context, name string, data []byte) error {
	return f.runOp(func() error { return f.Full.Create(ctx, name, data) })
}

// List may be called for a part of the store without chunks of the image. Its failure need not affect
// the job.
func (f *faulty) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	before, reached := ctx.Err(), f.reached()
	err := f.runOp(func() error { return nil })
	if before == nil && ctx.Err() != nil || before != nil && !reached && f.reached() { // it may go on when the job is done
		f.unheeded.Store(true)
	}
	if err == nil {
		return f.Full.List(ctx, prefix)
	}
	return func(yield func(store.Object, error) bool) { yield(store.Object{}, err) }
}

// batching is faulty with the batches of another bucket. Without one, its batches are lost unless
// Commit returns.
type batching struct {
	*faulty
	inner store.Batcher // may be nil
}

func (b batching) NewBatch() (store.Batch, error) {
	if b.inner == nil {
		return &batch{Batch: &staged{bucket: b.Full}, bucket: b.faulty}, nil
	}
	inner, err := b.inner.NewBatch()
	return &batch{inner, b.faulty}, err
}

type batch struct {
	store.Batch
	bucket *faulty
}

func (b *batch) Write(ctx context.Context, name string, data []byte) error {
	return b.bucket.runOp(func() error { return b.Batch.Write(ctx, name, data) })
}

func (b *batch) Commit(ctx context.Context) error {
	return b.bucket.runOp(func() error { return b.Batch.Commit(ctx) })
}

// staged is a batch in memory.
type staged struct {
	bucket  store.Bucket
	mu      sync.Mutex
	objects map[string][]byte
}

func (s *staged) Write(_ context.Context, name string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects == nil {
		s.objects = map[string][]byte{}
	}
	s.objects[name] = bytes.Clone(data)
	return nil
}

func (s *staged) Commit(ctx context.Context) error {
	for name, data := range s.objects {
		if err := s.bucket.Write(ctx, name, data); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (s *staged) Close() error { return nil }

// full is a local bucket with stubs for the operations that no test here needs.
type full struct{ *local.Bucket }

func (full) Remove(context.Context, string) error { return errors.ErrUnsupported }

// TestIndexLast fails each operation of a publication in turn, in each way. A visible index must always
// be complete: the old one or the new one. Success means the new one. A second publication must
// succeed.
func TestIndexLast(t *testing.T) {
	for _, where := range []string{"memory", "server", "directory"} {
		for _, how := range []string{ends, fails, loses, cancels} {
			if where == "directory" && how != ends { // each run flushes a file system
				continue
			}
			for _, c := range []struct {
				name          string
				base, creates bool
			}{{name: "x.caibx"}, {name: "y.caibx", creates: true}, {name: "y.caibx", base: true}} {
				t.Run(fmt.Sprint(where, " ", how, " ", c), func(t *testing.T) {
					for at := int64(1); failAt(t, where, &faulty{at: at, how: how}, c.name, c.base, c.creates); at++ {
					}
				})
			}
		}
	}
}

// failAt publishes with one failure into a store that holds x.caibx. It reports whether that operation
// occurred.
func failAt(t *testing.T, where string, f *faulty, name string, based, creates bool) bool {
	t.Helper()
	o := release.PublisherOptions{Writer: store.WriterOptions{Compression: store.None}}
	var b store.Bucket = f
	switch where {
	case "memory":
		f.Full, b = new(mem.Bucket), batching{f, nil}
	case "directory":
		dir, err := local.Open(t.TempDir(), local.Options{})
		if err != nil {
			t.Fatal(err)
		}
		f.Full, b = full{dir}, batching{f, dir}
	case "server":
		f.Full, o.Remote, o.Writer.Uploads = new(mem.Bucket), true, 3
	}
	old, next := releases()
	base := mustPublish(t, old, f.Full, "x.caibx", o)
	if based {
		o.Bases = []release.Base{{At: locate.Path("x"), Index: base}}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f.cancel = cancel
	x, err := publish(ctx, next, b, name, o, creates)
	if f.how == cancels && f.reached() && err == nil && !f.unheeded.Load() {
		t.Errorf("cancelled during operation %d: no error", f.at)
	}
	got := published(t, f.Full, name)
	switch {
	case err == nil && (got == nil || got.Digest() != x.Digest()):
		t.Errorf("fault at operation %d: Publish succeeds, and the index is not there", f.at)
	case got != nil && (x == nil || got.Digest() != x.Digest()) && got.Digest() != base.Digest():
		t.Errorf("fault at operation %d leaves a third index", f.at)
	}
	again, err := publish(t.Context(), next, f.Full, name, o, creates)
	if exists := errors.Is(err, store.ErrExists); exists != (creates && got != nil) || err != nil && !exists {
		t.Errorf("fault at operation %d: publishing again = %v", f.at, err)
	}
	if last := published(t, f.Full, name); err == nil && last.Digest() != again.Digest() {
		t.Errorf("fault at operation %d: publishing again gives another index", f.at)
	}
	return f.reached()
}

// TestCopiedIndexLast is TestIndexLast for an index that is copied with its chunks.
func TestCopiedIndexLast(t *testing.T) {
	_, image := releases()
	from := new(mem.Bucket)
	x := mustPublish(t, image, from, "x.caibx", release.PublisherOptions{})
	for _, how := range []string{ends, fails, loses, cancels} {
		for at := int64(1); ; at++ {
			f := &faulty{Full: new(mem.Bucket), at: at, how: how}
			ctx, cancel := context.WithCancel(t.Context())
			f.cancel = cancel
			err := copyRelease(ctx, from, f, x)
			cancel()
			got := published(t, f.Full, "x.caibx")
			if err == nil && got == nil || err == nil && how == cancels && f.reached() {
				t.Errorf("%s at operation %d: no error, and the index is %v", how, at, got)
			}
			if !f.reached() {
				break
			}
		}
	}
}

func copyRelease(ctx context.Context, from store.Reader, to store.Bucket, x *blob.Index) error {
	outlet, err := release.OutletIn(ctx, to, locate.Location{}, "x.caibx", release.OutletOptions{})
	if err != nil {
		return err
	}
	o := keep.CopyOptions{Indexes: []*blob.Index{x}, Workers: 2, Writer: store.WriterOptions{Uploads: 3}}
	report, err := keep.Copy(ctx, from, to, o)
	if err != nil || !report.Whole[0] {
		return errors.Join(err, errors.New("it is not whole"))
	}
	return outlet.Publish(ctx, x)
}

// noted collects notes.
func noted(notes *[]release.Note) func(release.Note) {
	return func(n release.Note) { *notes = append(*notes, n) }
}

// TestBases: the chunks of a base are not asked for. A base that the store lacks, or that has other
// chunk sizes, is left out with a note. A base with other digests is an error.
func TestBases(t *testing.T) {
	old, next := releases()
	r := &storetest.Remote{Full: new(mem.Bucket)}
	x := mustPublish(t, old, r.Full, "x.caibx", release.PublisherOptions{})
	base := release.Base{At: locate.Path("x.caibx"), Index: x}
	mustPublish(t, next, r, "y.caibx", release.PublisherOptions{Remote: true, Bases: []release.Base{base}})
	if got := r.Counts(); got.Lists > 0 || got.Heads > 5 || got.Puts != 2+1 {
		t.Errorf("with a base the store is asked %+v for 2 new chunks and an index", got)
	}

	var notes []release.Note
	o := release.PublisherOptions{Bases: []release.Base{base}, Notes: noted(&notes)}
	empty := new(mem.Bucket)
	mustPublish(t, next, empty, "y.caibx", o)
	published(t, empty, "y.caibx")
	if len(notes) != 1 || !errors.Is(notes[0].(release.BaseLeftOut).Err, store.ErrNotFound) {
		t.Errorf("notes of a base that the store lacks: %v", notes)
	}
	notes = nil
	o.Bases[0].Index = newIndex(t, 1)
	if _, err := release.NewPublisher(t.Context(), empty, o); err == nil {
		t.Error("a base with other digests is taken")
	}
	o.Algorithm = blob.SHA256
	p, err := release.NewPublisher(t.Context(), empty, o)
	if err != nil || len(notes) != 1 || notes[0].(release.BaseLeftOut).Err != nil {
		t.Fatalf("a base with other chunk sizes: %v, notes %v", err, notes)
	}
	p.Close()

	denied := storetest.Faulty(r.Full, storetest.Always, storetest.Fails(store.ErrDenied))
	o = release.PublisherOptions{Params: blob.Params(sizes), Bases: []release.Base{base}}
	if _, err := release.NewPublisher(t.Context(), statless{r.Full, denied}, o); !errors.Is(err, store.ErrDenied) {
		t.Errorf("a base that cannot be asked for = %v, want %v", err, store.ErrDenied)
	}
}

// statless is a bucket that answers Stat by a read from reads.
type statless struct {
	store.Bucket
	reads store.Reader
}

func (s statless) Stat(ctx context.Context, name string) (int64, error) {
	data, err := s.reads.Read(ctx, name, nil, 1<<20)
	return int64(len(data)), err
}

// TestVanished: an index is not published if chunks that the store presumably held were removed during
// the work.
func TestVanished(t *testing.T) {
	old, next := releases()
	for _, listed := range []bool{true, false} {
		b := new(mem.Bucket)
		x := mustPublish(t, old, b, "x.caibx", release.PublisherOptions{})
		o := release.PublisherOptions{Params: blob.Params(sizes), Remote: listed}
		if !listed {
			o.Bases = []release.Base{{At: locate.Path("x"), Index: x}}
		}
		p, err := release.NewPublisher(t.Context(), b, o)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		src := chunker.FromReaderAt(bytes.NewReader(next), int64(len(next)))
		y, _, err := ingest.Image(t.Context(), src, p, ingest.Options{Params: sizes})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range x.All() {
			if err := b.Remove(t.Context(), store.ObjectName(c.Digest, true)); err != nil {
				t.Fatal(err)
			}
		}
		outlet, err := release.OutletIn(t.Context(), b, locate.Location{}, "y.caibx", release.OutletOptions{})
		if err != nil {
			t.Fatal(err)
		}
		err = p.Publish(t.Context(), outlet, y)
		if _, vanished := errors.AsType[*release.VanishedError](err); !vanished || !errors.Is(err, store.ErrNotFound) {
			t.Errorf("listed %v: Publish = %v, want a VanishedError", listed, err)
		}
		if published(t, b, "y.caibx") != nil {
			t.Error("it is published all the same")
		}
	}
}

// TestUnlisted: a store that cannot be listed is asked for each chunk, with one note.
func TestUnlisted(t *testing.T) {
	_, next := releases()
	var notes []release.Note
	b := &faulty{Full: new(mem.Bucket)}
	o := release.PublisherOptions{Remote: true, Notes: noted(&notes)}
	mustPublish(t, next, unlistable{b}, "x.caibx", o)
	if published(t, b, "x.caibx"); len(notes) != 1 || !errors.Is(notes[0].(release.NotListed).Err, errFault) {
		t.Errorf("notes = %v", notes)
	}
}

type unlistable struct{ *faulty }

func (unlistable) List(context.Context, string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) { yield(store.Object{}, errFault) }
}
