package deltadir_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/blob/delta/deltadir"
	"cairn/blob/ingest"
	"cairn/blob/release"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/testimages"
)

// sizes are small: the encoder's tables for larger chunks take long to clear.
var sizes = chunker.Params{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}

// shop is a store with releases of one image, and the directory of their deltas.
type shop struct {
	chunks  *mem.Bucket
	dir     *mem.Bucket
	images  [][]byte
	indexes []*blob.Index
}

// newShop returns a shop with n releases, each with a few changed bytes.
func newShop(t testing.TB, n int) *shop {
	t.Helper()
	s := &shop{chunks: new(mem.Bucket), dir: new(mem.Bucket)}
	image := append(testimages.Random(1, 250_000), make([]byte, 100_000)...)
	image = append(image, image[:20_000]...) // repeats chunks
	for i := range n {
		image = bytes.Clone(image)
		for _, at := range []int{10_000, 60_000, 120_000} {
			image[at+100*i] ^= 1
		}
		s.add(t, image, sizes, blob.SHA256)
	}
	return s
}

func (s *shop) add(t testing.TB, image []byte, p chunker.Params, a blob.Algorithm) *blob.Index {
	t.Helper()
	w, err := store.NewWriter(s.chunks, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	x, _, err := ingest.Image(t.Context(), chunker.FromReaderAt(bytes.NewReader(image), int64(len(image))), w,
		ingest.Options{Algorithm: a, Params: p, Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	s.images, s.indexes = append(s.images, image), append(s.indexes, x)
	return x
}

func (s *shop) getter() store.Getter { return store.NewChunks(s.chunks, blob.SHA256) }

func open(t testing.TB, x *blob.Index, from deltadir.Source) *deltadir.Image {
	t.Helper()
	m, err := deltadir.OpenImage(t.Context(), x, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

// publish publishes the delta between two releases.
func (s *shop) publish(t testing.TB, dir store.Bucket, from, to int) (deltadir.Result, error) {
	t.Helper()
	source := deltadir.Source{Store: s.getter()}
	return deltadir.Publish(t.Context(), dir, open(t, s.indexes[from], source), open(t, s.indexes[to], source),
		deltadir.Options{Workers: 2})
}

func (s *shop) mustPublish(t testing.TB, from, to int) deltadir.Result {
	t.Helper()
	r, err := s.publish(t, s.dir, from, to)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// clone returns a shop with a copy of the directory.
func (s *shop) clone(t testing.TB) *shop {
	t.Helper()
	c := &shop{chunks: s.chunks, dir: new(mem.Bucket), images: s.images, indexes: s.indexes}
	for o := range s.dir.List(t.Context(), "") {
		data, err := s.dir.Read(t.Context(), o.Name, nil, 1<<20)
		if err == nil {
			err = c.dir.Write(t.Context(), o.Name, data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// names lists the objects of the directory, with the numbers of the releases in place of the digests.
func (s *shop) names(t testing.TB, dir *mem.Bucket) (names []string) {
	t.Helper()
	for o, err := range dir.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		name := o.Name
		for i, x := range s.indexes {
			name = strings.ReplaceAll(name, x.Digest().String(), "v"+string(rune('0'+i)))
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// listed returns the numbers of the releases on a list.
func (s *shop) listed(t testing.TB, dir store.Reader, to int) (numbers []int) {
	t.Helper()
	bases, err := deltadir.ReadList(t.Context(), dir, s.indexes[to])
	if err != nil {
		t.Fatal(err)
	}
	for _, base := range bases {
		numbers = append(numbers, slices.IndexFunc(s.indexes, func(x *blob.Index) bool { return x.Digest() == base.Index }))
	}
	return numbers
}

func (s *shop) verify(t testing.TB, o deltadir.VerifyOptions) (r deltadir.VerifyReport, defects []string) {
	t.Helper()
	o.Workers = 2
	if o.Chunks == nil {
		o.Chunks = func(a blob.Algorithm) store.Getter { return store.NewChunks(s.chunks, a) }
	}
	o.Found = func(d deltadir.Defect) { defects = append(defects, d.Name) }
	r, err := deltadir.Verify(t.Context(), s.dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return r, defects
}

// TestPublish publishes a delta, whose every payload then decodes, and lists it.
func TestPublish(t *testing.T) {
	s := newShop(t, 2)
	r := s.mustPublish(t, 0, 1)
	if r.Outcome != deltadir.Made || r.Chunks == 0 || r.ChunkBytes <= r.FileBytes || r.FileBytes <= r.TableBytes {
		t.Errorf("Publish = %+v", r)
	}
	want := []string{"v1/list", "v1/v0.cadelta", "v1/v0.caibx", "v1/v1.caibx"}
	if diff := cmp.Diff(want, s.names(t, s.dir)); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	bases, err := deltadir.ReadList(t.Context(), s.dir, s.indexes[1])
	if diff := cmp.Diff([]delta.Base{delta.NewBase(s.indexes[0], r.FileBytes, r.TableBytes)}, bases); diff != "" || err != nil {
		t.Errorf("list: %v (-want +got):\n%s", err, diff)
	}
	if got, defects := s.verify(t, deltadir.VerifyOptions{}); got != (deltadir.VerifyReport{Deltas: 1, Bytes: r.FileBytes}) {
		t.Errorf("Verify = %+v, %v", got, defects)
	}
	if n, err := deltadir.Count(t.Context(), s.dir, nil); n != (deltadir.Amount{Deltas: 1, Bytes: r.FileBytes}) || err != nil {
		t.Errorf("Count = %+v, %v", n, err)
	}
	if n, err := deltadir.Count(t.Context(), unlisted{s.dir}, s.indexes); n != (deltadir.Amount{Deltas: 1, Bytes: r.FileBytes}) || err != nil {
		t.Errorf("Count without a listing = %+v, %v", n, err)
	}
}

// unlisted is a reader that cannot list.
type unlisted struct{ store.Reader }

// TestOutcomes: a delta that is there stays, even one of another encoder; a useless one is not published.
func TestOutcomes(t *testing.T) {
	s := newShop(t, 2)
	made := s.mustPublish(t, 0, 1)
	before := s.names(t, s.dir)
	made.Outcome = deltadir.Held
	if r := s.mustPublish(t, 0, 1); r != made {
		t.Errorf("publishing again = %+v, want %+v", r, made)
	}
	// A file without a list, as an interrupted Publish leaves it.
	if err := s.dir.Remove(t.Context(), release.DeltaListName(s.indexes[1].Digest())); err != nil {
		t.Fatal(err)
	}
	if r := s.mustPublish(t, 0, 1); r.Outcome != deltadir.Held {
		t.Errorf("publishing what is not listed = %+v", r)
	}
	if diff := cmp.Diff(before, s.names(t, s.dir)); diff != "" {
		t.Errorf("objects (-before +after):\n%s", diff)
	}
	if r := s.mustPublish(t, 1, 1); r.Outcome != deltadir.Same {
		t.Errorf("one image = %+v", r)
	}
	s.add(t, testimages.Random(7, 100_000), sizes, blob.SHA256)
	if r := s.mustPublish(t, 0, 2); r.Outcome != deltadir.None {
		t.Errorf("an unrelated image = %+v", r)
	}
	s.add(t, s.images[0][:100_000], sizes, blob.SHA256)
	s.add(t, append(testimages.Random(8, 10_000), s.images[0]...), chunker.Params{Min: 2 << 10, Avg: 8 << 10, Max: 32 << 10}, blob.SHA256)
	if r := s.mustPublish(t, 0, 4); r.Outcome != deltadir.Made || r.FileBytes > 50_000 {
		t.Errorf("other chunk sizes = %+v", r)
	}
	if diff := cmp.Diff(before, s.names(t, s.dir)[:len(before)]); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	// A damaged file of the name is an error.
	if err := s.dir.Write(t.Context(), release.DeltaName(s.indexes[1].Digest(), s.indexes[0].Digest()), []byte("other")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.publish(t, s.dir, 0, 1); !errors.Is(err, delta.ErrInvalid) {
		t.Errorf("a damaged delta of this name = %v, want ErrInvalid", err)
	}
}

func TestOtherDigests(t *testing.T) {
	s := newShop(t, 1)
	s.add(t, s.images[0], sizes, blob.SHA512_256)
	if _, err := s.publish(t, s.dir, 0, 1); err == nil || !strings.Contains(err.Error(), "different digest") {
		t.Errorf("Publish = %v", err)
	}
}

// TestKeepLast keeps the deltas to the newest release, and removes those to older ones.
func TestKeepLast(t *testing.T) {
	s := newShop(t, 5)
	for _, pair := range [][2]int{{0, 1}, {0, 2}, {1, 2}, {1, 3}, {2, 3}, {0, 4}, {2, 4}, {3, 4}} {
		s.mustPublish(t, pair[0], pair[1])
	}
	if diff := cmp.Diff([]int{3, 2, 0}, s.listed(t, s.dir, 4)); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	if n, err := deltadir.KeepLast(t.Context(), s.dir, s.indexes[3], 5, nil); n != 6+4 || err != nil {
		t.Errorf("KeepLast for the release before the newest removes %d, %v", n, err)
	}
	if n, err := deltadir.KeepLast(t.Context(), s.dir, s.indexes[4], 2, []blob.Digest{{1}}); n != 2+6 || err != nil {
		t.Errorf("KeepLast removes %d, %v", n, err)
	}
	want := []string{"v4/list", "v4/v2.cadelta", "v4/v2.caibx", "v4/v3.cadelta", "v4/v3.caibx", "v4/v4.caibx"}
	if diff := cmp.Diff(want, s.names(t, s.dir)); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]int{3, 2}, s.listed(t, s.dir, 4)); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	if n, err := deltadir.KeepLast(t.Context(), s.dir, s.indexes[4], 2, nil); n != 0 || err != nil {
		t.Errorf("KeepLast again removes %d, %v", n, err)
	}
	if _, err := deltadir.KeepLast(t.Context(), struct{ store.Bucket }{s.dir}, s.indexes[4], 2, nil); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("KeepLast in a bucket without Remove = %v", err)
	}
}

// TestKeepLastCycle: deltas in both directions end the removal.
func TestKeepLastCycle(t *testing.T) {
	s := newShop(t, 2)
	s.mustPublish(t, 0, 1)
	s.mustPublish(t, 1, 0)
	if n, err := deltadir.KeepLast(t.Context(), s.dir, s.indexes[0], 1, nil); n != 4 || err != nil {
		t.Errorf("KeepLast removes %d, %v", n, err)
	}
	if diff := cmp.Diff([]int{1}, s.listed(t, s.dir, 0)); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
}

// failing is a bucket that fails from its n-th change on.
type failing struct {
	*mem.Bucket
	left int
}

var errFault = errors.New("fault")

func (f *failing) change(do func() error) error {
	if f.left--; f.left < 0 {
		return errFault
	}
	return do()
}

func (f *failing) Write(ctx context.Context, name string, data []byte) error {
	return f.change(func() error { return f.Bucket.Write(ctx, name, data) })
}

func (f *failing) Create(ctx context.Context, name string, data []byte) error {
	return f.change(func() error { return f.Bucket.Create(ctx, name, data) })
}

func (f *failing) Remove(ctx context.Context, name string) error {
	return f.change(func() error { return f.Bucket.Remove(ctx, name) })
}

// TestListLast: whatever change fails, each delta on a list is there with its index, and a second run
// completes the work.
func TestListLast(t *testing.T) {
	begun := newShop(t, 3)
	begun.mustPublish(t, 0, 1)
	begun.mustPublish(t, 0, 2)
	for n := 0; ; n++ {
		s := begun.clone(t)
		f := &failing{s.dir, n}
		work := func() error {
			if _, err := s.publish(t, f, 1, 2); err != nil {
				return err
			}
			_, err := deltadir.KeepLast(t.Context(), f, s.indexes[2], 1, nil)
			return err
		}
		err := work()
		for to := range s.indexes {
			for _, from := range s.listed(t, s.dir, to) {
				for _, name := range []func(to, from blob.Digest) string{release.DeltaName, release.DeltaIndexName} {
					if _, err := s.dir.Stat(t.Context(), name(s.indexes[to].Digest(), s.indexes[from].Digest())); err != nil {
						t.Errorf("after %d changes: %v", n, err)
					}
				}
			}
		}
		if f.left >= 0 {
			if err != nil || n < 8 {
				t.Errorf("after %d changes: %v", n, err)
			}
			return
		}
		if f.left = 1000; !errors.Is(err, errFault) || work() != nil {
			t.Errorf("after %d changes: %v, and the second run fails", n, err)
		}
		want := []string{"v2/list", "v2/v1.cadelta", "v2/v1.caibx", "v2/v2.caibx"}
		if diff := cmp.Diff(want, slices.DeleteFunc(s.names(t, s.dir), isOrphan)); diff != "" {
			t.Errorf("after %d changes and a second run (-want +got):\n%s", n, diff)
		}
	}
}

// isOrphan reports whether a name is of a delta that was dropped from a list before the fault.
func isOrphan(name string) bool { return strings.HasPrefix(name, "v2/v0.") }

// TestVerify finds each kind of damage, and removes what is damaged.
func TestVerify(t *testing.T) {
	made := newShop(t, 3)
	made.mustPublish(t, 0, 2)
	made.mustPublish(t, 1, 2)
	to, from := made.indexes[2].Digest(), made.indexes[1].Digest()
	file, list, index := release.DeltaName(to, from), release.DeltaListName(to), release.DeltaIndexName(to, from)
	read := func(name string) []byte {
		data, err := made.dir.Read(t.Context(), name, nil, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	flip := func(name string, at int) func(s *shop) error {
		return func(s *shop) error {
			data := read(name)
			data[(at+len(data))%len(data)] ^= 1
			return s.dir.Write(t.Context(), name, data)
		}
	}
	remove := func(name string) func(s *shop) error {
		return func(s *shop) error { return s.dir.Remove(t.Context(), name) }
	}
	for name, c := range map[string]struct {
		damage func(s *shop) error
		defect string
		want   deltadir.VerifyReport
		listed []int // afterwards
	}{
		"payload":   {flip(file, -3), file, deltadir.VerifyReport{Damaged: 1, Removed: 1}, []int{0}},
		"table":     {flip(file, 100), file, deltadir.VerifyReport{Damaged: 1, Removed: 1}, []int{0}},
		"index":     {flip(index, 100), file, deltadir.VerifyReport{Damaged: 1, Removed: 1}, []int{0}},
		"no index":  {remove(index), file, deltadir.VerifyReport{Damaged: 1, Removed: 1}, []int{0}},
		"no delta":  {remove(file), file, deltadir.VerifyReport{Damaged: 1, Removed: 1}, []int{0}},
		"list":      {flip(list, 60), list, deltadir.VerifyReport{Damaged: 1, Removed: 1}, []int{0, 1}},
		"no list":   {remove(list), "", deltadir.VerifyReport{Unlisted: 2}, nil},
		"new index": {remove(release.DeltaIndexName(to, to)), "", deltadir.VerifyReport{Unchecked: 2}, []int{1, 0}},
		"longer": {func(s *shop) error { return s.dir.Write(t.Context(), file, append(read(file), 0)) }, file,
			deltadir.VerifyReport{Damaged: 1, Removed: 1}, []int{0}},
		"another delta": {func(s *shop) error {
			other := read(release.DeltaName(to, made.indexes[0].Digest()))
			return errors.Join(s.dir.Write(t.Context(), file, other), s.dir.Write(t.Context(), list,
				delta.EncodeList(s.indexes[2], []delta.Base{delta.NewBase(s.indexes[1], int64(len(other)), 200)})))
		}, file, deltadir.VerifyReport{Damaged: 1, Removed: 1, Unlisted: 1}, nil},
	} {
		s := made.clone(t)
		if err := c.damage(s); err != nil {
			t.Fatal(err)
		}
		before := s.names(t, s.dir)
		r, defects := s.verify(t, deltadir.VerifyOptions{})
		if len(defects) > 0 != (c.defect != "") || len(defects) > 0 && defects[0] != c.defect || r.Damaged != c.want.Damaged || r.Removed != 0 {
			t.Errorf("%s: Verify = %+v, %q, want %q", name, r, defects, c.defect)
		}
		if diff := cmp.Diff(before, s.names(t, s.dir)); diff != "" {
			t.Errorf("%s: Verify has changed the directory:\n%s", name, diff)
		}
		r, _ = s.verify(t, deltadir.VerifyOptions{Bucket: s.dir})
		r.Deltas, r.Bytes = 0, 0
		if diff := cmp.Diff(c.want, r); diff != "" {
			t.Errorf("%s: Verify that removes (-want +got):\n%s", name, diff)
		}
		got := s.listed(t, s.dir, 2)
		slices.Sort(got)
		slices.Sort(c.listed)
		if diff := cmp.Diff(c.listed, got); diff != "" {
			t.Errorf("%s: list afterwards (-want +got):\n%s", name, diff)
		}
		if r, defects := s.verify(t, deltadir.VerifyOptions{Indexes: s.indexes}); r.Damaged != 0 {
			t.Errorf("%s: Verify afterwards = %+v, %q", name, r, defects)
		}
	}
}

// TestVerifyWithoutOld: a delta whose old image is not in the store is no defect.
func TestVerifyWithoutOld(t *testing.T) {
	s := newShop(t, 2)
	s.mustPublish(t, 0, 1)
	empty := func(a blob.Algorithm) store.Getter { return store.NewChunks(new(mem.Bucket), a) }
	r, defects := s.verify(t, deltadir.VerifyOptions{Chunks: empty, Bucket: s.dir})
	if r.Unchecked != 1 || r.Damaged != 0 || len(defects) > 0 {
		t.Errorf("Verify = %+v, %v", r, defects)
	}
}

func TestCopy(t *testing.T) {
	s := newShop(t, 4)
	for _, pair := range [][2]int{{0, 2}, {1, 2}, {0, 3}, {2, 3}} {
		s.mustPublish(t, pair[0], pair[1])
	}
	if err := s.dir.Write(t.Context(), release.DeltaName(s.indexes[3].Digest(), s.indexes[0].Digest()), []byte("damaged")); err != nil {
		t.Fatal(err)
	}
	to := new(mem.Bucket)
	var left []string
	o := deltadir.CopyOptions{
		To:    func() (store.Bucket, error) { return to, nil },
		Found: func(d deltadir.Defect) { left = append(left, d.Name) },
	}
	o.Indexes = s.indexes[2:3]
	r, err := deltadir.Copy(t.Context(), s.dir, o)
	if err != nil || r.Copied.Deltas != 2 || r.Held != 0 || len(left) > 0 {
		t.Errorf("Copy of the deltas to an image = %+v, %v, left %q", r, err, left)
	}
	if diff := cmp.Diff([]int{1, 0}, s.listed(t, to, 2)); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	o.Indexes = nil
	r, err = deltadir.Copy(t.Context(), s.dir, o)
	if err != nil || r.Copied.Deltas != 1 || r.Held != 2 || r.Damaged != 1 || len(left) != 1 {
		t.Errorf("Copy of all = %+v, %v, left %q", r, err, left)
	}
	want := []string{"v2/list", "v2/v0.cadelta", "v2/v0.caibx", "v2/v1.cadelta", "v2/v1.caibx", "v2/v2.caibx",
		"v3/list", "v3/v2.cadelta", "v3/v2.caibx", "v3/v3.caibx"}
	if diff := cmp.Diff(want, s.names(t, to)); diff != "" {
		t.Errorf("objects (-want +got):\n%s", diff)
	}
	o.To = func() (store.Bucket, error) { t.Error("a destination is opened for nothing"); return to, nil }
	if r, err := deltadir.Copy(t.Context(), new(mem.Bucket), o); err != nil || r != (deltadir.CopyReport{}) {
		t.Errorf("Copy of nothing = %+v, %v", r, err)
	}
}

// counting counts the fetched chunks by digest.
type counting struct {
	store.Getter
	mu    sync.Mutex // guards count
	count map[blob.Digest]int
}

func (c *counting) Get(ctx context.Context, wants []store.Want, done func(int, error)) {
	c.mu.Lock()
	for _, w := range wants {
		c.count[w.Digest]++
	}
	c.mu.Unlock()
	c.Getter.Get(ctx, wants, done)
}

// TestImage reads an image at many places from each kind of source.
func TestImage(t *testing.T) {
	s := newShop(t, 2)
	image, x := s.images[0], s.indexes[0]
	other := bytes.Clone(image)
	other[50_000] ^= 1
	remote := &counting{Getter: s.getter(), count: map[blob.Digest]int{}}
	for name, source := range map[string]deltadir.Source{
		"file":               {File: bytes.NewReader(image)},
		"longer file":        {File: bytes.NewReader(append(bytes.Clone(image), "more"...))},
		"store":              {Store: s.getter()},
		"remote":             {Store: remote, Remote: true},
		"file and store":     {File: bytes.NewReader(other), Store: s.getter()},
		"short file, remote": {File: bytes.NewReader(image[:1000]), Store: s.getter(), Remote: true},
	} {
		m := open(t, x, source)
		if got, err := io.ReadAll(io.NewSectionReader(m, 0, x.Size()+100)); err != nil || !bytes.Equal(got, image) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		random := rand.New(rand.NewPCG(1, 2))
		var group sync.WaitGroup
		for range 20 {
			off := random.Int64N(x.Size())
			want := image[off:min(off+random.Int64N(100_000), x.Size())]
			group.Go(func() {
				got := make([]byte, len(want))
				if n, err := m.ReadAt(got, off); n < len(got) || err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: ReadAt(%d) of %d bytes = %d, %v, or other bytes", name, off, len(got), n, err)
				}
			})
		}
		group.Wait()
	}
	for d, n := range remote.count {
		if n > 1 {
			t.Errorf("chunk %v is fetched %d times", d, n)
		}
	}
	_, err := open(t, x, deltadir.Source{File: bytes.NewReader(other)}).ReadAt(make([]byte, 100_000), 0)
	if wrong, is := errors.AsType[*deltadir.OtherBytesError](err); !is || wrong.Offset > 50_000 {
		t.Errorf("a file with other bytes = %v", err)
	}
}

// TestRemote: of remote images, each chunk is fetched once, and of the new one only what the old one lacks.
func TestRemote(t *testing.T) {
	s := newShop(t, 2)
	remote := &counting{Getter: s.getter(), count: map[blob.Digest]int{}}
	source := deltadir.Source{Store: remote, Remote: true}
	_, err := deltadir.Publish(t.Context(), s.dir, open(t, s.indexes[0], source), open(t, s.indexes[1], source), deltadir.Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	want := map[blob.Digest]bool{}
	for _, x := range s.indexes {
		for i, c := range x.All() {
			if !x.IsZero(i) {
				want[c.Digest] = true
			}
		}
	}
	for d, n := range remote.count {
		if n > 1 || !want[d] {
			t.Errorf("chunk %v is fetched %d times", d, n)
		}
	}
	if len(remote.count) > len(want) {
		t.Errorf("%d chunks are fetched, want at most %d", len(remote.count), len(want))
	}
}

// TestCancelled: when the context ends, nothing is published.
func TestCancelled(t *testing.T) {
	s := newShop(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	from, err := deltadir.OpenImage(ctx, s.indexes[0], deltadir.Source{Store: s.getter()})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to := open(t, s.indexes[1], deltadir.Source{Store: s.getter()})
	_, err = deltadir.Publish(ctx, s.dir, from, to, deltadir.Options{Workers: 1, Progress: func(int64, int64) { cancel() }})
	if names := s.names(t, s.dir); !errors.Is(err, context.Canceled) || len(names) > 0 {
		t.Errorf("Publish = %v, and the directory has %q", err, names)
	}
}

// TestTemporaryFile: an error about the temporary file names its directory.
func TestTemporaryFile(t *testing.T) {
	s := newShop(t, 2)
	t.Setenv("TMPDIR", "/nonexistent")
	if _, err := s.publish(t, s.dir, 0, 1); err == nil || !strings.Contains(err.Error(), "/nonexistent (TMPDIR") {
		t.Errorf("Publish = %v", err)
	}
}

// TestEstimate: an estimate of a delta is about what the published one takes, also if it is of a sample.
func TestEstimate(t *testing.T) {
	if testing.Short() {
		t.Skip("encodes many chunks")
	}
	sizes := chunker.Params{Min: 4 << 10, Avg: 16 << 10, Max: 64 << 10}
	s := &shop{chunks: new(mem.Bucket), dir: new(mem.Bucket)}
	image := append(testimages.Random(1, 1200<<10), make([]byte, 100_000)...)
	s.add(t, image, sizes, blob.SHA256)
	few, many := bytes.Clone(image), bytes.Clone(image)
	copy(few[100_000:], testimages.Random(2, 200_000))
	few[1_000_000] ^= 1
	for at := 0; at < len(many)-100; at += 10_000 {
		copy(many[at:], testimages.Random(uint64(at), 100))
	}
	for _, changed := range [][]byte{few, many} {
		x := s.add(t, changed, sizes, blob.SHA256)
		published := s.mustPublish(t, 0, len(s.indexes)-1)
		chunks, stored := store.NewChunks(s.chunks, blob.SHA256), make([]int64, x.Len())
		for i, c := range x.All() {
			if x.IsZero(i) {
				continue
			}
			n, err := chunks.Stat(t.Context(), c.Digest)
			if err != nil {
				t.Fatal(err)
			}
			stored[i] = n
		}
		source := deltadir.Source{Store: s.getter()}
		e, err := deltadir.EstimateDelta(t.Context(), open(t, s.indexes[0], source), open(t, x, source), stored, deltadir.Options{Workers: 2})
		if err != nil {
			t.Fatal(err)
		}
		near := func(a, b int64) bool { return a*5 <= b*6 && b*5 <= a*6 }
		if !near(e.FileBytes, published.FileBytes) || !near(int64(e.Chunks), int64(published.Chunks)) || e.Sampled > 32 {
			t.Errorf("estimated %+v, published %+v", e, published)
		}
		if all := e.Sampled < 32; all != (e.Error == 0) {
			t.Errorf("the error is %d: %+v", e.Error, e)
		}
		if left := e.LeftOut; left > 0 != bytes.Equal(changed, few) {
			t.Errorf("%d bytes of chunks are left out: %+v", left, e)
		}
		t.Logf("estimated %+v, published %+v", e, published)
	}
	source := deltadir.Source{Store: s.getter()}
	same := open(t, s.indexes[0], source)
	if e, err := deltadir.EstimateDelta(t.Context(), same, same, make([]int64, same.Index.Len()), deltadir.Options{Workers: 1}); e != (deltadir.Estimate{}) || err != nil {
		t.Errorf("of equal images: %+v, %v", e, err)
	}
}
