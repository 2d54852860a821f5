package export

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/blob/ingest"
	"cairn/blob/release"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/dashboard"
	"cairn/internal/test/mem"
	"cairn/nbd"
	"cairn/seed/learn"
	"cairn/store"
	"cairn/store/local"
	"cairn/store/locate"
	"cairn/testimages"
)

var smallChunks = chunker.Params{Min: 4 << 10, Avg: 16 << 10, Max: 64 << 10}

// publishBytes publishes an image as publishImage does.
func publishBytes(t *testing.T, dir, name string, image []byte, params chunker.Params) *blob.Index {
	t.Helper()
	bucket, err := local.Create(filepath.Join(dir, "default.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := store.NewWriter(bucket, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	x, _, err := ingest.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), w, ingest.Options{Params: params})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, name+release.IndexSuffix), x.Encode())
	return x
}

// publishIndex writes the index of some bytes, which are in no store, to a file.
func publishIndex(t *testing.T, image []byte) locate.Location {
	t.Helper()
	w, err := store.NewWriter(new(mem.Bucket), store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	x, _, err := ingest.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), w, ingest.Options{Params: smallChunks})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "seed"+release.IndexSuffix)
	writeFile(t, path, x.Encode())
	return locate.Path(path)
}

// countNew returns the number of different chunks of x that an image does not hold.
func countNew(t *testing.T, x *blob.Index, old []byte) (n int64) {
	t.Helper()
	o := scan.Like(x)
	o.Workers = 1
	held, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(old)), o)
	if err != nil {
		t.Fatal(err)
	}
	table, seen := blob.NewTable(held), map[blob.Digest]bool{}
	for i, c := range x.All() {
		if !x.IsZero(i) && table.Find(c.Digest) < 0 && !seen[c.Digest] {
			seen[c.Digest] = true
			n++
		}
	}
	return n
}

// noteBook collects notes.
type noteBook struct {
	mu    sync.Mutex
	notes []learn.Note
}

func (b *noteBook) add(n learn.Note) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.notes = append(b.notes, n)
}

// find returns a note of a type, or nil.
func find[T any](b *noteBook) *T {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.notes {
		if is, ok := n.(T); ok {
			return &is
		}
	}
	return nil
}

// openSeeded opens a catalogue of the image "new" in a directory, with the seeds at some places, and waits until
// they are learned.
func openSeeded(t *testing.T, dir string, o Options, places ...learn.Place) (*Catalogue, *noteBook) {
	t.Helper()
	book := &noteBook{}
	o.Learn.Notes, o.Learn.Workers = book.add, 1
	o.Memory = 64 << 20
	o.Seeds = o.Learn.Open(places)
	t.Cleanup(func() { learn.Close(o.Seeds) }) // after the catalogue is closed
	c := openCatalogue(t, o)
	awaitLearned(t, c)
	return c, book
}

func awaitLearned(t *testing.T, c *Catalogue) {
	t.Helper()
	s := c.images.seeds
	if err := s.scanning.Acquire(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	s.scanning.Release(1)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		waits := false
		for _, seed := range s.status() {
			waits = waits || seed.State == dashboard.SeedLearning
		}
		switch {
		case !waits:
			return
		case time.Now().After(deadline):
			t.Fatalf("the seeds are not learned: %+v", s.status())
		}
	}
}

// countChunkRequests returns the number of chunks that were requested from the stores.
func countChunkRequests(c *Catalogue) (n int64) {
	for _, st := range c.images.openStores() {
		for _, r := range st.status().Requests {
			n += r.Count
		}
	}
	return n
}

