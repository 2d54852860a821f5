package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/singleflight"

	"cairn/blob"
	"cairn/internal/hugepages"
	"cairn/internal/test/boottrace"
	"cairn/internal/test/netlab"
	"cairn/nbd/nbdtest"
	"cairn/store"
	"cairn/store/web"
)

// bootImage is an image that is cut as the recorded one, with random bytes of the same compressed sizes, and a
// web server that makes its chunks on request.
type bootImage struct {
	index   *blob.Index
	ids     map[blob.Digest]boottrace.Chunk
	packer  *zstd.Encoder
	profile []byte // served beside the index; nil for none

	mu     sync.Mutex // guards packed
	packed map[blob.Digest][]byte
}

// content makes the bytes of a chunk.
func content(c boottrace.Chunk) []byte {
	p := make([]byte, c.Size)
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], uint64(c.ID)+1)
	rand.NewChaCha8(seed).Read(p[:min(c.Stored, c.Size)])
	return p
}

func newBootImage(t *testing.T, shape boottrace.Shape) *bootImage {
	t.Helper()
	const most, batch = 256 << 10, 64
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: most / 16, Avg: most / 4, Max: most})
	if err != nil {
		t.Fatal(err)
	}
	packer, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	im := &bootImage{ids: map[blob.Digest]boottrace.Chunk{}, packed: map[blob.Digest][]byte{}, packer: packer}
	for some := range slices.Chunk(shape, batch) {
		data, sums := make([][]byte, len(some)), make([]blob.Digest, len(some))
		for i, c := range some {
			data[i] = make([]byte, c.Size)
			if c.ID >= 0 {
				data[i] = content(c)
			}
		}
		blob.SHA512_256.SumAll(sums, data)
		for i, c := range some {
			if _, err := b.Add(c.Size, sums[i]); err != nil {
				t.Fatal(err)
			}
			im.ids[sums[i]] = c
		}
	}
	im.index = b.Index()
	return im
}

func (im *bootImage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)
	digest, err := blob.ParseDigest(strings.TrimSuffix(name, ".cacnk"))
	c, known := im.ids[digest]
	switch {
	case name == "v.caibx":
		_, _ = w.Write(im.index.Encode())
	case name == "v.caprf" && im.profile != nil:
		_, _ = w.Write(im.profile)
	case name == "v.raw":
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(im, 0, im.index.Size()))
	case err == nil && known && strings.HasSuffix(name, ".cacnk"):
		packed := im.pack(digest, c)
		w.Header().Set("Content-Length", strconv.Itoa(len(packed)))
		_, _ = w.Write(packed)
	default:
		http.NotFound(w, r)
	}
}

