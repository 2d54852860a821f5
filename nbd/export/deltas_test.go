package export

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/blob/delta/deltadir"
	"cairn/blob/release"
	"cairn/blob/view"
	"cairn/blob/view/fetch"
	"cairn/chunker"
	"cairn/internal/dashboard"
	"cairn/internal/test/mem"
	"cairn/nbd"
	"cairn/seed/learn"
	"cairn/store"
	"cairn/store/local"
	"cairn/store/locate"
	"cairn/store/supply"
	"cairn/testimages"
)

// tinyChunks are quick to encode.
var tinyChunks = chunker.Params{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}

// releases are two images, of which every sixth KiB differs, and the delta between them. Most chunks are new, and
// half of them are much smaller in the delta.
type releases struct {
	files           map[string][]byte // of the server: the indexes, a store and a directory of deltas
	old, new        []byte
	oldIndex, index *blob.Index
	delta, list     []byte
	chunks, saved   int64  // that the delta makes, and the bytes that it saves
	deltaAt, listAt string // paths on the server
	oldFile         string // has the old image
	oldIndexFile    string
}

var (
	publishOnce sync.Once
	published   releases
)

func newReleases(t *testing.T) releases {
	t.Helper()
	publishOnce.Do(func() { published = publishReleases(t) })
	r := published
	dir := t.TempDir()
	r.oldFile, r.oldIndexFile = filepath.Join(dir, "old.img"), filepath.Join(dir, "old.caibx")
	writeFile(t, r.oldFile, r.old)
	writeFile(t, r.oldIndexFile, r.oldIndex.Encode())
	return r
}