// TestSeeds: only the chunks that no seed holds are requested from the store, and whatever the seeds hold, the bytes
// are right.
func TestSeeds(t *testing.T) {
	dir := t.TempDir()
	old := testimages.Random(1, 2_000_000)
	image := append(append(testimages.Random(2, 100_000), old[:1_200_000]...), testimages.Random(3, 200_000)...)
	x := publishBytes(t, dir, "new", image, smallChunks)
	all, fresh := countNew(t, x, nil), countNew(t, x, old)
	garbage := testimages.Random(4, len(old))
	file := func(data []byte) string {
		path := filepath.Join(t.TempDir(), "seed")
		writeFile(t, path, data)
		return path
	}
	oldIndex := publishIndex(t, old)
	images := t.TempDir()
	writeFile(t, filepath.Join(images, "old.img"), old)
	writeFile(t, filepath.Join(images, "other.img"), garbage)
	absent := filepath.Join(dir, "absent")
	for name, test := range map[string]struct {
		places  []learn.Place
		fetched int64
		failed  bool // the seed is not read any more
	}{
		"none":                   {nil, all, false},
		"with its index":         {[]learn.Place{{Path: file(old), Index: oldIndex}}, fresh, false},
		"scanned":                {[]learn.Place{{Path: file(old)}}, fresh, false},
		"a directory":            {[]learn.Place{{Path: images}}, fresh, false},
		"absent":                 {[]learn.Place{{Path: absent}}, all, false},
		"other bytes":            {[]learn.Place{{Path: file(garbage)}}, all, false},
		"index of other bytes":   {[]learn.Place{{Path: file(old), Index: publishIndex(t, garbage)}}, all, false},
		"bytes of other index":   {[]learn.Place{{Path: file(garbage), Index: oldIndex}}, all, true},
		"missing index":          {[]learn.Place{{Path: file(old), Index: locate.Path(absent)}}, fresh, false},
		"shorter than its index": {[]learn.Place{{Path: file(old[:100]), Index: oldIndex}}, all, true},
		"a wrong one before":     {[]learn.Place{{Path: file(garbage), Index: oldIndex}, {Path: file(old)}}, fresh, true},
	} {
		t.Run(name, func(t *testing.T) {
			index := locate.Path(filepath.Join(dir, "new.caibx"))
			c, book := openSeeded(t, dir, Options{Indexes: []locate.Location{index}}, test.places...)
			checkExport(t, c, "new", image)
			if n := countChunkRequests(c); n != test.fetched {
				t.Errorf("%d chunks were requested from the store, want %d", n, test.fetched)
			}
			left := find[learn.SeedLeftOut](book)
			if test.failed && (left == nil || !errors.Is(left.Err, errWrongSeed)) {
				t.Errorf("the notes are %+v", book.notes)
			}
			for i, s := range c.images.seeds.status() {
				if failed := s.State == dashboard.SeedFailed; failed != (test.failed && i == 0) {
					t.Errorf("seed %d is %+v", i, s)
				}
			}
			checkSeedStatus(t, c, all-test.fetched)
		})
	}
}

// checkSeedStatus checks the counts of the status after a read of the whole image.
func checkSeedStatus(t *testing.T, c *Catalogue, chunks int64) {
	t.Helper()
	s := NewMonitor(&nbd.Server{Exports: c}, c, "v").Status()
	e := s.Exports[0]
	var read int64
	for _, seed := range s.Seeds {
		read += seed.Chunks
	}
	if e.FromSeeds != chunks || read != chunks || (e.SeedBytes > 0) != (chunks > 0) || e.LocalInSeeds != 0 || e.Local != e.Size {
		t.Errorf("%d of %d chunks came from seeds, want %d; the export is %+v", e.FromSeeds, read, chunks, e)
	}
}

// TestSeedTiers: the status and the metadata context show what seeds may have, before anything is read.
func TestSeedTiers(t *testing.T) {
	dir := t.TempDir()
	image := testimages.Random(1, 500_000)
	publishBytes(t, dir, "new", image, smallChunks)
	path := filepath.Join(t.TempDir(), "seed")
	writeFile(t, path, image)
	index := locate.Path(filepath.Join(dir, "new.caibx"))
	c, _ := openSeeded(t, dir, Options{Indexes: []locate.Location{index}}, learn.Place{Path: path})
	e, err := c.Open(t.Context(), "new")
	if err != nil {
		t.Fatal(err)
	}
	states := func() (bits []uint32) {
		for s := range e.Device.(nbd.Describer).States(contextCached, 0, e.Device.Size()) {
			bits = append(bits, s.Bits)
		}
		return bits
	}
	if got := states(); len(got) != 2 || got[0] != stateCached|stateInSeed || got[1] != stateCached {
		t.Errorf("before a read, the states are %v, want the seed's and the padding's", got)
	}
	m := NewMonitor(&nbd.Server{Exports: c}, c, "v")
	if e := m.Status().Exports[0]; e.LocalInSeeds != e.Size || e.Local != e.Size || e.SeedMap == "" {
		t.Errorf("before a read, the export is %+v", e)
	}
	checkExport(t, c, "new", image)
	if got := states(); len(got) != 1 && (got[0]|got[1]) != stateCached {
		t.Errorf("after a read of all, the states are %v", got)
	}
	if countChunkRequests(c) != 0 {
		t.Error("the store was asked")
	}
}

