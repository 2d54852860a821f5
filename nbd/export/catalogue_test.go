package export

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/blob/ingest"
	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/chunker"
	"cairn/nbd"
	"cairn/nbd/nbdtest"
	"cairn/store"
	"cairn/store/local"
	"cairn/store/locate"
	"cairn/testimages"
)

// publishImage writes an image of random bytes into a directory, with its index as NAME.caibx and
// its chunks in default.castr. It returns the image and its index.
func publishImage(t *testing.T, dir, name string, seed uint64) ([]byte, *blob.Index) {
	t.Helper()
	bucket, err := local.Create(filepath.Join(dir, "default.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := store.NewWriter(bucket, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	image := testimages.Random(seed, 300_000)
	params := chunker.Params{Min: 4 << 10, Avg: 16 << 10, Max: 64 << 10}
	x, _, err := ingest.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), w, ingest.Options{Params: params})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, name+release.IndexSuffix), x.Encode())
	return image, x
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path+".new", data, 0o600), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
}

// syncLog is a log that is safe for concurrent use.
type syncLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *syncLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *syncLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *syncLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// openCatalogue opens a catalogue, and closes it at the end of the test.
func openCatalogue(t *testing.T, o Options) *Catalogue {
	t.Helper()
	c, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// checkExport opens an export, reads all of it and releases it.
func checkExport(t *testing.T, c *Catalogue, name string, want []byte) {
	t.Helper()
	e, err := c.Open(t.Context(), name)
	if err != nil {
		t.Fatalf("Open(%q): %v", name, err)
	}
	if e.Release != nil {
		defer e.Release()
	}
	got := make([]byte, len(want))
	if err := e.Device.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("reading %q: %v, or other bytes", name, err)
	}
}

// TestCatalogue: given indexes take precedence over the directory, and each image has its names.
func TestCatalogue(t *testing.T) {
	fixed, dir := t.TempDir(), t.TempDir()
	a, ax := publishImage(t, fixed, "a", 1)
	publishImage(t, dir, "a", 2)
	b, bx := publishImage(t, dir, "b", 3)
	index := locate.Path(filepath.Join(fixed, "a.caibx"))
	c := openCatalogue(t, Options{Indexes: []locate.Location{index}, Directory: dir})
	for name, want := range map[string][]byte{
		"": a, "a": a, "a@" + ax.Digest().String(): a, "b": b, "b@" + bx.Digest().String(): b,
	} {
		checkExport(t, c, name, want)
		if d, err := c.Describe(t.Context(), name); err != nil || d.Device.Size() != paddedSize(int64(len(want))) {
			t.Errorf("Describe(%q) = %+v, %v", name, d, err)
		}
	}
	for _, name := range []string{"c", "b@" + ax.Digest().String(), "../a"} {
		if _, err := c.Open(t.Context(), name); !errors.Is(err, nbd.ErrUnknown) {
			t.Errorf("Open(%q) = %v", name, err)
		}
		if _, err := c.Describe(t.Context(), name); !errors.Is(err, nbd.ErrUnknown) {
			t.Errorf("Describe(%q) = %v", name, err)
		}
	}
	all, err := c.All(t.Context())
	if err != nil || len(all) != 2 || all[0].Name != "a" || all[1].Name != "b" ||
		!strings.Contains(all[0].Description, ax.Digest().String()) {
		t.Errorf("All = %v, %v", all, err)
	}
	if diff := cmp.Diff([]string{"a", ""}, c.Names()); diff != "" {
		t.Error(diff)
	}
}

// TestCatalogueAlone: a catalogue needs neither a directory nor an index.
func TestCatalogueAlone(t *testing.T) {
	dir := t.TempDir()
	a, _ := publishImage(t, dir, "a", 1)
	fixed := openCatalogue(t, Options{Indexes: []locate.Location{locate.Path(filepath.Join(dir, "a.caibx"))}})
	fixed.Run(t.Context()) // returns at once
	checkExport(t, fixed, "", a)
	if _, err := fixed.Open(t.Context(), "b"); !errors.Is(err, nbd.ErrUnknown) {
		t.Errorf("Open = %v", err)
	}
	watched := openCatalogue(t, Options{Directory: dir})
	checkExport(t, watched, "", a)
	if all, err := watched.All(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("All = %v, %v", all, err)
	}
}

