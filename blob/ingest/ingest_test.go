package ingest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/blockdev"
	"cairn/internal/test/mem"
	"cairn/internal/test/need"
	"cairn/seed"
	"cairn/store"
	"cairn/store/local"
	"cairn/store/storetest"
	"cairn/testimages"
)

// image is two segments long. It has a run of zeros, a repeat of an earlier part, and zeros at its end.
func image() []byte {
	first := testimages.Random(1, 4<<20)
	parts := [][]byte{first, make([]byte, 3<<20), first, testimages.Random(2, 1<<19), make([]byte, 300_001)}
	return bytes.Join(parts, nil)
}

// fixed sizes are the fastest to cut.
var fixed = chunker.Params{Min: 64 << 10, Avg: 64 << 10, Max: 64 << 10}

func source(image []byte) *chunker.Source {
	return chunker.FromReaderAt(bytes.NewReader(image), int64(len(image)))
}

func newWriter(t testing.TB, b store.Bucket, o store.WriterOptions) *store.Writer {
	t.Helper()
	w, err := store.NewWriter(b, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Errorf("closing the writer: %v", err)
		}
	})
	return w
}

func mustBuild(t testing.TB, src *chunker.Source, dst Store, o Options) (*blob.Index, Stats) {
	t.Helper()
	x, stats, err := Image(t.Context(), src, dst, o)
	if err != nil {
		t.Fatal(err)
	}
	return x, stats
}

// checkStored checks that the index's chunks, read from the bucket, are the image.
func checkStored(t testing.TB, x *blob.Index, b store.Reader, image []byte) {
	t.Helper()
	if x.Size() != int64(len(image)) {
		t.Fatalf("index of %d bytes, want %d", x.Size(), len(image))
	}
	chunks, buf := store.NewChunks(b, x.Algorithm()), make([]byte, x.Params().Max)
	for i, c := range x.All() {
		if err := store.GetOne(t.Context(), chunks, c.Digest, buf[:c.Size]); err != nil {
			t.Fatalf("chunk %d: %v", i, err)
		}
		if !bytes.Equal(buf[:c.Size], image[c.Offset:c.End()]) {
			t.Fatalf("chunk %d at %d is not what the image has there", i, c.Offset)
		}
	}
}

// statsOfNew returns the stats of an ingest of x into the bucket if it was empty before.
func statsOfNew(t testing.TB, x *blob.Index, b store.Reader) Stats {
	t.Helper()
	s := Stats{Stats: scan.Stats{Size: x.Size(), Chunks: x.Len()}}
	table, chunks := blob.NewTable(x), store.NewChunks(b, x.Algorithm())
	for i, c := range x.All() {
		if c.Size == x.Params().Max && x.IsZero(i) {
			s.Zeros += c.Size
		}
		if table.Find(c.Digest) != i {
			continue
		}
		stored, err := chunks.Stat(t.Context(), c.Digest)
		if err != nil {
			t.Fatal(err)
		}
		s.Distinct++
		s.New++
		s.NewBytes += c.Size
		s.Stored += stored
	}
	return s
}

func TestImage(t *testing.T) {
	image := image()
	reader := func() *chunker.Source { return chunker.FromReader(bytes.NewReader(image)) }
	readerAt := func() *chunker.Source { return source(image) }
	for _, c := range []struct {
		name    string
		source  func() *chunker.Source
		options Options
		writer  store.WriterOptions
	}{
		{"as casync does", readerAt, Options{Params: chunker.Default, Workers: 3}, store.WriterOptions{}},
		{"one worker, stream", reader, Options{Params: chunker.Default}, store.WriterOptions{}},
		{"plain, SHA-256, fixed size", readerAt,
			Options{Params: fixed, Algorithm: blob.SHA256, Workers: 2},
			store.WriterOptions{Compression: store.None}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := &mem.Bucket{}
			x, stats := mustBuild(t, c.source(), newWriter(t, b, c.writer), c.options)
			checkStored(t, x, b, image)
			if diff := cmp.Diff(statsOfNew(t, x, b), stats); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
			again, stats := mustBuild(t, c.source(), newWriter(t, b, c.writer), c.options)
			if again.Digest() != x.Digest() || stats.New != 0 || stats.NewBytes != 0 || stats.Stored != 0 {
				t.Errorf("building again gives %v, %+v, want %v, nothing new", again.Digest(), stats, x.Digest())
			}
		})
	}
}

func TestSmallImages(t *testing.T) {
	for _, n := range []int{0, 1, 16 << 10, 256<<10 + 1} {
		b, image := &mem.Bucket{}, testimages.Random(3, n)
		w := newWriter(t, b, store.WriterOptions{})
		x, _ := mustBuild(t, source(image), w, Options{Params: chunker.Default})
		checkStored(t, x, b, image)
	}
}

