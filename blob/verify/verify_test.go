package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"cairn/blob"
	"cairn/blob/ingest"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/testimages"
)

// params make chunks of one size, so that tests know which chunk a byte is in.
var params = chunker.Params{Min: chunkSize, Avg: chunkSize, Max: chunkSize}

const chunkSize = 64 << 10

// image takes several reads, and ends within a chunk.
func image() []byte { return testimages.Random(1, 9<<20+777) }

func index(t testing.TB, image []byte) *blob.Index {
	t.Helper()
	x, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), scan.Options{Params: params})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// flipped returns the image with the byte at each offset changed.
func flipped(image []byte, offsets ...int) []byte {
	p := bytes.Clone(image)
	for _, off := range offsets {
		p[off] ^= 1
	}
	return p
}

// chunkRange returns the range of n chunks from chunk i on.
func chunkRange(i, n int64) Range { return Range{i * chunkSize, n * chunkSize} }

func TestImage(t *testing.T) {
	image := image()
	x, size := index(t, image), int64(len(image))
	report := func(bad int, badBytes int64, first ...Range) Report {
		return Report{Size: size, Done: size, Bad: bad, BadBytes: badBytes, First: first}
	}
	var every []int // one byte in every second chunk
	var firstTen []Range
	for i := 0; i < len(image); i += 2 * chunkSize {
		every = append(every, i)
		if len(firstTen) < maxNamed {
			firstTen = append(firstTen, chunkRange(int64(i/chunkSize), 1))
		}
	}
	for _, c := range []struct {
		name string
		held []byte
		want Report
	}{
		{"right", image, report(0, 0)},
		{"longer", append(bytes.Clone(image), 1, 2, 3), report(0, 0)},
		{"one byte", flipped(image, chunkSize), report(1, chunkSize, chunkRange(1, 1))},
		{"two in a chunk", flipped(image, 5*chunkSize, 6*chunkSize-1), report(1, chunkSize, chunkRange(5, 1))},
		{"neighbours, also of two reads", flipped(image, 63*chunkSize, 64*chunkSize, 65*chunkSize, 3),
			report(4, 4*chunkSize, chunkRange(0, 1), chunkRange(63, 3))},
		{"the last byte", flipped(image, len(image)-1), report(1, 777, Range{size - 777, 777})},
		{"more than are named", flipped(image, every...),
			report(len(every), int64(len(every)-1)*chunkSize+777, firstTen...)},
		{"nothing right", make([]byte, size), report(x.Len(), size, Range{0, size})},
	} {
		for _, workers := range []int{0, 1, 4} {
			t.Run(fmt.Sprintf("%s/%d", c.name, workers), func(t *testing.T) {
				got, err := Image(t.Context(), x, bytes.NewReader(c.held), Options{Workers: workers})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("report (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func TestEmptyImage(t *testing.T) {
	x := index(t, nil)
	for name, verify := range map[string]func(context.Context) (Report, error){
		"image": func(ctx context.Context) (Report, error) { return Image(ctx, x, bytes.NewReader(nil), Options{}) },
		"store": func(ctx context.Context) (Report, error) { return Store(ctx, x, &chunks{}, Options{}) },
	} {
		if got, err := verify(t.Context()); err != nil || !cmp.Equal(got, Report{}) {
			t.Errorf("%s: %+v, %v, want nothing", name, got, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := verify(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled: %v, want %v", name, err, context.Canceled)
		}
	}
}

// TestRanges: the first ranges do not depend on the order in which wrong chunks are found.
func TestRanges(t *testing.T) {
	x := index(t, testimages.Random(2, 64*chunkSize))
	bad := []int{1, 2, 3, 8, 10, 12, 14, 16, 18, 20, 22, 24, 25, 27, 40}
	want := []Range{chunkRange(1, 3)}
	for i := int64(8); i < 26; i += 2 {
		want = append(want, chunkRange(i, 1))
	}
	want[maxNamed-1].Size += chunkSize // chunk 25
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		j := &job{index: x}
		for _, i := range rng.Perm(len(bad)) {
			j.recordBad(bad[i], nil)
		}
		if diff := cmp.Diff(want, j.badRanges()); diff != "" {
			t.Fatalf("ranges (-want +got):\n%s", diff)
		}
	}
}

// TestImageFails: an image that cannot be read to the index's end is an error, not a report of wrong
// chunks.
func TestImageFails(t *testing.T) {
	image, broken := image(), errors.New("input/output error")
	x := index(t, image)
	for _, c := range []struct {
		name string
		held io.ReaderAt
		want string
	}{
		{"short", bytes.NewReader(image[:5<<20+1]),
			fmt.Sprintf("it ends at %d, the image has %d bytes", 5<<20+1, len(image))},
		{"empty", bytes.NewReader(nil), fmt.Sprintf("it ends at 0, the image has %d bytes", len(image))},
		{"unreadable", failingAt{bytes.NewReader(image), 6 << 20, broken},
			fmt.Sprintf("reading at %d: %v", 6<<20, broken)},
	} {
		for _, workers := range []int{1, 4} {
			got, err := Image(t.Context(), x, c.held, Options{Workers: workers})
			if err == nil || workers == 1 && err.Error() != c.want {
				t.Errorf("%s: Image = %v, want %s", c.name, err, c.want)
			}
			if got.Done == got.Size || got.Bad != 0 {
				t.Errorf("%s: report %+v claims to be complete, or has bad chunks", c.name, got)
			}
		}
	}
	_, err := Image(t.Context(), x, failingAt{bytes.NewReader(image), 0, broken}, Options{})
	if !errors.Is(err, broken) {
		t.Errorf("Image = %v, want it to wrap %v", err, broken)
	}
}

// failingAt fails to read the byte at an offset.
type failingAt struct {
	io.ReaderAt
	bad int64
	err error
}

func (f failingAt) ReadAt(p []byte, off int64) (int, error) {
	if off <= f.bad && f.bad < off+int64(len(p)) {
		n, _ := f.ReaderAt.ReadAt(p[:f.bad-off], off)
		return n, f.err
	}
	return f.ReaderAt.ReadAt(p, off)
}

// chunks is a store that counts requests, and fails on demand.
type chunks struct {
	data map[blob.Digest][]byte

	mu   sync.Mutex // guards the fields below
	gets map[blob.Digest]int
	fail map[blob.Digest]error
}

func newChunks(x *blob.Index, image []byte) *chunks {
	c := &chunks{data: map[blob.Digest][]byte{}, gets: map[blob.Digest]int{}, fail: map[blob.Digest]error{}}
	for _, chunk := range x.All() {
		c.data[chunk.Digest] = image[chunk.Offset:chunk.End()]
	}
	return c
}

// Get implements store.Getter.
func (c *chunks) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	storetest.GetterFunc(c.get).Get(ctx, wants, done)
}

func (c *chunks) get(ctx context.Context, d blob.Digest, dst []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gets[d]++
	if err := c.fail[d]; err != nil {
		return err
	}
	data, ok := c.data[d]
	if !ok {
		return store.ErrNotFound
	}
	if len(data) != len(dst) {
		return &store.CorruptError{Name: d.String(), Err: errors.New("another size")}
	}
	copy(dst, data)
	return ctx.Err()
}

// TestStore: absent and corrupt chunks are reported, with their causes.
func TestStore(t *testing.T) {
	image := image()
	x, size := index(t, image), int64(len(image))
	absent := fmt.Errorf("chunk: %w", store.ErrNotFound)
	corrupt := &store.CorruptError{Name: "chunk", Err: errors.New("other bytes")}
	for _, c := range []struct {
		name string
		fail map[int]error
		want Report
	}{
		{"whole", nil, Report{}},
		{"absent", map[int]error{3: absent}, Report{Bad: 1, BadBytes: chunkSize, First: []Range{chunkRange(3, 1)},
			Causes: []error{absent}}},
		{"corrupt", map[int]error{7: corrupt, 8: corrupt}, Report{Bad: 2, BadBytes: 2 * chunkSize,
			First: []Range{chunkRange(7, 2)}, Causes: []error{corrupt, corrupt}}},
		{"both", map[int]error{x.Len() - 1: absent, 0: corrupt}, Report{Bad: 2, BadBytes: chunkSize + 777,
			First: []Range{chunkRange(0, 1), {size - 777, 777}}, Causes: []error{corrupt, absent}}},
	} {
		for _, workers := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s/%d", c.name, workers), func(t *testing.T) {
				from := newChunks(x, image)
				for i, err := range c.fail {
					from.fail[x.At(i).Digest] = err
				}
				got, err := Store(t.Context(), x, from, Options{Workers: workers})
				if err != nil {
					t.Fatal(err)
				}
				c.want.Size, c.want.Done = size, size
				sorted := cmpopts.SortSlices(func(a, b error) bool { return a.Error() < b.Error() })
				if diff := cmp.Diff(c.want, got, cmpopts.EquateErrors(), sorted); diff != "" {
					t.Errorf("report (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestStoreCauses: a report has at most maxNamed causes.
func TestStoreCauses(t *testing.T) {
	x := index(t, image())
	got, err := Store(t.Context(), x, &chunks{gets: map[blob.Digest]int{}}, Options{Workers: 4})
	if err != nil || got.Bad != x.Len() || len(got.Causes) != maxNamed || !cmp.Equal(got.First, []Range{{0, x.Size()}}) {
		t.Errorf("report on an empty store: %+v, %v", got, err)
	}
}

// TestStoreOverBucket: chunks in a bucket are missing, corrupt, or the bucket fails.
func TestStoreOverBucket(t *testing.T) {
	image, b := testimages.Random(3, 1<<20), &mem.Bucket{}
	w, err := store.NewWriter(b, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	x, _, err := ingest.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), w, ingest.Options{Params: params})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		when  storetest.When
		fault storetest.Fault
		bad   int
		want  error
	}{
		{"whole", storetest.Nth(0), storetest.FlipsBit, 0, nil},
		{"flips every bit", storetest.Always, storetest.FlipsBit, x.Len(), nil},
		{"truncates", storetest.Always, storetest.Truncates(1), x.Len(), nil},
		{"other objects", storetest.Always, storetest.Answers([]byte("<html>")), x.Len(), nil},
		{"has none", storetest.Always, storetest.Fails(store.ErrNotFound), x.Len(), nil},
		{"denied", storetest.Nth(5), storetest.Fails(store.ErrDenied), 0, store.ErrDenied},
		{"unavailable", storetest.After(3), storetest.Fails(store.ErrUnavailable), 0, store.ErrUnavailable},
	} {
		from := store.NewChunks(storetest.Faulty(b, c.when, c.fault), x.Algorithm())
		got, err := Store(t.Context(), x, from, Options{Workers: 2})
		if !errors.Is(err, c.want) || got.Bad != c.bad {
			t.Errorf("%s: %d bad chunks, %v, want %d, %v", c.name, got.Bad, err, c.bad, c.want)
		}
	}
}

// TestStoreAsksOnce: a repeated chunk is requested once, and counted once if it is wrong. Inspect of
// the first chunk needs no second request.
func TestStoreAsksOnce(t *testing.T) {
	part := testimages.Random(4, 10*chunkSize)
	image := bytes.Join([][]byte{part, part, make([]byte, 8*chunkSize), part}, nil)
	x := index(t, image)
	from := newChunks(x, image)
	from.fail[x.At(2).Digest] = store.ErrNotFound
	var inspected [][]byte
	o := Options{Workers: 3, Inspect: func(first []byte) { inspected = append(inspected, bytes.Clone(first)) }}
	got, err := Store(t.Context(), x, from, o)
	if first := image[:chunkSize]; len(inspected) != 1 || !bytes.Equal(inspected[0], first) {
		t.Errorf("%d chunks are shown, want the first one", len(inspected))
	}
	if err != nil || got.Bad != 1 || got.Done != x.Size() || !cmp.Equal(got.First, []Range{chunkRange(2, 1)}) {
		t.Errorf("report %+v, %v, want one bad chunk", got, err)
	}
	if len(from.gets) != 11 {
		t.Errorf("%d chunks were got, want 11", len(from.gets))
	}
	for d, n := range from.gets {
		if n != 1 {
			t.Errorf("chunk %v was got %d times", d, n)
		}
	}
}

// TestStoreSizesDisagree: an index that gives one digest two sizes is wrong about one of them.
func TestStoreSizesDisagree(t *testing.T) {
	image := testimages.Random(5, 1000)
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params(params))
	if err != nil {
		t.Fatal(err)
	}
	d := blob.SHA512_256.Sum(image)
	for _, size := range []int64{1000, 2000, 1000} {
		if _, err := b.Add(size, d); err != nil {
			t.Fatal(err)
		}
	}
	x := b.Index()
	from := &chunks{data: map[blob.Digest][]byte{d: image}, gets: map[blob.Digest]int{}}
	got, err := Store(t.Context(), x, from, Options{})
	if err != nil || got.Bad != 1 || !cmp.Equal(got.First, []Range{{1000, 2000}}) {
		t.Errorf("report %+v, %v, want the second chunk bad", got, err)
	}
}

// TestStoreFails: an error that does not prove absence or damage is returned.
func TestStoreFails(t *testing.T) {
	image := image()
	x := index(t, image)
	for _, want := range []error{store.ErrUnavailable, store.ErrDenied, errors.ErrUnsupported, io.ErrUnexpectedEOF} {
		from := newChunks(x, image)
		from.fail[x.At(9).Digest] = want
		got, err := Store(t.Context(), x, from, Options{Workers: 3})
		if !errors.Is(err, want) || got.Bad != 0 || got.Done == got.Size {
			t.Errorf("Store = %+v, %v, want %v and no bad chunks", got, err, want)
		}
	}
}

// TestProgress: the reported counts never decrease, are never reported concurrently, and end with the
// whole image. A cancelled run returns an error.
func TestProgress(t *testing.T) {
	image := image()
	x := index(t, image)
	damaged, from := flipped(image, 100, 5<<20), newChunks(x, image)
	from.fail[x.At(1).Digest] = store.ErrNotFound
	for name, verify := range map[string]func(context.Context, Options) (Report, error){
		"image": func(ctx context.Context, o Options) (Report, error) {
			return Image(ctx, x, bytes.NewReader(damaged), o)
		},
		"store": func(ctx context.Context, o Options) (Report, error) { return Store(ctx, x, from, o) },
	} {
		var telling sync.Mutex
		var last Report
		_, err := verify(t.Context(), Options{Workers: 4, Progress: func(r Report) {
			if !telling.TryLock() {
				t.Errorf("%s: Progress is called twice at once", name)
				return
			}
			defer telling.Unlock()
			if r.Done <= last.Done || r.Bad < last.Bad || r.BadBytes < last.BadBytes || r.Size != x.Size() {
				t.Errorf("%s: progress is %+v after %+v", name, r, last)
			}
			last = r
		}})
		if err != nil || last.Done != x.Size() || last.Bad == 0 {
			t.Errorf("%s: %v, last told: %+v, want all %d bytes, and something bad", name, err, last, x.Size())
		}
		for _, at := range []int64{0, x.Size() - 1} { // during the run, and at its end
			ctx, cancel := context.WithCancel(t.Context())
			_, err := verify(ctx, Options{Workers: 2, Progress: func(r Report) {
				if r.Done > at {
					cancel()
				}
			}})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s, cancelled after %d bytes: %v, want %v", name, at, err, context.Canceled)
			}
		}
	}
}
