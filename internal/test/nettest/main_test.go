// Package nettest tests the readers of stores over a network while the network and the servers fail. A job must
// give the right bytes or a clear error within a stated time, and never a wrong byte. The package uses the
// product's packages as the commands do, with a shorter patience, so that tens of thousands of faults take
// seconds. internal/test/e2e tests the finished binary with fewer faults.
//
// CAIRN_LONG=1 injects 100,000 faults instead of 10,000. CAIRN_SEED is the seed of the faults; it is printed.
package nettest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/ingest"
	"cairn/chunker"
	"cairn/internal/test/mem"
	"cairn/internal/test/netlab"
	"cairn/seed"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/supply"
	"cairn/store/web"
	"cairn/testimages"
)

// TestMain silences net/http, which logs bytes that a server sends after its answer.
func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// The patience of the reader under test, the time limit of a job, and the number of concurrent requests.
const (
	patience = 250 * time.Millisecond
	limit    = time.Minute
	fetches  = 64
)

// The time limits of retries: as long as a busy machine may need, and a short one for tests in which retries fail.
var (
	patient = store.Policy{First: time.Millisecond, Max: 20 * time.Millisecond, Patience: limit / 2}
	hasty   = store.Policy{First: time.Millisecond, Max: 20 * time.Millisecond, Patience: time.Second}
)

// theSeed returns the seed of this run's faults.
func theSeed(t testing.TB) uint64 {
	t.Helper()
	n := rand.Uint64N(1e9)
	if text := os.Getenv("CAIRN_SEED"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CAIRN_SEED: %v", err)
		}
	}
	t.Logf("CAIRN_SEED=%d gives these faults again", n)
	return n
}

// release is an image in a store.
type release struct {
	image []byte
	index *blob.Index
	store mem.Bucket
}

// chunkSize is the size of all chunks in bytes.
const chunkSize = 2 << 10

// newRelease returns an image of that many different chunks.
func newRelease(t testing.TB, chunks int) *release {
	t.Helper()
	r := &release{image: testimages.Random(7, chunks*chunkSize)}
	w, err := store.NewWriter(&r.store, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	o := ingest.Options{Params: chunker.Params{Min: chunkSize, Avg: chunkSize, Max: chunkSize}, Workers: 2}
	r.index, _, err = ingest.Image(t.Context(), chunker.FromReader(bytes.NewReader(r.image)), w, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ServeHTTP serves the store.
func (r *release) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	data, err := r.store.Read(q.Context(), strings.TrimPrefix(q.URL.Path, "/"), nil, 1<<20)
	if err != nil {
		http.NotFound(w, q)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	_, _ = w.Write(data)
}

// rig is a store on a faulty server.
type rig struct {
	*netlab.Faulty
	source store.Getter
}

func newRig(t testing.TB, r *release, f netlab.Faults) *rig {
	t.Helper()
	faulty := netlab.NewFaulty(r, f)
	server := httptest.NewUnstartedServer(faulty)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	t.Cleanup(func() { faulty.Close(); server.Close() })
	at, err := locate.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := locate.Access{Web: web.Options{Patience: patience}}.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	return &rig{faulty, store.NewChunksAtOnce(reader, r.index.Algorithm(), fetches)}
}

// from returns a group of stores, as the commands make it.
func from(p store.Policy, rigs ...*rig) store.Getter {
	var sources []store.Getter
	for _, g := range rigs {
		sources = append(sources, g.source)
	}
	return supply.New(p, supply.Options{}, sources...)
}

// disk is a target in memory.
type disk []byte

func (d disk) ReadAt(p []byte, off int64) (int, error)  { return bytes.NewReader(d).ReadAt(p, off) }
func (d disk) WriteAt(p []byte, off int64) (int, error) { return copy(d[off:], p), nil }
func (d disk) Zero(off, n int64) error                  { clear(d[off : off+n]); return nil }
func (d disk) Sync() error                              { return nil }

// assembled assembles the release onto a new disk. A job that hangs and wrong bytes fail the test.
func assembled(t testing.TB, r *release, from store.Getter) error {
	t.Helper()
	d := make(disk, len(r.image))
	return within(t, func(ctx context.Context) error {
		_, err := assemble.Run(ctx, seed.NewPlan(r.index), from, d, assemble.Options{})
		if err == nil && !bytes.Equal(d, r.image) {
			t.Error("assemble succeeded, and the image is wrong")
		}
		wantOldOrNew(t, d, r.image)
		return err
	})
}

// wantOldOrNew checks that each block holds its old content, which is zeros, or the new one, also after a
// failure. The head is exempt, because it is temporarily invalid.
func wantOldOrNew(t testing.TB, d disk, image []byte) {
	t.Helper()
	const head = 128 << 10
	zeros := make([]byte, chunkSize)
	for off := head; off < len(d); off += chunkSize {
		block := d[off : off+chunkSize]
		if !bytes.Equal(block, zeros) && !bytes.Equal(block, image[off:off+chunkSize]) {
			t.Errorf("the block at %d holds what it never should", off)
			return
		}
	}
}

// within runs a job that must end by itself within a time limit.
func within(t testing.TB, job func(ctx context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	err := job(ctx)
	if ctx.Err() != nil {
		t.Errorf("it took more than %v: %v", limit, err)
	}
	return err
}

// class returns the class of an error: "" for success, and "plain" for an error without a class.
func class(err error) string {
	_, corrupt := errors.AsType[*store.CorruptError](err)
	switch {
	case err == nil:
		return ""
	case corrupt:
		return "corrupt"
	case errors.Is(err, store.ErrNotFound):
		return "not found"
	case errors.Is(err, store.ErrDenied):
		return "denied"
	case errors.Is(err, store.ErrUnavailable):
		return "unavailable"
	}
	return "plain"
}

// but returns all faults except some.
func but(without ...netlab.Fault) []netlab.Fault {
	return slices.DeleteFunc(netlab.AllFaults(), func(f netlab.Fault) bool { return slices.Contains(without, f) })
}