// TestHoles: a file with holes, one of them at its start, gives the index of its bytes. Zero chunks are
// stored too.
func TestHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	image := make([]byte, 21<<20+777)
	for _, off := range []int{3 << 20, 13<<20 + 5, 17 << 20} {
		data := testimages.Random(uint64(off), 400_000)
		copy(image[off:], data)
		if _, err := f.WriteAt(data, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(len(image))); err != nil {
		t.Fatal(err)
	}
	sparse, err := blockdev.OpenRead(path, blockdev.Section{})
	if err != nil {
		t.Fatal(err)
	}
	defer sparse.Close()
	b, o := &mem.Bucket{}, Options{Params: chunker.Default, Workers: 2}
	src := chunker.FromReaderAt(sparse, int64(len(image)))
	x, stats := mustBuild(t, src, newWriter(t, b, store.WriterOptions{}), o)
	checkStored(t, x, b, image)
	want, wantStats := mustBuild(t, source(image), newWriter(t, &mem.Bucket{}, store.WriterOptions{}), o)
	if x.Digest() != want.Digest() {
		t.Errorf("a file with holes gives index %v, its bytes give %v", x.Digest(), want.Digest())
	}
	if diff := cmp.Diff(wantStats, stats); diff != "" {
		t.Errorf("stats (-bytes +holes):\n%s", diff)
	}
}

// recorder is a store that counts its calls, and calls a hook before it answers.
type recorder struct {
	hook func(ctx context.Context, op string, n int) error // n counts the calls of op from 1; may be nil

	mu       sync.Mutex // guards the fields below
	calls    map[string]int
	puts     map[blob.Digest]int
	inFlight int  // puts in flight
	early    bool // Commit was called during a Put, or another call followed it
}

func newRecorder(hook func(ctx context.Context, op string, n int) error) *recorder {
	return &recorder{hook: hook, calls: map[string]int{}, puts: map[blob.Digest]int{}}
}

func (r *recorder) recordCall(ctx context.Context, op string) error {
	r.mu.Lock()
	r.calls[op]++
	n := r.calls[op]
	r.early = r.early || op == "commit" && r.inFlight > 0 || op != "commit" && r.calls["commit"] > 0
	r.mu.Unlock()
	if r.hook == nil {
		return nil
	}
	return r.hook(ctx, op, n)
}

func (r *recorder) Has(ctx context.Context, _ blob.Digest) (bool, error) {
	return false, r.recordCall(ctx, "has")
}

func (r *recorder) Put(ctx context.Context, d blob.Digest, data []byte) (int64, error) {
	r.addInFlight(+1)
	defer r.addInFlight(-1)
	r.mu.Lock()
	r.puts[d]++
	r.mu.Unlock()
	return int64(len(data)), r.recordCall(ctx, "put")
}

func (r *recorder) Commit(ctx context.Context) error { return r.recordCall(ctx, "commit") }

func (r *recorder) addInFlight(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inFlight += n
}

// TestDurableOrder: every distinct chunk is put once, and one Commit follows all puts.
func TestDurableOrder(t *testing.T) {
	for _, atOnce := range []int{0, 8} {
		checkDurableOrder(t, Options{Params: fixed, Workers: 4, AtOnce: atOnce})
	}
}

func checkDurableOrder(t *testing.T, o Options) {
	t.Helper()
	r := newRecorder(nil)
	x, _ := mustBuild(t, source(image()), r, o)
	if len(r.puts) >= x.Len() {
		t.Errorf("%d chunks, %d of them different; the image should have repeats", x.Len(), len(r.puts))
	}
	for i, c := range x.All() {
		if r.puts[c.Digest] != 1 {
			t.Errorf("chunk %d was put %d times, want once", i, r.puts[c.Digest])
		}
	}
	if r.calls["commit"] != 1 || r.early {
		t.Errorf("%d commits, early: %v; want one, after all puts", r.calls["commit"], r.early)
	}
	if r.calls["has"] != len(r.puts) || r.calls["put"] != len(r.puts) {
		t.Errorf("%d chunks were asked for, %d put, want %d", r.calls["has"], r.calls["put"], len(r.puts))
	}
}

// TestStoreFails: if any call of the store fails, the ingest fails and commits nothing.
func TestStoreFails(t *testing.T) {
	full, image := errors.New("no space left"), image()
	for _, c := range []struct {
		op     string
		at     int
		atOnce int
	}{
		{"has", 1, 0}, {"has", 40, 0}, {"put", 1, 0}, {"put", 40, 0}, {"commit", 1, 0},
		{"has", 1, 8}, {"has", 40, 8}, {"put", 1, 8}, {"put", 40, 8}, {"commit", 1, 8},
	} {
		r := newRecorder(func(_ context.Context, op string, n int) error {
			if op == c.op && n == c.at {
				return full
			}
			return nil
		})
		x, stats, err := Image(t.Context(), source(image), r, Options{Params: fixed, Workers: 3, AtOnce: c.atOnce})
		if !errors.Is(err, full) || x != nil || stats != (Stats{}) {
			t.Errorf("%s %d failed: Image = %v, %+v, %v, want nothing, %v", c.op, c.at, x, stats, err, full)
		}
		if commits := r.calls["commit"]; c.op != "commit" && commits != 0 {
			t.Errorf("%s %d failed, and %d commits follow", c.op, c.at, commits)
		}
	}
}