// TestOpenFails: Open fails for a missing part, and the error names the part.
func TestOpenFails(t *testing.T) {
	dir := t.TempDir()
	publishImage(t, dir, "a", 1)
	index, none := locate.Path(filepath.Join(dir, "a.caibx")), locate.Path(filepath.Join(dir, "none"))
	for what, tc := range map[string]struct {
		o    Options
		part Part
		is   error
	}{
		"index": {Options{Indexes: []locate.Location{index, none}}, Index, fs.ErrNotExist},
		"store": {Options{Indexes: []locate.Location{index}, Stores: [][]locate.Location{{none}}},
			Stores, store.ErrNotFound},
		"profile":   {Options{Indexes: []locate.Location{index}, Profile: none}, -1, store.ErrNotFound},
		"directory": {Options{Indexes: []locate.Location{index}, Directory: filepath.Join(dir, "none")}, -1, fs.ErrNotExist},
		"names":     {Options{Indexes: []locate.Location{index, index}}, -1, nil},
	} {
		c, err := Open(t.Context(), tc.o)
		if err == nil {
			c.Close()
			t.Errorf("%s: Open succeeded", what)
			continue
		}
		part := Part(-1)
		if e, is := errors.AsType[*Error](err); is {
			part = e.Part
		}
		if part != tc.part || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: Open = %v, part %d, want part %d, %v", what, err, part, tc.part, tc.is)
		}
	}
}

// TestOneImageFails: an image of the directory without its store is an error for its client only.
func TestOneImageFails(t *testing.T) {
	dir := t.TempDir()
	a, _ := publishImage(t, dir, "a", 1)
	publishImage(t, dir, "b", 2)
	writeFile(t, filepath.Join(dir, "c.caibx"), []byte("no index"))
	var logged syncLog
	c := openCatalogue(t, Options{Directory: dir, Log: logged.logger()})
	checkExport(t, c, "a", a)
	read := c.directory.read
	c.directory.read = func(at locate.Location, file io.Reader) (*unopened, error) {
		image, err := read(at, file)
		if at == locate.Path(c.directory.pathOf("b")) {
			image.open = func(context.Context, bool) (*nbd.Export, func(), error) {
				return nil, nil, &Error{Stores, store.ErrNotFound}
			}
		}
		return image, err
	}
	if _, err := c.Open(t.Context(), "b"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Open of the image without a store = %v", err)
	}
	if _, err := c.Open(t.Context(), "c"); !errors.Is(err, nbd.ErrUnknown) || !strings.Contains(err.Error(), "invalid") {
		t.Errorf("Open of an invalid index = %v", err)
	}
	checkExport(t, c, "a", a)
	if n := strings.Count(logged.String(), "an index is ignored"); n != 1 {
		t.Errorf("logged %d times:\n%s", n, logged.String())
	}
}

// TestRecordAndFollow: the chunks that are read are recorded in order, and the recorded profile is
// followed.
func TestRecordAndFollow(t *testing.T) {
	dir := t.TempDir()
	image, x := publishImage(t, dir, "a", 1)
	index := locate.Path(filepath.Join(dir, "a.caibx"))
	var saved *profile.Profile
	c, err := Open(t.Context(), Options{Indexes: []locate.Location{index}, RecordOnce: true,
		Record: func(_ context.Context, p *profile.Profile) error { saved = p; return nil }})
	if err != nil {
		t.Fatal(err)
	}
	e, err := c.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	last := x.At(x.Len() - 1)
	for _, off := range []int64{last.Offset, 0, last.Offset} {
		got := make([]byte, 1)
		if err := e.Device.ReadAt(t.Context(), got, off); err != nil || got[0] != image[off] {
			t.Fatalf("reading at %d: %v", off, err)
		}
	}
	c.Close()
	if saved == nil || len(saved.Entries()) != 2 {
		t.Fatalf("saved is %+v", saved)
	}
	if plan := saved.Plan(x); !slices.Equal(plan.Chunks, []int{x.Len() - 1, 0}) {
		t.Errorf("recorded are %v, want the last and the first of %d", plan.Chunks, x.Len())
	}

	writeFile(t, filepath.Join(dir, "a.caprf"), saved.Encode())
	var logged syncLog
	c = openCatalogue(t, Options{Indexes: []locate.Location{index}, AutoProfile: true, Log: logged.logger()})
	if want := `"prefetching the chunks of a profile" image=a chunks=2 known=2`; !strings.Contains(logged.String(), want) {
		t.Errorf("logged is %s", logged.String())
	}
	checkExport(t, c, "a", image)
}

