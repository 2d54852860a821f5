package export

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/internal/test/packtest"
	"cairn/store/local"
	"cairn/store/locate"
	"cairn/store/pack"
)

// packedImage is an image whose chunks are only in packs, on a server.
type packedImage struct {
	dir   string
	image []byte
	index *blob.Index
	at    locate.Location // of the index

	noRanges, noMaps atomic.Bool  // the server sends whole files; it is busy when a map is wanted
	requests         atomic.Int64 // for packs and chunks
}

func newPackedImage(t *testing.T) *packedImage {
	t.Helper()
	p := &packedImage{dir: t.TempDir()}
	p.image, p.index = publishImage(t, p.dir, "v", 1)
	from, err := local.Open(filepath.Join(p.dir, "default.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	to, err := local.Create(filepath.Join(p.dir, "default.capack"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p.writeMap(t, packtest.Pack(t, from, to, p.index, pack.MinSize, nil))
	if err := os.Rename(filepath.Join(p.dir, "default.castr"), filepath.Join(p.dir, "gone")); err != nil {
		t.Fatal(err)
	}
	files := http.FileServer(http.Dir(p.dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if strings.HasSuffix(q.URL.Path, pack.Suffix) || strings.HasSuffix(q.URL.Path, ".cacnk") {
			p.requests.Add(1)
		}
		if p.noMaps.Load() && strings.HasSuffix(q.URL.Path, pack.MapSuffix) {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if p.noRanges.Load() {
			q.Header.Del("Range")
		}
		files.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	if p.at, err = locate.Parse(server.URL + "/v.caibx"); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *packedImage) writeMap(t *testing.T, m *pack.Map) {
	t.Helper()
	file, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, p.mapFile(t), file)
}

// mapFile returns the path of the map beside the index.
func (p *packedImage) mapFile(t *testing.T) string {
	t.Helper()
	at, err := release.MapOf(locate.Path(filepath.Join(p.dir, "v.caibx")), p.index.Digest())
	if err != nil {
		t.Fatal(err)
	}
	return at.String()
}

// TestPacks: an image whose chunks are only in packs is served from them, with few requests if the server sends no
// ranges.
func TestPacks(t *testing.T) {
	p := newPackedImage(t)
	for _, noRanges := range []bool{false, true} {
		p.noRanges.Store(noRanges)
		p.requests.Store(0)
		c := openCatalogue(t, Options{Indexes: []locate.Location{p.at}, Memory: 64 << 20})
		checkExport(t, c, "v", p.image)
		most := int64(p.index.Len() / 2)
		if noRanges {
			most = int64(len(p.image)/pack.MinSize + 1)
		}
		if n := p.requests.Load(); n > most {
			t.Errorf("no ranges %v: %d requests for %d chunks, want at most %d", noRanges, n, p.index.Len(), most)
		}
	}
}

// TestMapIsAwaited: reads of chunks that are not found wait while the map cannot be read.
func TestMapIsAwaited(t *testing.T) {
	p := newPackedImage(t)
	p.noMaps.Store(true)
	c := openCatalogue(t, Options{Indexes: []locate.Location{p.at}, Memory: 64 << 20, Hold: time.Minute})
	time.AfterFunc(100*time.Millisecond, func() { p.noMaps.Store(false) })
	checkExport(t, c, "v", p.image)
}

// TestMapIsAHint: without a valid map, chunks come from the store.
func TestMapIsAHint(t *testing.T) {
	p := newPackedImage(t)
	if err := os.Rename(filepath.Join(p.dir, "gone"), filepath.Join(p.dir, "default.castr")); err != nil {
		t.Fatal(err)
	}
	_, other := publishImage(t, t.TempDir(), "v", 2)
	none := func(blob.Digest) (pack.Place, bool) { return pack.Place{}, false }
	ofOther, err := pack.NewMap(other, none)
	if err != nil {
		t.Fatal(err)
	}
	nowhere := func(d blob.Digest) (pack.Place, bool) {
		return pack.Place{Pack: pack.Pack{ID: blob.Digest{1}, Size: 1 << 20}, Offset: 16, Size: 1000}, true
	}
	inNoPack, err := pack.NewMap(p.index, nowhere)
	if err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(){
		"of another index": func() { p.writeMap(t, ofOther) },
		"damaged":          func() { writeFile(t, p.mapFile(t), []byte("no map")) },
		"of absent packs":  func() { p.writeMap(t, inNoPack) },
	} {
		t.Run(name, func(t *testing.T) {
			write()
			var log syncLog
			c := openCatalogue(t, Options{Indexes: []locate.Location{p.at}, Memory: 64 << 20, Log: log.logger()})
			checkExport(t, c, "v", p.image)
			if noted := strings.Contains(log.String(), `msg="no packs are used"`); noted != (name != "of absent packs") {
				t.Errorf("a warning is logged: %v", noted)
			}
		})
	}
}
