package fetch

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/testimages"
)

const chunkSize = 4096

// index returns an index of an image with a cut every chunkSize bytes.
func index(t testing.TB, image []byte) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: chunkSize, Avg: chunkSize, Max: chunkSize})
	if err != nil {
		t.Fatal(err)
	}
	for len(image) > 0 {
		n := min(len(image), chunkSize)
		if _, err := b.Add(int64(n), blob.SHA512_256.Sum(image[:n])); err != nil {
			t.Fatal(err)
		}
		image = image[n:]
	}
	return b.Index()
}

// chunkStore is a store that counts requests, has a latency, and fails on demand.
type chunkStore struct {
	data    map[blob.Digest][]byte
	latency time.Duration

	mu        sync.Mutex // guards the fields below
	gets      map[blob.Digest]int
	fail      map[blob.Digest]error
	down      error // error of all requests, if not nil
	now, most int   // requests in flight, and their maximum
}

// newChunkStore returns a store with the chunks of some images.
func newChunkStore(t testing.TB, images ...[]byte) *chunkStore {
	t.Helper()
	s := &chunkStore{data: map[blob.Digest][]byte{}, gets: map[blob.Digest]int{}, fail: map[blob.Digest]error{}}
	for _, image := range images {
		for _, c := range index(t, image).All() {
			s.data[c.Digest] = image[c.Offset:c.End()]
		}
	}
	return s
}

// Get implements store.Getter.
func (s *chunkStore) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	storetest.GetterFunc(s.get).Get(ctx, wants, done)
}

func (s *chunkStore) get(ctx context.Context, d blob.Digest, dst []byte) error {
	err := s.begin(d)
	defer s.end()
	select {
	case <-time.After(s.latency):
	case <-ctx.Done():
		return ctx.Err()
	}
	if err == nil && copy(dst, s.data[d]) != len(dst) {
		return store.ErrNotFound
	}
	return err
}

func (s *chunkStore) begin(d blob.Digest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gets[d]++
	s.now++
	s.most = max(s.most, s.now)
	if s.down != nil {
		return s.down
	}
	return s.fail[d]
}

func (s *chunkStore) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now--
}

// countRequests returns the number of all requests, and of those in flight.
func (s *chunkStore) countRequests() (all, now int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.gets {
		all += n
	}
	return all, s.now
}

// failAll sets the error of all further requests; nil ends the outage.
func (s *chunkStore) failAll(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = err
}

// checkOnce checks that the chunks [lo, hi) of x were requested once each, and no others.
func (s *chunkStore) checkOnce(t *testing.T, x *blob.Index, lo, hi int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	want := map[blob.Digest]int{}
	for _, c := range x.Range(lo, hi) {
		want[c.Digest] = 1
	}
	if diff := cmp.Diff(want, s.gets); diff != "" {
		t.Errorf("requests per chunk (-want +got):\n%s", diff)
	}
}

// observer records the calls of an Observer. Safe for concurrent use.
type observer struct {
	mu                        sync.Mutex
	missed, prefetching, lost []int
}

func (o *observer) Missed(chunk int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.missed = append(o.missed, chunk)
}

func (o *observer) Prefetching(chunk int, _ Priority) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.prefetching = append(o.prefetching, chunk)
}

func (o *observer) Lost(chunk int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lost = append(o.lost, chunk)
}

// reader is a Client with its image and its Observer.
type reader struct {
	*Client
	image []byte
	noted observer
}

func newReader(t testing.TB, source *Source, image []byte, o ClientOptions) *reader {
	r := &reader{image: image}
	o.Observer = &r.noted
	r.Client = NewClient(source, index(t, image), o)
	return r
}

// newOwnReader returns a reader with a Cache of its own, which is closed when the test ends.
func newOwnReader(t testing.TB, image []byte, from store.Getter, o Options) *reader {
	t.Helper()
	cache := New(t.Context(), o)
	t.Cleanup(cache.Close)
	return newReader(t, cache.NewSource(from, SourceOptions{}), image, ClientOptions{})
}

// readChunks reads the chunks [lo, hi).
func (r *reader) readChunks(ctx context.Context, lo, hi int) ([]byte, error) {
	var all []byte
	entries, _ := r.Request(lo, hi)
	for n, e := range entries {
		if e == nil {
			all = append(all, r.disk.(*disk).readChunk(lo+n)...)
			continue
		}
		data, err := r.Wait(ctx, e, lo+n)
		if err != nil {
			return nil, err
		}
		all = append(all, data...)
	}
	return all, nil
}

// checkRead reads the chunks [lo, hi), and compares them with the image's bytes.
func (r *reader) checkRead(t testing.TB, lo, hi int) {
	t.Helper()
	got, err := r.readChunks(t.Context(), lo, hi)
	if err != nil {
		t.Errorf("reading chunks %d to %d: %v", lo, hi, err)
	} else if want := r.image[lo*chunkSize : min(hi*chunkSize, len(r.image))]; !bytes.Equal(got, want) {
		t.Errorf("reading chunks %d to %d returned wrong bytes", lo, hi)
	}
}

// countInMemory returns the number of chunks in memory.
func (r *reader) countInMemory() (n int) {
	for _, c := range r.index.All() {
		if r.InMemory(c) {
			n++
		}
	}
	return n
}

// random returns an image of n chunks.
func random(seed uint64, n int) []byte { return testimages.Random(seed, n*chunkSize) }

// listFeed is a Feed of a list of chunks.
type listFeed struct {
	list   []int
	budget Budget
	passes int // further passes that Rewind starts
	next   int
	ends   []time.Time // times of the calls of Rewind
}

func (f *listFeed) Next() (chunk int, wanted, more bool) {
	if f.next == len(f.list) {
		return 0, false, false
	}
	f.next++
	return f.list[f.next-1], true, true
}

func (f *listFeed) Rewind() bool {
	f.ends = append(f.ends, time.Now())
	if f.passes--; f.passes < 0 {
		return false
	}
	f.next = 0
	return true
}

func (f *listFeed) Budget() Budget { return f.budget }

func firstChunks(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// disk is a Disk in memory. data holds its verified chunks, and claimed the others, some of which are damaged.
type disk struct {
	mu      sync.Mutex // guards the fields below
	data    map[int][]byte
	claimed map[int][]byte
	waited  int           // OfferWait calls
	behind  chan struct{} // if not nil, OfferWait blocks until it is closed
}

func newDisk() *disk { return &disk{data: map[int][]byte{}, claimed: map[int][]byte{}} }

func (d *disk) Has(i int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.data[i] != nil
}

func (d *disk) readChunk(i int) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.data[i]
}

func (d *disk) Claims(i int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.claimed[i] != nil
}

func (d *disk) Prove(i int, dst []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	data := d.claimed[i]
	delete(d.claimed, i)
	if len(data) != len(dst) {
		return false
	}
	copy(dst, data)
	d.data[i] = data
	return true
}

func (d *disk) Offer(i int, data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.data[i] = data
}

func (d *disk) OfferWait(_ context.Context, i int, data []byte) bool {
	if d.behind != nil {
		<-d.behind
	}
	d.Offer(i, data)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waited++
	return true
}

// shuffledChunks returns the numbers below n in a random order.
func shuffledChunks(seed uint64, n int) []int { return rand.New(rand.NewPCG(seed, 0)).Perm(n) }