// TestProfileIsNoCondition: with AutoProfile, an invalid profile is noted and the image is served.
// An invalid Options.Profile is an error. A profile of another image is logged.
func TestProfileIsNoCondition(t *testing.T) {
	dir := t.TempDir()
	image, _ := publishImage(t, dir, "a", 1)
	_, other := publishImage(t, t.TempDir(), "b", 2)
	index, at := locate.Path(filepath.Join(dir, "a.caibx")), filepath.Join(dir, "a.caprf")
	writeFile(t, at, []byte("no profile"))
	var notes []Note
	c := openCatalogue(t, Options{Indexes: []locate.Location{index}, AutoProfile: true,
		Notes: func(n Note) { notes = append(notes, n) }})
	checkExport(t, c, "a", image)
	if len(notes) != 1 {
		t.Fatalf("notes are %v", notes)
	}
	if n, is := notes[0].(ProfileNote); !is || n.Later || !errors.Is(n.Err, profile.ErrInvalid) {
		t.Errorf("the note is %#v", notes[0])
	}
	asked := Options{Indexes: []locate.Location{index}, Profile: locate.Path(at)}
	if _, err := Open(t.Context(), asked); !errors.Is(err, profile.ErrInvalid) {
		t.Errorf("Open with an invalid profile = %v", err)
	}
	reads := []profile.Read{{Chunk: other.At(0)}}
	writeFile(t, at, profile.New(other, reads).Encode())
	var logged syncLog
	openCatalogue(t, Options{Indexes: []locate.Location{index}, AutoProfile: true, Log: logged.logger()})
	if !strings.Contains(logged.String(), "names no chunk of the image") {
		t.Errorf("logged is %s", logged.String())
	}
}

// TestFailedRecording: a recording that cannot be saved is logged.
func TestFailedRecording(t *testing.T) {
	dir := t.TempDir()
	image, _ := publishImage(t, dir, "a", 1)
	var logged syncLog
	index := locate.Path(filepath.Join(dir, "a.caibx"))
	c, err := Open(t.Context(), Options{Indexes: []locate.Location{index}, Log: logged.logger(),
		Record: func(context.Context, *profile.Profile) error { return errors.New("the disk is full") }})
	if err != nil {
		t.Fatal(err)
	}
	checkExport(t, c, "a", image)
	c.Close()
	if !strings.Contains(logged.String(), "writing the recording: the disk is full") {
		t.Errorf("logged is %s", logged.String())
	}
}

