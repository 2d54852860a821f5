package release_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/blob"
	"cairn/blob/ingest"
	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/keep"
	"cairn/store/local"
	"cairn/store/locate"
	"cairn/store/pack"
	"cairn/store/storetest"
	"cairn/testimages"
)

// packedStore has the packs, the chunks and the indexes of a repository in one bucket, and its gc roots in another.
type packedStore struct {
	bucket  store.Bucket
	records *gcroot.Dir
	both    bool
	first   *profile.Profile
}

func newPackedStore(t *testing.T, b store.Bucket) *packedStore {
	t.Helper()
	records, err := gcroot.Open(new(mem.Bucket), gcroot.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(records.Close)
	return &packedStore{bucket: b, records: records}
}

// publish publishes an image under a name, and returns its index and the packs that were written.
func (s *packedStore) publish(ctx context.Context, image []byte, name string) (*blob.Index, []pack.Pack, error) {
	outlet, err := release.OutletIn(ctx, s.bucket, locate.Location{}, name, release.OutletOptions{})
	if err != nil {
		return nil, nil, err
	}
	p, err := release.NewPublisher(ctx, s.bucket, release.PublisherOptions{
		Params: blob.Params(sizes), Remote: true, Records: s.records, Name: name, Writer: store.WriterOptions{Uploads: 3},
		Packs: &release.PackOptions{To: s.bucket, Size: pack.MinSize, Chunks: s.both, First: s.first},
	})
	if err != nil {
		return nil, nil, err
	}
	defer p.Close()
	src := chunker.FromReaderAt(bytes.NewReader(image), int64(len(image)))
	x, _, err := ingest.Image(ctx, src, p, ingest.Options{Params: sizes, Workers: 2, AtOnce: 3})
	if err != nil {
		return nil, nil, err
	}
	err = p.Publish(ctx, outlet, x)
	return x, p.Packs(), err
}

// checkPublished checks that all chunks of a published index can be read from packs, or else from chunks. It returns
// the index and its map, or nil without an index.
func (s *packedStore) checkPublished(t *testing.T, name string) (*blob.Index, *pack.Map) {
	t.Helper()
	file, err := s.bucket.Read(t.Context(), name, nil, 1<<20)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	x, err := blob.Decode(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	m, err := release.ReadMap(t.Context(), s.bucket, mapName(t, name, x), x)
	if err != nil {
		t.Fatal(err)
	}
	var wants []store.Want
	for _, c := range x.All() {
		wants = append(wants, store.Want{Digest: c.Digest, Dst: make([]byte, c.Size)})
	}
	dir := pack.NewDir(s.bucket, x.Algorithm(), pack.Options{})
	dir.Get(t.Context(), m.Find, wants, func(i int, err error) {
		if err != nil {
			t.Errorf("chunk %d of %s: %v", i, name, err)
		}
	})
	if s.both {
		published(t, s.bucket, name)
	}
	return x, m
}

// TestPackedIndexLast fails each operation of a publication with packs in turn. A visible index with its own map must be
// readable, and success means the new one. A second publication succeeds.
func TestPackedIndexLast(t *testing.T) {
	old, next := releases()
	for _, how := range []string{ends, fails, loses, cancels} {
		for _, both := range []bool{false, true} {
			if both && how != ends {
				continue
			}
			for at := int64(1); ; at++ {
				f := &faulty{Full: new(mem.Bucket), at: at, how: how}
				s := newPackedStore(t, f.Full)
				s.both = both
				if _, _, err := s.publish(t.Context(), old, "x.caibx"); err != nil {
					t.Fatal(err)
				}
				s.bucket = f
				ctx, cancel := context.WithCancel(t.Context())
				f.cancel = cancel
				x, _, err := s.publish(ctx, next, "y.caibx")
				cancel()
				s.bucket = f.Full
				got, m := s.checkPublished(t, "y.caibx")
				if err == nil && (got == nil || m == nil || got.Digest() != x.Digest()) {
					t.Errorf("%s at operation %d: Publish succeeds, and the index or its map is not there", how, at)
				}
				if _, _, err := s.publish(t.Context(), next, "y.caibx"); err != nil {
					t.Errorf("%s at operation %d: publishing again: %v", how, at, err)
				}
				if got, m := s.checkPublished(t, "y.caibx"); got == nil || m == nil {
					t.Errorf("%s at operation %d: publishing again gives no index with a map", how, at)
				}
				if !f.reached() {
					break
				}
			}
		}
	}
}

// TestOnlyNewChunksArePacked: chunks in packs of earlier publications are not packed again, and are neither listed nor
// asked for.
func TestOnlyNewChunksArePacked(t *testing.T) {
	old, next := releases()
	r, ofRecords := &storetest.Remote{Full: new(mem.Bucket)}, &storetest.Remote{Full: new(mem.Bucket)}
	s := newPackedStore(t, r)
	var err error
	if s.records, err = gcroot.Open(ofRecords, gcroot.Options{}); err != nil {
		t.Fatal(err)
	}
	defer s.records.Close()
	_, first, err := s.publish(t.Context(), old, "x.caibx")
	if err != nil || len(first) != 1 {
		t.Fatalf("packs %v, %v", first, err)
	}
	r.Reset()
	ofRecords.Reset()
	_, second, err := s.publish(t.Context(), next, "y.caibx")
	if err != nil || len(second) != 1 || second[0].Size > 33<<10 {
		t.Errorf("packs %v, %v; want one of the new chunks", second, err)
	}
	if got := r.Counts(); got.Puts != 1+1+1 || got.Lists > 2 || got.Heads > 1 || got.Gets > 0 {
		t.Errorf("the store is asked %+v for a pack, a map and an index", got)
	}
	if puts := r.Counts().Puts + ofRecords.Counts().Puts; puts > 1+6 {
		t.Errorf("%d PUTs in all for one pack, want at most 6 more", puts)
	}
	s.checkPublished(t, "y.caibx")
	r.Reset()
	if _, third, err := s.publish(t.Context(), next, "z.caibx"); err != nil || len(third) > 0 || r.Counts().Puts != 2 {
		t.Errorf("publishing again: packs %v, %v, requests %+v", third, err, r.Counts())
	}
	s.checkPublished(t, "z.caibx")
	if err := r.Remove(t.Context(), first[0].Name()); err != nil {
		t.Fatal(err)
	}
	if _, packs, err := s.publish(t.Context(), next, "z.caibx"); err != nil || len(packs) != 1 {
		t.Errorf("publishing without an old pack: packs %v, %v; want one more", packs, err)
	}
	s.checkPublished(t, "z.caibx")
}

// TestProfileIsPackedFirst: the chunks of a profile are in packs of their own, in its order. So are chunks at their
// places.
func TestProfileIsPackedFirst(t *testing.T) {
	image := testimages.Random(5, 40*16<<10)
	s := newPackedStore(t, new(mem.Bucket))
	x, _, err := s.publish(t.Context(), image, "x.caibx")
	if err != nil {
		t.Fatal(err)
	}
	var reads []profile.Read
	for _, i := range []int{30, 2, 3, 17} {
		reads = append(reads, profile.Read{Chunk: x.At(i)})
	}
	s = newPackedStore(t, new(mem.Bucket))
	s.first = profile.New(x, reads)
	changed := bytes.Clone(image)
	changed[3*16<<10]++
	x, packs, err := s.publish(t.Context(), changed, "y.caibx")
	if err != nil {
		t.Fatal(err)
	}
	_, m := s.checkPublished(t, "y.caibx")
	var offsets []int64
	first, _ := m.Find(x.At(30).Digest)
	for i, c := range x.All() {
		at, _ := m.Find(c.Digest)
		isFirst := i == 30 || i == 2 || i == 3 || i == 17
		if isFirst != (at.Pack == first.Pack) {
			t.Errorf("chunk %d is in the pack of the profile: %v", i, !isFirst)
		}
	}
	for _, i := range []int{30, 2, 3, 17} {
		at, _ := m.Find(x.At(i).Digest)
		offsets = append(offsets, at.Offset)
	}
	if !(offsets[0] < offsets[1] && offsets[1] < offsets[2] && offsets[2] < offsets[3]) {
		t.Errorf("the profile's chunks are at %v", offsets)
	}
	if len(packs) != 4 {
		t.Errorf("%d packs", len(packs))
	}
}

// TestPacksAreInOrder: the chunks in packs are in the order of the image, though several workers compress them.
func TestPacksAreInOrder(t *testing.T) {
	s := newPackedStore(t, new(mem.Bucket))
	x, _, err := s.publish(t.Context(), testimages.Random(6, 20<<20), "x.caibx")
	if err != nil {
		t.Fatal(err)
	}
	_, m := s.checkPublished(t, "x.caibx")
	var last pack.Place
	for i, c := range x.All() {
		at, _ := m.Find(c.Digest)
		if at.Pack == last.Pack && at.Offset != last.End() {
			t.Fatalf("chunk %d lies at %d, after the end of the one before at %d", i, at.Offset, last.End())
		}
		last = at
	}
}

// TestPacksBesidePublisher: gc does not wait for a publisher at work when it removes packs that a gc root has named. It waits
// with packs that may be the publisher's own.
func TestPacksBesidePublisher(t *testing.T) {
	old, next := releases()
	s := newPackedStore(t, new(mem.Bucket))
	x, gone, err := s.publish(t.Context(), old, "x.caibx")
	if err != nil {
		t.Fatal(err)
	}
	l, err := s.records.List(t.Context())
	if err != nil || len(l.Roots) != 1 {
		t.Fatalf("%+v, %v", l, err)
	}
	if err := s.records.Retire(t.Context(), l.Roots[0]); err != nil {
		t.Fatal(err)
	}
	lease, err := s.records.Lease(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	collect := func() error {
		_, err := keep.Collect(t.Context(), new(mem.Bucket), s.records, keep.CollectOptions{Packs: s.bucket})
		return err
	}
	if err := collect(); err != nil {
		t.Errorf("gc of known packs beside a publisher: %v", err)
	}
	there, err := pack.List(t.Context(), s.bucket)
	if err != nil || len(gone) == 0 || len(there) > 0 {
		t.Errorf("packs left: %v, %v, published were %v", there, err, gone)
	}
	if err := s.bucket.Write(t.Context(), strings.Repeat("0", 64)+pack.Suffix, []byte("of a publisher at work")); err != nil {
		t.Fatal(err)
	}
	if err := collect(); !errors.Is(err, gcroot.ErrBusy) {
		t.Errorf("gc of a pack that no gc root has named, beside a publisher: %v", err)
	}
	if err := lease.End(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := collect(); err != nil {
		t.Error(err)
	}
	// The same image again is packed anew: the map of its retired gc root is not believed.
	if _, again, err := s.publish(t.Context(), old, "x.caibx"); err != nil || len(again) == 0 {
		t.Errorf("publishing %v again: packs %v, %v", x.Digest(), again, err)
	}
	if _, _, err := s.publish(t.Context(), next, "y.caibx"); err != nil {
		t.Error(err)
	}
	s.checkPublished(t, "x.caibx")
	s.checkPublished(t, "y.caibx")
}

// TestPackVanishes: a publisher that used a pack which gc has removed in the meantime fails, publishes nothing, and leaves
// no gc root that names the pack.
func TestPackVanishes(t *testing.T) {
	old, next := releases()
	bucket := &fading{Bucket: new(mem.Bucket)}
	s := newPackedStore(t, bucket)
	_, packs, err := s.publish(t.Context(), old, "x.caibx")
	if err != nil {
		t.Fatal(err)
	}
	bucket.name, bucket.after = packs[0].Name(), 1 // the publisher sees it in its first listing
	var vanished *release.VanishedError
	if _, _, err := s.publish(t.Context(), next, "y.caibx"); !errors.As(err, &vanished) {
		t.Errorf("Publish = %v, want a VanishedError", err)
	}
	if _, err := bucket.Stat(t.Context(), "y.caibx"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the index: %v", err)
	}
	l, err := s.records.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range l.Roots {
		if e.Number > 1 && e.Retired.IsZero() {
			t.Errorf("the gc root %s is live", e.Name)
		}
	}
	if _, _, err := s.publish(t.Context(), next, "y.caibx"); err != nil {
		t.Errorf("publishing again: %v", err)
	}
	if x, m := s.checkPublished(t, "y.caibx"); x == nil || m == nil {
		t.Error("publishing again gives no index with a map")
	}
}

// fading is a bucket of which an object vanishes after some listings.
type fading struct {
	*mem.Bucket
	name  string
	after int
}

func (v *fading) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		if v.after--; v.after == -1 && v.name != "" {
			if err := v.Remove(ctx, v.name); err != nil {
				yield(store.Object{}, err)
				return
			}
		}
		for o, err := range v.Bucket.List(ctx, prefix) {
			if !yield(o, err) {
				return
			}
		}
	}
}

// mapName returns the name of the map of an index.
func mapName(t *testing.T, index string, x *blob.Index) string {
	t.Helper()
	at, err := release.MapOf(locate.Path("/"+index), x.Digest())
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(at.String(), "/")
}

// TestStaleMapIsRemoved: an index that is published again without packs has no map beside it.
func TestStaleMapIsRemoved(t *testing.T) {
	old, _ := releases()
	s := newPackedStore(t, new(mem.Bucket))
	x, _, err := s.publish(t.Context(), old, "x.caibx")
	if err != nil {
		t.Fatal(err)
	}
	mustPublish(t, old, s.bucket, "x.caibx", release.PublisherOptions{})
	if _, err := s.bucket.Stat(t.Context(), mapName(t, "x.caibx", x)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the map of the index: %v", err)
	}
	published(t, s.bucket, "x.caibx")
}

// TestUnreadableMapEnds: a gc root whose map cannot be decoded ends a publication, because its packs are unknown.
func TestUnreadableMapEnds(t *testing.T) {
	old, _ := releases()
	s := newPackedStore(t, new(mem.Bucket))
	x, _, err := s.publish(t.Context(), old, "x.caibx")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.records.Write(t.Context(), &gcroot.Root{Name: "y.caibx", Index: x, Map: []byte("no map")}, 9); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.publish(t.Context(), old, "z.caibx"); !errors.Is(err, pack.ErrInvalid) {
		t.Errorf("publish = %v, want %v", err, pack.ErrInvalid)
	}
}

// TestCollectPacks: gc removes the packs that no map of a gc root names, and no others. A map that cannot be decoded ends
// it.
func TestCollectPacks(t *testing.T) {
	s := newPackedStore(t, new(mem.Bucket))
	images := map[string][]byte{"x.caibx": testimages.Random(1, 64<<10), "y.caibx": testimages.Random(2, 64<<10)}
	indexes := map[string]*blob.Index{}
	for name, image := range images {
		x, packs, err := s.publish(t.Context(), image, name)
		if err != nil || len(packs) != 1 {
			t.Fatalf("packs %v, %v", packs, err)
		}
		indexes[name] = x
	}
	collect := func(grace time.Duration) (keep.CollectReport, error) {
		return keep.Collect(t.Context(), s.bucket, s.records, keep.CollectOptions{Packs: s.bucket, Grace: grace})
	}
	if err := s.records.Manage(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, err := collect(0); err != nil || r.Packs.Kept.Objects != 2 || r.Packs.Removed.Objects != 0 {
		t.Errorf("Collect of two indexes = %+v, %v", r.Packs, err)
	}
	l, err := s.records.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range l.Roots {
		if e.Index == indexes["x.caibx"].Digest() {
			if err := s.records.Retire(t.Context(), e); err != nil {
				t.Fatal(err)
			}
		}
	}
	if r, err := collect(time.Hour); err != nil || r.Packs.Fading.Objects != 1 {
		t.Errorf("Collect within the grace = %+v, %v", r.Packs, err)
	}
	s.checkPublished(t, "x.caibx")
	if r, err := collect(0); err != nil || r.Packs.Kept.Objects != 1 || r.Packs.Removed.Objects != 1 || r.Share() < 0.4 {
		t.Errorf("Collect after the grace = %+v, %v, a share of %.2f", r.Packs, err, r.Share())
	}
	s.checkPublished(t, "y.caibx")
	root := &gcroot.Root{Name: "z.caibx", Index: indexes["y.caibx"], Map: []byte("no map")}
	if _, err := s.records.Write(t.Context(), root, 9); err != nil {
		t.Fatal(err)
	}
	if _, err := collect(0); !errors.Is(err, gcroot.ErrInvalid) {
		t.Errorf("Collect with a damaged map = %v, want %v", err, gcroot.ErrInvalid)
	}
	s.checkPublished(t, "y.caibx")
}

// repackRig is a repository of three indexes in packs, one of which was removed. Its indexes and maps are files.
type repackRig struct {
	dir            string
	packs, records *mem.Bucket
	names          []string
}

func newRepackRig(t *testing.T) *repackRig {
	t.Helper()
	r := &repackRig{dir: t.TempDir(), packs: new(mem.Bucket), records: new(mem.Bucket), names: []string{"y.caibx", "z.caibx"}}
	records := openRecords(t, r.records)
	image := testimages.Random(1, 40*16<<10)
	for n, name := range []string{"x.caibx", "y.caibx", "z.caibx"} {
		for i := range []int{0, 25, 26}[n] { // y and z share 24 chunks that x lacks, and 14 with x
			copy(image[i*16<<10:(i+1)*16<<10], testimages.Random(uint64(100+i), 16<<10))
		}
		beside := local.At(r.dir, local.Options{})
		outlet, err := release.OutletIn(t.Context(), beside, locate.Path(r.dir), name, release.OutletOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p, err := release.NewPublisher(t.Context(), new(mem.Bucket), release.PublisherOptions{Params: blob.Params(sizes), Records: records,
			Name: name, Packs: &release.PackOptions{To: r.packs, Size: pack.MinSize}})
		if err != nil {
			t.Fatal(err)
		}
		src := chunker.FromReaderAt(bytes.NewReader(image), int64(len(image)))
		x, _, err := ingest.Image(t.Context(), src, p, ingest.Options{Params: sizes})
		if err == nil {
			err = p.Publish(t.Context(), outlet, x)
		}
		p.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	s := r.shelf(records)
	published, _, err := s.Items(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if removed, err := s.Remove(t.Context(), published[:1], 0); err != nil || len(removed) != 1 || removed[0].Name != "x.caibx" {
		t.Fatalf("removed %v, %v", removed, err)
	}
	return r
}

func (r *repackRig) shelf(records *gcroot.Dir) *release.Indexes {
	var access locate.Access
	return &release.Indexes{Store: locate.Path(filepath.Join(r.dir, "default.castr")), Records: records, Bucket: access.FileBucket}
}

func (r *repackRig) repack(ctx context.Context, packs store.Bucket, records *gcroot.Dir) (release.RepackReport, error) {
	return release.Repack(ctx, r.shelf(records), release.RepackOptions{Chunks: new(mem.Bucket), Packs: packs, Size: pack.MinSize})
}

// check collects all garbage, and checks that each published index can be read from packs by its map.
func (r *repackRig) check(t *testing.T, what string) {
	t.Helper()
	records := openRecords(t, r.records)
	if err := records.Manage(t.Context()); err != nil {
		t.Fatal(err)
	}
	for o, err := range r.records.List(t.Context(), "leases/") { // they have expired
		if err := cmp.Or(err, r.records.Remove(t.Context(), o.Name)); err != nil {
			t.Fatal(err)
		}
	}
	items, _, err := r.shelf(records).Items(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.shelf(records).RemoveDuplicates(t.Context(), items); err != nil {
		t.Fatal(err)
	}
	if _, err := keep.Collect(t.Context(), new(mem.Bucket), records, keep.CollectOptions{Packs: r.packs}); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	beside := local.At(r.dir, local.Options{})
	for _, name := range r.names {
		file, err := beside.Read(t.Context(), name, nil, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		x, err := blob.Decode(bytes.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		m, err := release.ReadMap(t.Context(), beside, mapName(t, name, x), x)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range x.All() {
			want := []store.Want{{Digest: c.Digest, Dst: make([]byte, c.Size)}}
			pack.NewDir(r.packs, x.Algorithm(), pack.Options{}).Get(t.Context(), m.Find, want, func(_ int, err error) {
				if err != nil {
					t.Fatalf("%s: a chunk of %s: %v", what, name, err)
				}
			})
		}
	}
}

// TestRepackFails fails each operation of a repacking in turn. All that is published stays readable by its map, also when
// gc without a grace follows. A second repacking succeeds.
func TestRepackFails(t *testing.T) {
	for _, where := range []string{"packs", "gc roots"} {
		for _, how := range []string{ends, fails, loses} {
			for at := int64(1); ; at++ {
				r := newRepackRig(t)
				inPacks, inRecords := &faulty{Full: r.packs}, &faulty{Full: r.records}
				f := map[string]*faulty{"packs": inPacks, "gc roots": inRecords}[where]
				f.at, f.how = at, how
				what := fmt.Sprintf("%s %s at operation %d", where, how, at)
				report, err := r.repack(t.Context(), inPacks, openRecords(t, inRecords))
				if err == nil && (report.Packs == 0 || report.Indexes == 0 || report.Written == 0) {
					t.Errorf("%s: %+v", what, report)
				}
				reached := f.reached()
				r.check(t, what)
				if _, err := r.repack(t.Context(), r.packs, openRecords(t, r.records)); err != nil {
					t.Errorf("%s: repacking again: %v", what, err)
				}
				r.check(t, what+", and again")
				if !reached {
					break
				}
			}
		}
	}
}

// TestRepackBeforeIndex: the gc root of an index that is not there yet stays, with its packs: its publisher may be about to
// publish the map that names them.
func TestRepackBeforeIndex(t *testing.T) {
	r := newRepackRig(t)
	index, hidden := filepath.Join(r.dir, "y.caibx"), filepath.Join(r.dir, "hidden")
	if err := os.Rename(index, hidden); err != nil {
		t.Fatal(err)
	}
	report, err := r.repack(t.Context(), r.packs, openRecords(t, r.records))
	if err != nil || report.Packs == 0 || report.Indexes != 1 {
		t.Errorf("repacking: %+v, %v", report, err)
	}
	if err := os.Rename(hidden, index); err != nil {
		t.Fatal(err)
	}
	r.check(t, "an index that was published during the repacking")
}

// TestRootGone: a gc root that another gc removes after it was listed fails neither a publisher nor a collector.
func TestRootGone(t *testing.T) {
	old, next := releases()
	s := newPackedStore(t, new(mem.Bucket))
	roots := &losing{Bucket: new(mem.Bucket)}
	var err error
	if s.records, err = gcroot.Open(roots, gcroot.Options{}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, _, err := s.publish(t.Context(), old, "x.caibx"); err != nil {
			t.Fatal(err)
		}
	}
	l, err := s.records.List(t.Context())
	if err != nil || len(l.Roots) != 2 {
		t.Fatalf("%+v, %v", l, err)
	}
	older := l.Roots[0]
	if l.Roots[1].Number < older.Number {
		older = l.Roots[1]
	}
	for name, job := range map[string]func() error{
		"a publisher": func() error { _, _, err := s.publish(t.Context(), next, "y.caibx"); return err },
		"a collector": func() error {
			_, err := keep.Collect(t.Context(), new(mem.Bucket), s.records, keep.CollectOptions{Packs: s.bucket})
			return err
		},
	} {
		text, err := roots.Bucket.Read(t.Context(), older.Name, nil, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		roots.name = older.Name
		if err := job(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if roots.name != "" {
			t.Errorf("%s has not read the gc root", name)
		}
		if err := roots.Write(t.Context(), older.Name, text); err != nil {
			t.Fatal(err)
		}
		s.checkPublished(t, "x.caibx")
	}
}

// losing is a bucket of which an object is removed when it is read.
type losing struct {
	*mem.Bucket
	name string
}

func (b *losing) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	if name == b.name {
		b.name = ""
		if err := b.Remove(ctx, name); err != nil {
			return nil, err
		}
	}
	return b.Bucket.Read(ctx, name, dst, limit)
}