func publishReleases(t *testing.T) (r releases) {
	t.Helper()
	r.old = testimages.Random(1, 6_000_000)
	r.new = bytes.Clone(r.old)
	fresh := testimages.Random(2, len(r.new))
	for at := 0; at+1024 <= len(r.new); at += 6144 {
		copy(r.new[at:at+1024], fresh[at:])
	}
	dir := t.TempDir()
	r.oldIndex = publishBytes(t, dir, "old", r.old, tinyChunks)
	r.index = publishBytes(t, dir, "new", r.new, tinyChunks)
	bucket, err := local.Create(filepath.Join(dir, "default.cadelta"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var images []*deltadir.Image
	for i, x := range []*blob.Index{r.oldIndex, r.index} {
		m, err := deltadir.OpenImage(t.Context(), x, deltadir.Source{File: bytes.NewReader([][]byte{r.old, r.new}[i])})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		images = append(images, m)
	}
	result, err := deltadir.Publish(t.Context(), bucket, images[0], images[1], deltadir.Options{Workers: 2})
	if err != nil || result.Outcome != deltadir.Made || result.FileBytes < 600<<10 { // too large for the first request
		t.Fatalf("Publish = %+v, %v", result, err)
	}
	r.chunks, r.saved = int64(result.Chunks), result.ChunkBytes-result.FileBytes
	r.files = map[string][]byte{}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			r.files[strings.TrimPrefix(path, dir)], err = os.ReadFile(path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	r.deltaAt = "/default.cadelta/" + release.DeltaName(r.index.Digest(), r.oldIndex.Digest())
	r.listAt = "/default.cadelta/" + release.DeltaListName(r.index.Digest())
	r.delta, r.list = r.files[r.deltaAt], r.files[r.listAt]
	return r
}

// deltaServer serves the files of releases, and counts what it sends.
type deltaServer struct {
	*httptest.Server
	noRanges bool
	sent     atomic.Int64 // bytes of bodies
	requests atomic.Int64 // for the delta
	mu       sync.Mutex
	files    map[string][]byte // nil is an absent one
}

func (r releases) serve(t *testing.T) *deltaServer {
	t.Helper()
	s := &deltaServer{files: maps.Clone(r.files)}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.HasSuffix(q.URL.Path, ".cadelta") {
			s.requests.Add(1)
		}
		if s.noRanges {
			q.Header.Del("Range")
		}
		s.mu.Lock()
		data := s.files[q.URL.Path]
		s.mu.Unlock()
		counted := &countingWriter{w, &s.sent}
		if data == nil {
			http.NotFound(counted, q)
			return
		}
		http.ServeContent(counted, q, "", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *deltaServer) replace(path string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = data
}

func (s *deltaServer) at(t *testing.T, name string) locate.Location {
	t.Helper()
	l, err := locate.Parse(s.URL + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

type countingWriter struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.sent.Add(int64(n))
	return n, err
}

// awaitLog waits until a text is logged.
func awaitLog(t *testing.T, log *syncLog, text string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !strings.Contains(log.String(), text); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q is not logged:\n%s", text, log)
		}
	}
}

const (
	logUsed    = `msg="a delta is used"`
	logUnused  = `msg="no delta is used"`
	logDropped = `msg="the delta is not used any more`
)

// noSilence is a rate limit with which the delta has no time limit, so that a busy machine does not change the outcome.
const noSilence = 1 << 40

// flip returns a copy of p in which a byte of every step bytes from from on is changed.
func flip(p []byte, from, step int) []byte {
	p = bytes.Clone(p)
	for at := from; at < len(p); at += step {
		p[at] ^= 0x10
	}
	return p
}

// TestDeltas: with a delta against a seed, less is downloaded. Whatever is wrong with the delta, the seed or the server,
// the bytes are right.
func TestDeltas(t *testing.T) {
	r := newReleases(t)
	changedFile, garbageFile := filepath.Join(t.TempDir(), "seed"), filepath.Join(t.TempDir(), "seed")
	writeFile(t, changedFile, flip(r.old, 300_000, 100_000))
	writeFile(t, garbageFile, testimages.Random(7, len(r.old)))
	oldIndex := locate.Path(r.oldIndexFile)
	known, scanned := learn.Place{Path: r.oldFile, Index: oldIndex}, learn.Place{Path: r.oldFile}
	replace := func(path string, data []byte) func(*deltaServer) {
		return func(s *deltaServer) { s.replace(path, data) }
	}
	head := len(r.delta) - 600_000 // before most payloads
	for name, test := range map[string]struct {
		place    learn.Place
		options  Options
		change   func(s *deltaServer)
		log      string // to wait for; "" for none
		min, max int64  // chunks from the delta, as a percentage of those in it
	}{
		"with its index":  {place: known, log: logUsed, min: 50, max: 100},
		"scanned":         {place: scanned, log: logUsed, min: 50, max: 100},
		"changed since":   {place: learn.Place{Path: changedFile, Index: oldIndex}, log: logUsed, min: 50, max: 99},
		"other bytes":     {place: learn.Place{Path: garbageFile, Index: oldIndex}, log: logUsed},
		"nothing alike":   {place: learn.Place{Path: garbageFile}, log: logUnused},
		"switched off":    {place: known, options: Options{NoDelta: true}},
		"without ranges":  {place: known, change: func(s *deltaServer) { s.noRanges = true }, log: logUnused},
		"no list":         {place: known, change: replace(r.listAt, nil)},
		"damaged list":    {place: known, change: replace(r.listAt, flip(r.list, 99, 1<<20)), log: logUnused},
		"no file":         {place: known, change: replace(r.deltaAt, nil)},
		"damaged table":   {place: known, change: replace(r.deltaAt, flip(r.delta, 300, 1<<30)), log: logUnused},
		"short file":      {place: known, change: replace(r.deltaAt, r.delta[:head]), log: logUnused},
		"a page":          {place: known, change: replace(r.deltaAt, bytes.Repeat([]byte("<html>"), 99999)), log: logUnused},
		"damaged payload": {place: known, change: replace(r.deltaAt, flip(r.delta, head, 1<<30)), log: logUsed, min: 50, max: 100},
		"only garbage":    {place: known, change: replace(r.deltaAt, flip(r.delta, head, 512)), log: logDropped, max: 30},
	} {
		t.Run(name, func(t *testing.T) {
			server, log := r.serve(t), &syncLog{}
			if test.change != nil {
				test.change(server)
			}
			o := test.options
			o.Supply.RateLimit = noSilence
			o.Indexes, o.Log = []locate.Location{server.at(t, "new.caibx")}, log.logger()
			c, _ := openSeeded(t, t.TempDir(), o, test.place)
			if test.log != "" && test.log != logDropped {
				awaitLog(t, log, test.log)
			}
			if test.log == logDropped {
				awaitLog(t, log, logUsed)
			}
			checkExport(t, c, "new", r.new)
			if test.log == logDropped {
				awaitLog(t, log, logDropped)
			}
			e := NewMonitor(&nbd.Server{Exports: c}, c, "v").Status().Exports[0]
			if e.FromDeltas*100 < test.min*r.chunks || e.FromDeltas*100 > test.max*r.chunks || (e.DeltaBytes > 0) != (e.FromDeltas > 0) {
				t.Errorf("%d chunks of %d are from the delta, want %d to %d %%\n%v", e.FromDeltas, r.chunks, test.min, test.max, log)
			}
			if test.min > 0 && server.sent.Load() > int64(len(r.new))-r.saved/3 {
				t.Errorf("%d bytes were sent for an image of %d", server.sent.Load(), len(r.new))
			}
			if e.InDeltas != 0 || e.Local != e.Size {
				t.Errorf("after a read of all, the export is %+v", e)
			}
		})
	}
}

// TestDeltaTier: metadata context and status show the bytes that a delta may make, before anything is read.
func TestDeltaTier(t *testing.T) {
	r := newReleases(t)
	server, log := r.serve(t), &syncLog{}
	o := Options{Indexes: []locate.Location{server.at(t, "new.caibx")}, Log: log.logger()}
	c, _ := openSeeded(t, t.TempDir(), o, learn.Place{Path: r.oldFile})
	awaitLog(t, log, logUsed)
	e, err := c.Open(t.Context(), "new")
	if err != nil {
		t.Fatal(err)
	}
	bytesIn := map[uint32]uint64{}
	for s := range e.Device.(nbd.Describer).States(contextCached, 0, e.Device.Size()) {
		bytesIn[s.Bits] += uint64(s.Length)
	}
	m := NewMonitor(&nbd.Server{Exports: c}, c, "v")
	d := m.Status().Exports[0]
	if int64(bytesIn[stateInDelta]) < r.saved || int64(bytesIn[stateInDelta]) != d.InDeltas || d.Local+d.InDeltas > d.Size {
		t.Errorf("before a read, the states are %v, and the export is %+v", bytesIn, d)
	}
	if n := countChunkRequests(c); n != 0 {
		t.Errorf("%d chunks were requested", n)
	}
}

// TestDeltaOfDirectory: an image of a directory has its delta while it is open. Its memory is counted.
func TestDeltaOfDirectory(t *testing.T) {
	r := newReleases(t)
	server, log, dir := r.serve(t), &syncLog{}, t.TempDir()
	writeFile(t, filepath.Join(dir, "new.caibx"), r.index.Encode())
	var memory atomic.Int64
	o := Options{Directory: dir, Stores: [][]locate.Location{{server.at(t, "default.castr")}}, Log: log.logger(),
		IndexMemory: memory.Store}
	o.Memory, o.Seeds = 64<<20, o.Learn.Open([]learn.Place{{Path: r.oldFile, Index: locate.Path(r.oldIndexFile)}})
	t.Cleanup(func() { learn.Close(o.Seeds) }) // after the catalogue is closed
	c := openCatalogue(t, o)
	e, err := c.Open(t.Context(), "new")
	if err != nil {
		t.Fatal(err)
	}
	awaitLog(t, log, logUsed)
	forDeltas := func() int64 {
		c.images.mu.Lock()
		defer c.images.mu.Unlock()
		return c.images.deltaMemory
	}
	if n := forDeltas(); n == 0 || memory.Load() < n {
		t.Errorf("%d bytes for deltas, of %d in all", n, memory.Load())
	}
	checkExport(t, c, "new", r.new)
	e.Release()
	if err := os.Remove(filepath.Join(dir, "new.caibx")); err != nil {
		t.Fatal(err)
	}
	for forDeltas() != 0 { // the directory closes the image at its next scan
		if _, err := c.All(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestDeltaMemory: the tables of all deltas have a limit.
func TestDeltaMemory(t *testing.T) {
	im := newImages(Options{Log: new(syncLog).logger()})
	defer im.closeAll()
	if !im.addDeltaMemory(maxDeltaMemory) || im.addDeltaMemory(1) {
		t.Error("the limit is not maxDeltaMemory")
	}
	if want := int64(maxDeltaMemory + im.decoders.Len()*memoryPerDecoder); im.indexMemory != want {
		t.Errorf("%d bytes are counted, want %d", im.indexMemory, want)
	}
	if im.addDeltaMemory(-maxDeltaMemory); !im.addDeltaMemory(1) {
		t.Error("no memory is free after a delta was closed")
	}
}

// awayBucket is a bucket whose server is unavailable for some requests.
type awayBucket struct {
	*mem.Bucket
	failures int
}

func (b *awayBucket) Stream(ctx context.Context, name string, limit int64, use func(io.Reader) error) error {
	if b.failures--; b.failures >= 0 {
		return store.ErrUnavailable
	}
	return store.Stream(ctx, b.Bucket, name, limit, use)
}

// TestDeltaWhileUnavailable: a delta is found when its server answers.
func TestDeltaWhileUnavailable(t *testing.T) {
	r := newReleases(t)
	synctest.Test(t, func(t *testing.T) {
		dir := &awayBucket{new(mem.Bucket), 3}
		for path, data := range map[string][]byte{r.deltaAt: r.delta, r.listAt: r.list} {
			if err := dir.Write(t.Context(), strings.TrimPrefix(path, "/default.cadelta/"), data); err != nil {
				t.Fatal(err)
			}
		}
		log := &syncLog{}
		im := newImages(Options{Log: log.logger(), Memory: 1 << 20})
		defer im.closeAll()
		im.seeds.opened = []*openSeed{{Opened: learn.Opened{Name: "old"}, data: bytes.NewReader(r.old)}}
		im.seeds.addContent(0, r.oldIndex)
		d := &deltas{dirs: []store.Reader{dir}, link: supply.NewFixedLink(1)}
		d.all.Store(new([]*imageDelta))
		x := image{index: r.index, at: locate.Path("new.caibx"),
			Image: view.New(r.index, im.cache.NewSource(store.NewChunks(dir, r.index.Algorithm()), fetch.SourceOptions{}), view.Options{})}
		began := time.Now()
		found := im.findDelta(t.Context(), x, d)
		if took := time.Since(began); found == nil || took < indexPause {
			t.Fatalf("after %v the delta is %v\n%v", took, found, log)
		}
		for i, c := range r.index.All() {
			dst := make([]byte, c.Size)
			if may := d.MayMake(c.Digest, c.Size); may != d.Make(t.Context(), c.Digest, dst) || may && !bytes.Equal(dst, r.new[c.Offset:c.End()]) {
				t.Errorf("chunk %d may be made: %v, and differs", i, may)
			}
		}
	})
}

// TestDeltaWithoutSeedAnswer: while the seed does not answer, or after it was given up, its delta is not used.
func TestDeltaWithoutSeedAnswer(t *testing.T) {
	r := newReleases(t)
	server, log := r.serve(t), &syncLog{}
	o := Options{Indexes: []locate.Location{server.at(t, "new.caibx")}, Log: log.logger()}
	c, _ := openSeeded(t, t.TempDir(), o, learn.Place{Path: r.oldFile})
	awaitLog(t, log, logUsed)
	content := (*c.images.seeds.contents.Load())[0]
	content.late.Add(1)
	before := server.requests.Load()
	e, err := c.Open(t.Context(), "new")
	if err != nil {
		t.Fatal(err)
	}
	part := make([]byte, 100_000)
	if err := e.Device.ReadAt(t.Context(), part, 0); err != nil || !bytes.Equal(part, r.new[:len(part)]) {
		t.Errorf("the read failed or differs: %v", err)
	}
	if n := server.requests.Load() - before; n != 0 {
		t.Errorf("%d requests for the delta", n)
	}
	content.late.Add(-1)
	checkExport(t, c, "new", r.new)
	if server.requests.Load() == before {
		t.Error("the delta is not used after the seed has answered")
	}
	if _, held := c.images.seeds.asSeeds(r.index.Algorithm()); len(held) != 1 {
		t.Fatalf("%d seeds", len(held))
	} else {
		c.images.seeds.dropContent(content, store.ErrDenied)
		if _, err := held[0].Data.ReadAt(make([]byte, 10), 0); err == nil {
			t.Error("a seed that was given up is read")
		}
	}
	if s := c.images.seeds.status()[0]; s.State != dashboard.SeedFailed {
		t.Errorf("the seed is %+v", s)
	}
}