// startWebServer serves a directory, unless it is unavailable.
func startWebServer(t *testing.T, dir string) (at func(name string) locate.Location, unavailable *atomic.Bool) {
	t.Helper()
	unavailable = new(atomic.Bool)
	files := http.FileServer(http.Dir(dir))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if unavailable.Load() {
			http.Error(w, "unavailable", http.StatusServiceUnavailable)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return func(name string) locate.Location {
		l, err := locate.Parse(s.URL + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}, unavailable
}

// TestIndexIsAwaited: Open waits for an unavailable index, and fails after Hold.
func TestIndexIsAwaited(t *testing.T) {
	dir := t.TempDir()
	image, _ := publishImage(t, dir, "a", 1)
	at, unavailable := startWebServer(t, dir)
	unavailable.Store(true)
	var notes []Note
	o := Options{Indexes: []locate.Location{at("a.caibx")}, Notes: func(n Note) {
		notes = append(notes, n)
		unavailable.Store(false)
	}}
	checkExport(t, openCatalogue(t, o), "a", image)
	want := []Note{WaitNote{at("a.caibx"), false}, WaitNote{at("a.caibx"), true}}
	same := cmp.Comparer(func(a, b locate.Location) bool { return a.String() == b.String() })
	if diff := cmp.Diff(want, notes, same); diff != "" {
		t.Error(diff)
	}
	unavailable.Store(true)
	o.Notes, o.Hold = nil, time.Millisecond
	if _, err := Open(t.Context(), o); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Open = %v", err)
	}
}

// TestIndexFromCache: images in the cache are served while the server of their index is
// unavailable.
func TestIndexFromCache(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	image, _ := publishImage(t, dir, "a", 1)
	at, unavailable := startWebServer(t, dir)
	o := Options{Indexes: []locate.Location{at("a.caibx")}, Cache: cache, AutoProfile: true}
	c, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	checkExport(t, c, "a", image)
	c.Close()
	unavailable.Store(true)
	var logged syncLog
	var notes []Note
	o.Log, o.Notes = logged.logger(), func(n Note) { notes = append(notes, n) }
	checkExport(t, openCatalogue(t, o), "a", image)
	if !strings.Contains(logged.String(), "serving the image that its location had last, from the cache") {
		t.Errorf("logged is %s", logged.String())
	}
	if len(notes) != 1 {
		t.Fatalf("notes are %v", notes)
	}
	if n, is := notes[0].(ProfileNote); !is || !n.Later {
		t.Errorf("the note is %#v", notes[0])
	}
}

// TestMemoryNote: images are served even if the cache cannot be opened.
func TestMemoryNote(t *testing.T) {
	dir := t.TempDir()
	image, _ := publishImage(t, dir, "a", 1)
	file := filepath.Join(dir, "file")
	writeFile(t, file, nil)
	var notes []Note
	c := openCatalogue(t, Options{Directory: dir, Cache: file, Notes: func(n Note) { notes = append(notes, n) }})
	checkExport(t, c, "a", image)
	if len(notes) != 1 {
		t.Fatalf("notes are %v", notes)
	}
	if n, is := notes[0].(MemoryNote); !is || !n.Index.IsZero() || n.Err == nil {
		t.Errorf("the note is %#v", notes[0])
	}
}

// TestMonitor: the status has the open exports, their clients and stores, and the counts of closed
// versions.
func TestMonitor(t *testing.T) {
	dir := t.TempDir()
	image, x := publishImage(t, dir, "a", 1)
	publishImage(t, dir, "b", 2)
	c := openCatalogue(t, Options{Directory: dir, Memory: 64 << 20})
	server := &nbd.Server{Exports: c}
	m := NewMonitor(server, c, "v")
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error)
	go func() { served <- server.Serve(ctx, l) }()
	defer func() { stop(); <-served }()
	if s := m.Status(); s.Version != "v" || s.Offered != 2 || len(s.Exports) != 0 ||
		s.Memory.Limit != 64<<20 || s.Cache != nil {
		t.Errorf("before clients the status is %+v", s)
	}
	client, err := nbdtest.Dial(t.Context(), "unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Go("a"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1000)
	if err := client.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got, image[:1000]) {
		t.Fatalf("reading: %v", err)
	}
	s := m.Status()
	if len(s.Exports) != 1 || len(s.Clients) != 1 || len(s.Stores) != 1 {
		t.Fatalf("the status is %+v", s)
	}
	e := s.Exports[0]
	if e.Name != "a" || e.Identity != "a@"+x.Digest().String() || e.Size != x.Size() || e.Clients != 1 ||
		e.Reads != 1 || e.Served != 1000 || e.FromStore == 0 {
		t.Errorf("the export is %+v", e)
	}
	if c := s.Clients[0]; c.Address != "unix socket" || c.Export != "a" || c.Requests != 1 {
		t.Errorf("the client is %+v", c)
	}
	if st := s.Stores[0]; !st.Up || st.Name != filepath.Join(dir, "default.castr") || st.Stored == 0 {
		t.Errorf("the store is %+v", st)
	}
	if total := m.Totals(); total.Requests != 1 || total.Served != 1000 || total.Stored < s.Stores[0].Stored {
		t.Errorf("the totals are %+v", total)
	}

	publishImage(t, dir, "a", 3) // the client keeps its version
	checkExport(t, c, "a", testimages.Random(3, 300_000))
	s = m.Status()
	if len(s.Exports) != 1 || s.Exports[0].Identity == "a@"+x.Digest().String() ||
		s.Exports[0].Reads != 2 || s.Exports[0].Clients != 1 {
		t.Errorf("with two versions the exports are %+v", s.Exports)
	}
	client.Close()
	for deadline := time.Now().Add(10 * time.Second); len(server.Clients()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the client stays")
		}
	}
	s = m.Status()
	if len(s.Exports) != 1 || s.Exports[0].Reads != 2 || s.Exports[0].Clients != 0 {
		t.Errorf("with a closed version the exports are %+v", s.Exports)
	}
}