// ReadAt makes bytes of the image.
func (im *bootImage) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < im.index.Size() {
		c := im.index.At(im.index.Find(off))
		data := make([]byte, c.Size)
		if shape := im.ids[c.Digest]; shape.ID >= 0 {
			data = content(shape)
		}
		k := copy(p[n:], data[off-c.Offset:])
		n, off = n+k, off+int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (im *bootImage) pack(d blob.Digest, c boottrace.Chunk) []byte {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.packed[d] == nil {
		im.packed[d] = im.packer.EncodeAll(content(c), nil)
	}
	return im.packed[d]
}

// TestBootBehindLink replays the recorded boot of a Debian system with an NBD client against cairn serve, whose
// store has 20 ms latency and 100 Mbit/s. It compares how long the reads wait: with one chunk at a time on
// demand, and with the profile that the previous boot recorded. One good round of three suffices, because a
// busy machine only makes boots slower. CAIRN_LONG=1 compares the medians of five. The test does not run in
// parallel with others.
func TestBootBehindLink(t *testing.T) {
	if testing.Short() {
		t.Skip("several boots of some seconds each")
	}
	b := newBootLink(t)
	if os.Getenv("CAIRN_LONG") == "" {
		var plain, onDemand, profiled time.Duration
		t.Run("first", func(t *testing.T) { // each boot has a link of its own
			t.Run("one at a time", func(t *testing.T) {
				t.Parallel()
				plain = replayPlainly(t, b.trace, b.image.index, newBootURL(t, b.server))
			})
			t.Run("served", func(t *testing.T) {
				t.Parallel()
				onDemand, profiled = b.boot(t)
			})
		})
		if t.Failed() {
			return
		}
		var err error
		for try := range 3 {
			if try > 0 {
				onDemand, profiled = b.boot(t)
			}
			if err = judgeBoot(t, plain, onDemand, profiled); err == nil {
				return
			}
		}
		t.Error(err)
		return
	}
	through := replayThrough(t, b.trace, b.url) // takes a minute and a half
	var plain, onDemand, profiled []time.Duration
	for range 5 {
		plain = append(plain, replayPlainly(t, b.trace, b.image.index, b.url))
		d, p := b.boot(t)
		onDemand, profiled = append(onDemand, d), append(profiled, p)
	}
	t.Logf("reads waited for %v when each goes through to a raw image", through)
	if err := judgeBoot(t, median(plain), median(onDemand), median(profiled)); err != nil {
		t.Error(err)
	}
}

// bootLink is the recorded boot and its image behind a link.
type bootLink struct {
	trace  *boottrace.Trace
	image  *bootImage
	server string
	url    string // of the server behind the link
}

func newBootLink(t *testing.T) *bootLink {
	t.Helper()
	trace, shape := recordedBoot(t)
	image := newBootImage(t, shape)
	server := httptest.NewServer(image)
	t.Cleanup(server.Close)
	return &bootLink{trace, image, server.URL, newBootURL(t, server.URL)}
}

// newBootURL returns the URL of a server behind a new link.
func newBootURL(t *testing.T, server string) string {
	_, url := newLink(t, server, netlab.Link{RTT: 20 * time.Millisecond, Rate: 100 * netlab.Mbit}, nil)
	return url
}

// boot boots twice, the second time with the profile of the first, and returns the waiting times of the reads.
func (b *bootLink) boot(t *testing.T) (onDemand, profiled time.Duration) {
	t.Helper()
	recorded := filepath.Join(t.TempDir(), "p.caprf")
	b.image.profile = nil
	onDemand = replayServed(t, b.trace, b.url, "--record", recorded)
	b.image.profile = readFile(t, recorded)
	return onDemand, replayServed(t, b.trace, b.url)
}

func judgeBoot(t *testing.T, plain, onDemand, profiled time.Duration) error {
	t.Helper()
	t.Logf("reads waited for %v, one chunk at a time; %v on demand, %v with a profile", plain, onDemand, profiled)
	switch {
	case onDemand > plain*6/10:
		return fmt.Errorf("on demand reads waited for %v, want at most 60 %% of %v", onDemand, plain)
	case profiled > plain/10:
		return fmt.Errorf("with a profile reads waited for %v, want at most 10 %% of %v", profiled, plain)
	}
	return nil
}

func median[T cmp.Ordered](list []T) T {
	slices.Sort(list)
	return list[len(list)/2]
}

// recordedBoot returns the boot, scaled to a machine that takes 6 s with a disk without latency.
func recordedBoot(t *testing.T) (*boottrace.Trace, boottrace.Shape) {
	t.Helper()
	const dir = "../boottrace/testdata"
	trace, err := boottrace.Decode(bytes.NewReader(readFile(t, filepath.Join(dir, "debian-b.trace.gz"))))
	if err != nil {
		t.Fatal(err)
	}
	shape, err := boottrace.DecodeShape(bytes.NewReader(readFile(t, filepath.Join(dir, "debian-b.shape.gz"))))
	if err != nil {
		t.Fatal(err)
	}
	return trace.Within(6 * time.Second), shape
}

// replayServed boots from a new server, and returns the waiting time of the reads.
func replayServed(t *testing.T, trace *boottrace.Trace, url string, args ...string) time.Duration {
	t.Helper()
	s := serve(t, 1, append([]string{url + "/v.caibx"}, args...)...)
	_, socket, _ := strings.Cut(s.uris[0], "?socket=")
	c := client(t, socket)
	w, err := trace.Replay(t.Context(), func(ctx context.Context, p []byte, off int64) error {
		_, err := c.Do(ctx, nbdtest.Request{Command: nbdtest.CmdRead, Offset: uint64(off), Length: uint32(len(p))})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	s.signal(t, syscall.SIGTERM)
	s.wantStopped(t)
	return w.Waiting
}

// replayThrough boots as a client without a cache: each read is a request for a range of the raw image.
func replayThrough(t *testing.T, trace *boottrace.Trace, url string) time.Duration {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	defer client.CloseIdleConnections()
	w, err := trace.Replay(t.Context(), func(ctx context.Context, p []byte, off int64) error {
		q, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v.raw", nil)
		if err != nil {
			return err
		}
		q.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+int64(len(p))-1))
		answer, err := client.Do(q)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		_, err = io.ReadFull(answer.Body, p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return w.Waiting
}

// TestServeColdDepth: 64 concurrent reads of an image that is not cached are answered nearly as fast as a store
// with 20 ms latency answers 64 concurrent requests. The figure needs an idle machine, and real images:
//
//	CAIRN_LONG=1 CAIRN_IMAGES=DIR go test -v -run TestServeColdDepth ./internal/test/e2e
//
// (TestColdDepth of blob/view tests the same in virtual time, on any machine.)
func TestServeColdDepth(t *testing.T) {
	all := realPairs(t)
	if len(all) == 0 {
		t.Skip("CAIRN_LONG and CAIRN_IMAGES are not set")
	}
	hugepages.Heap(128 << 20) // the link and the client are in this process
	for _, p := range all {
		dir := t.TempDir()
		cairn(t, "make", filepath.Join(dir, "b.caibx"), p.b)
		web := newNginx(t, dir)
		x := readIndex(t, filepath.Join(dir, "b.caibx"))
		pages := boottrace.Pages(x.Len(), func(i int) (int64, bool) { return x.At(i).Offset, x.IsZero(i) })[:2000]
		var rates []float64
		for range 5 {
			rates = append(rates, readCold(t, web.url, pages))
		}
		got, most := median(rates), coldDepth/coldTrip.Seconds()
		t.Logf("%s: %.0f reads a second, %.0f %% of %.0f", p.name, got, 100*got/most, most)
		if got < 0.6*most {
			t.Errorf("%s: %.0f reads a second, want 60 %% of %.0f", p.name, got, most)
		}
	}
}

const (
	coldDepth = 64
	coldTrip  = 20 * time.Millisecond
)

// readCold reads pages from a new server, and returns the number of answers per second.
func readCold(t *testing.T, url string, pages []int64) (rate float64) {
	t.Helper()
	link, through := newLink(t, url, netlab.Link{RTT: coldTrip, Rate: 10 * netlab.Gbit}, nil)
	s := serve(t, 1, through+"/b.caibx", "--prefetch", "none")
	_, socket, _ := strings.Cut(s.uris[0], "?socket=")
	c := client(t, socket)
	begun := time.Now()
	err := boottrace.ReadPages(t.Context(), pages, coldDepth, func(ctx context.Context, p []byte, off int64) error {
		_, err := c.Do(ctx, nbdtest.Request{Command: nbdtest.CmdRead, Offset: uint64(off), Length: uint32(len(p))})
		return err
	})
	if err != nil {
		t.Error(err)
	}
	rate = float64(len(pages)) / time.Since(begun).Seconds()
	t.Logf("%.0f reads a second, with %d requests", rate, link.Counts().Requests)
	s.signal(t, syscall.SIGTERM)
	s.wantStopped(t)
	return rate
}

// replayPlainly boots as a simple client: each read fetches the missing chunks one after the other.
func replayPlainly(t *testing.T, trace *boottrace.Trace, x *blob.Index, url string) time.Duration {
	t.Helper()
	base, err := web.Parse(url + "/default.castr")
	if err != nil {
		t.Fatal(err)
	}
	r, err := web.New(base, web.Options{})
	if err != nil {
		t.Fatal(err)
	}
	from := store.NewChunks(r, x.Algorithm())
	var flights singleflight.Group
	var here sync.Map
	w, err := trace.Replay(t.Context(), func(ctx context.Context, p []byte, off int64) error {
		for i := x.Find(off); i < x.Len() && x.At(i).Offset < off+int64(len(p)); i++ {
			c := x.At(i)
			if _, ok := here.Load(c.Digest); ok || x.IsZero(i) {
				continue
			}
			_, err, _ := flights.Do(c.Digest.String(), func() (any, error) {
				return nil, store.GetOne(ctx, from, c.Digest, make([]byte, c.Size))
			})
			if err != nil {
				return err
			}
			here.Store(c.Digest, true)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return w.Waiting
}