// TestSeedChanges: a seed that changes while it is served costs the changed chunks, each once, and one that is removed
// costs nothing.
func TestSeedChanges(t *testing.T) {
	dir := t.TempDir()
	image := testimages.Random(1, 3_000_000)
	x := publishBytes(t, dir, "new", image, smallChunks)
	path := filepath.Join(t.TempDir(), "seed")
	writeFile(t, path, image)
	index := locate.Path(filepath.Join(dir, "new.caibx"))
	o := Options{Indexes: []locate.Location{index}}
	c, _ := openSeeded(t, dir, o, learn.Place{Path: path, Index: index})
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for i := 0; i < x.Len(); i += 20 {
		if _, err := f.WriteAt([]byte{^image[x.At(i).Offset]}, x.At(i).Offset); err != nil {
			t.Fatal(err)
		}
		changed++
	}
	if err := errors.Join(f.Close(), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	checkExport(t, c, "new", image)
	if n := countChunkRequests(c); n != int64(changed) {
		t.Errorf("%d chunks were requested from the store, want the %d changed ones", n, changed)
	}
	if s := c.images.seeds.status()[0]; s.State != dashboard.SeedReady || s.Wrong != int64(changed) {
		t.Errorf("the seed is %+v", s)
	}
}

// TestSeedFormats: a seed is scanned once for each combination of algorithm and chunk sizes, also for the images of a
// directory.
func TestSeedFormats(t *testing.T) {
	dir, fixed := t.TempDir(), t.TempDir()
	image := testimages.Random(1, 2_000_000)
	large := chunker.Params{Min: 8 << 10, Avg: 32 << 10, Max: 128 << 10}
	publishBytes(t, fixed, "a", image, smallChunks)
	publishBytes(t, dir, "b", image[500_000:], smallChunks)
	publishBytes(t, dir, "c", image, large)
	path := filepath.Join(t.TempDir(), "seed")
	writeFile(t, path, image)
	index := locate.Path(filepath.Join(fixed, "a.caibx"))
	log := &syncLog{}
	c, book := openSeeded(t, dir, Options{Indexes: []locate.Location{index}, Directory: dir, Log: log.logger()},
		learn.Place{Path: path, Index: index})
	checkExport(t, c, "a", image)
	if n := countChunkRequests(c); n != 0 {
		t.Errorf("%d chunks were requested from the store for an image that is the seed", n)
	}
	checkExport(t, c, "b", image[500_000:])
	first := countChunkRequests(c)
	if first > 2 { // the first chunks, until the cuts are the same
		t.Errorf("%d chunks were requested from the store for a part of the seed", first)
	}
	if find[learn.IndexLeftOut](book) != nil {
		t.Error("the index of the seed is left out")
	}
	for range 2 {
		e, err := c.Open(t.Context(), "c")
		if err != nil {
			t.Fatal(err)
		}
		e.Release()
	}
	for len(*c.images.seeds.contents.Load()) < 2 {
		time.Sleep(time.Millisecond)
	}
	checkExport(t, c, "c", image)
	if n := countChunkRequests(c); n != first {
		t.Errorf("%d chunks were requested from the store for other chunk sizes", n-first)
	}
	if n := bytes.Count([]byte(log.String()), []byte(`msg="scanning a seed"`)); n != 1 {
		t.Errorf("%d scans, want 1\n%v", n, log)
	}
}

// stuckReader answers no read before it is freed.
type stuckReader struct{ free chan struct{} }

func (r stuckReader) ReadAt(p []byte, off int64) (int, error) {
	<-r.free
	return len(p), nil
}

// TestSeedWithoutAnswer: a seed that does not answer is given up after seedPatience, and not read before it has
// answered.
func TestSeedWithoutAnswer(t *testing.T) {
	image := make([]byte, 100_000)
	copy(image, testimages.Random(1, 50_000))
	o := scan.Options{Params: smallChunks, Workers: 1}
	x, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), o)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		stuck := stuckReader{make(chan struct{})}
		s := newSeeds(Options{Log: new(syncLog).logger()}, func(int64) {})
		s.opened = []*openSeed{{Opened: learn.Opened{Name: "stuck"}, data: stuck}}
		s.addContent(0, x)
		c := x.At(0)
		dst := make([]byte, c.Size)
		begun := time.Now()
		if s.Copy(x.Algorithm(), c.Digest, dst) {
			t.Error("a chunk was read")
		}
		if took := time.Since(begun); took != seedPatience {
			t.Errorf("the read took %v, want %v", took, seedPatience)
		}
		if s.MayCopy(x.Algorithm(), c.Digest, c.Size) || s.Copy(x.Algorithm(), c.Digest, dst) || time.Since(begun) != seedPatience {
			t.Error("the seed is read again")
		}
		close(stuck.free)
		synctest.Wait()
		s.opened[0].data = bytes.NewReader(image)
		if !s.MayCopy(x.Algorithm(), c.Digest, c.Size) || !s.Copy(x.Algorithm(), c.Digest, dst) {
			t.Error("the seed is not read again after its answer")
		}
	})
}

// TestSeedFormatsAreFew: the owner of a watched directory causes a limited number of scans.
func TestSeedFormatsAreFew(t *testing.T) {
	s := newSeeds(Options{Log: new(syncLog).logger()}, func(int64) {})
	s.opened = []*openSeed{{}}
	added := 0
	for n := range 2 * maxFormats {
		o := scan.Options{Params: smallChunks, Workers: 1}
		o.Params.Max += int64(n) * 4096
		x, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(nil)), o)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if s.addFormat(x) {
				added++
			}
		}
	}
	if added != maxFormats {
		t.Errorf("the seeds are learned for %d formats, want %d", added, maxFormats)
	}
}