// TestAgainAfterFailure: a second ingest adds the chunks that a failed one did not store.
func TestAgainAfterFailure(t *testing.T) {
	image, b, o := image(), &mem.Bucket{}, Options{Params: fixed, Workers: 2}
	w := newWriter(t, storetest.FaultyWrites(b, storetest.After(20), store.ErrUnavailable), store.WriterOptions{})
	if x, _, err := Image(t.Context(), source(image), w, o); !errors.Is(err, store.ErrUnavailable) || x != nil {
		t.Errorf("Image = %v, %v, want nil, %v", x, err, store.ErrUnavailable)
	}
	x, stats := mustBuild(t, source(image), newWriter(t, b, store.WriterOptions{}), o)
	checkStored(t, x, b, image)
	if want := int64(stats.Distinct - 20); stats.New != want {
		t.Errorf("%d chunks are new the second time, want %d", stats.New, want)
	}
}

// TestCancelled: a cancelled ingest returns an error at any point, even if the store ignores the
// cancellation.
func TestCancelled(t *testing.T) {
	image := image()
	for _, c := range []struct {
		op     string
		at     int
		atOnce int
	}{
		{"has", 1, 0}, {"has", 40, 0}, {"put", 1, 0}, {"put", 40, 0}, {"commit", 1, 0}, {"progress", 1, 0},
		{"progress", 2, 0}, {"read", 2, 0},
		{"has", 1, 8}, {"has", 40, 8}, {"put", 1, 8}, {"put", 40, 8}, {"commit", 1, 8}, {"progress", 1, 8}, {"read", 2, 8},
	} {
		t.Run(fmt.Sprint(c.op, " ", c.at, " ", c.atOnce), func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stop := func(_ context.Context, op string, n int) error {
				if op == c.op && n == c.at {
					cancel()
				}
				return nil
			}
			r := newRecorder(stop)
			told := 0
			o := Options{Params: fixed, Workers: 2, AtOnce: c.atOnce, Progress: func(Stats) {
				told++
				stop(ctx, "progress", told)
			}}
			reads := &countedReader{r: bytes.NewReader(image), read: func(n int) { stop(ctx, "read", n) }}
			_, _, err := Image(ctx, chunker.FromReader(reads), r, o)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Image = %v, want %v", err, context.Canceled)
			}
			if c.op != "commit" && r.calls["commit"] != 0 {
				t.Error("it commits what it gave up")
			}
		})
	}
}

// countedReader calls a function with the number of each read.
type countedReader struct {
	r    io.Reader
	read func(n int)
	n    int
}

func (c *countedReader) Read(p []byte) (int, error) {
	c.n++
	c.read(c.n)
	return c.r.Read(p)
}

// TestSourceFails: an image that cannot be read to its end gives no index, and nothing is committed.
func TestSourceFails(t *testing.T) {
	image, broken := image(), errors.New("input/output error")
	for name, src := range map[string]*chunker.Source{
		"read error": chunker.FromReader(io.MultiReader(bytes.NewReader(image[:9<<20]), iotest.ErrReader(broken))),
		"it shrank":  chunker.FromReaderAt(bytes.NewReader(image[:9<<20]), int64(len(image))),
	} {
		r := newRecorder(nil)
		x, _, err := Image(t.Context(), src, r, Options{Params: fixed, Workers: 2})
		if err == nil || x != nil || r.calls["commit"] != 0 {
			t.Errorf("%s: Image = %v, %v with %d commits, want nil, an error, none", name, x, err, r.calls["commit"])
		}
		if name == "read error" && !errors.Is(err, broken) {
			t.Errorf("%s: Image = %v, want %v", name, err, broken)
		}
	}
}

func TestRefusesParams(t *testing.T) {
	r := newRecorder(nil)
	for _, p := range []chunker.Params{
		{}, {Min: 1, Avg: 1, Max: 47}, {Min: 2, Avg: 1, Max: 3}, {Min: 1, Avg: 1 << 24, Max: 1 << 27},
	} {
		if _, _, err := Image(t.Context(), source(nil), r, Options{Params: p}); err == nil || r.calls["commit"] != 0 {
			t.Errorf("Image with chunk sizes %v = %v, want an error", p, err)
		}
	}
}

// TestProgress: the reported counts never decrease, never exceed the final ones, and are never reported
// concurrently.
func TestProgress(t *testing.T) {
	var telling sync.Mutex
	var told []Stats
	o := Options{Params: fixed, Workers: 4, Progress: func(s Stats) {
		if !telling.TryLock() {
			t.Error("Progress is called twice at once")
			return
		}
		defer telling.Unlock()
		told = append(told, s)
	}}
	_, end := mustBuild(t, source(image()), newWriter(t, &mem.Bucket{}, store.WriterOptions{}), o)
	if len(told) == 0 {
		t.Fatal("Progress was never called")
	}
	var last Stats
	for i, s := range append(told, end) {
		if s.Size < last.Size || s.Chunks < last.Chunks || s.Distinct < last.Distinct || s.Zeros < last.Zeros ||
			s.New < last.New || s.NewBytes < last.NewBytes || s.Stored < last.Stored {
			t.Errorf("progress %d is %+v after %+v", i, s, last)
		}
		last = s
	}
}

// TestCasync: casync makes the same index, and casync and desync read the store.
func TestCasync(t *testing.T) {
	casync, desync := need.Tool(t, "casync"), need.Tool(t, "desync")
	dir, image := t.TempDir(), image()
	path := func(name string) string { return filepath.Join(dir, name) }
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	b, err := local.Create(path("ours.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, b, store.WriterOptions{})
	x, _ := mustBuild(t, source(image), w, Options{Params: chunker.Default, Workers: 2})
	mustWrite(t, path("ours.caibx"), x.Encode())
	mustWrite(t, path("image"), image)

	run(casync, "make", "--store="+path("theirs.castr"), path("theirs.caibx"), path("image"))
	if theirs := mustRead(t, path("theirs.caibx")); !bytes.Equal(theirs, x.Encode()) {
		t.Error("casync makes another index of the image")
	}
	run(casync, "extract", "--store="+path("ours.castr"), path("ours.caibx"), path("by-casync"))
	run(desync, "extract", "--store", path("ours.castr"), path("ours.caibx"), path("by-desync"))
	for _, name := range []string{"by-casync", "by-desync"} {
		if !bytes.Equal(mustRead(t, path(name)), image) {
			t.Errorf("%s extracted something else", name)
		}
	}
	// Our store lacks nothing that casync's own has: an ingest into theirs finds every chunk.
	theirs, err := local.Open(path("theirs.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w = newWriter(t, theirs, store.WriterOptions{})
	_, stats := mustBuild(t, source(image), w, Options{Params: chunker.Default})
	if stats.New != 0 {
		t.Errorf("%d chunks are new to casync's store, want none", stats.New)
	}
}

func mustWrite(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// FuzzRoundTrip: any image with any parameters is the same after an ingest and an assembly.
func FuzzRoundTrip(f *testing.F) {
	f.Add(uint64(1), uint32(200_000), uint16(1000), false)
	f.Add(uint64(2), uint32(0), uint16(0), true)
	f.Add(uint64(3), uint32(131_073), uint16(48), true)
	f.Fuzz(func(t *testing.T, number uint64, size uint32, least uint16, plain bool) {
		image := lumpy(number, int(size%400_000))
		low := 48 + int64(least)
		o := Options{Params: chunker.Params{Min: low, Avg: 2 * low, Max: 8 * low}, Workers: 1 + int(number%3)}
		b, wo := &mem.Bucket{}, store.WriterOptions{Level: 1}
		if plain {
			o.Algorithm, wo.Compression = blob.SHA256, store.None
		}
		built, _ := mustBuild(t, source(image), newWriter(t, b, wo), o)
		x, err := blob.Decode(bytes.NewReader(built.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		target := make(memory, len(image))
		chunks := store.NewChunks(b, x.Algorithm())
		_, err = assemble.Run(t.Context(), seed.NewPlan(x), chunks, target, assemble.Options{New: true})
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(target) != sha256.Sum256(image) {
			t.Errorf("image %d of %d bytes comes back as something else", number, len(image))
		}
	})
}

// lumpy returns size random bytes with runs of zeros and repeats.
func lumpy(number uint64, size int) []byte {
	rng, random := rand.New(rand.NewPCG(number, 1)), testimages.Random(number, size)
	p := make([]byte, 0, size)
	for len(p) < size {
		run := min(1+rng.IntN(50_000), size-len(p))
		switch rng.IntN(4) {
		case 0:
			p = append(p, make([]byte, run)...)
		case 1:
			p = append(p, p[max(0, len(p)-run):]...)
		default:
			p = append(p, random[len(p):][:run]...)
		}
	}
	return p[:size]
}

// memory is a target in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error)  { return bytes.NewReader(m).ReadAt(p, off) }
func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (m memory) Zero(off, n int64) error                  { clear(m[off:][:n]); return nil }
func (m memory) Sync() error                              { return nil }
