package store

import (
	"bytes"
	"context"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"cairn/blob"
)

// Limits of the names that an inventory lists. A page of a listing, a thousand names, costs about
// as much as a dozen requests for single chunks.
const (
	namesPerChunk = 20      // listed names for each chunk that will be queried
	minNames      = 50_000  // the smallest limit, for few chunks
	defaultNames  = 1 << 20 // the limit when the number of chunks is unknown
	maxNames      = 8 << 20 // the largest limit; 128 MiB of memory
)

// InventoryOptions describe the coming queries. The zero value stands for any number of any chunks.
type InventoryOptions struct {
	Chunks int64  // about how many chunks will be queried; 0 is unknown
	Prefix string // common prefix of the queried digests, hexadecimal
}

// Inventory answers from a listing whether a store holds a chunk, which saves a request for each
// chunk. It lists sixteen parts in parallel, and each query waits for the part that answers it. A
// listing that grows too long or fails is abandoned; chunks that it did not answer are requested
// one by one, and the answers are kept.
//
// That bounds its memory to 16 bytes a listed name and one answer for each request. It lists at
// most 20 names for each chunk that will be queried, but not fewer than 50,000 nor more than
// 8,388,608; the limit is 1,048,576 where the number is not known.
//
// Empty objects do not count. An object written after the listing may or may not count. Safe for
// concurrent use.
type Inventory struct {
	store    statHaser
	prefix   int // digits
	maxNames int64
	listed   atomic.Int64
	cancel   context.CancelFunc
	parts    [16]part
	mu       sync.Mutex // guards the fields below
	failed   error      // the first failure of a listing
	answers  map[key]*answer
}

// answer is the store's answer, or the pending one, about one chunk.
type answer struct {
	done chan struct{} // closed when has and err are final
	has  bool
	err  error
}

var _ Haser = (*Inventory)(nil)

// part is the listing of the names that begin with the prefix and one more digit.
type part struct {
	done     chan struct{} // closed when the other fields are final
	keys     []key         // sorted
	complete bool
}

// TakeInventory begins to list r. If r cannot be listed, each chunk is requested by itself. The
// caller must call Close.
func TakeInventory(ctx context.Context, r Reader, o InventoryOptions) *Inventory {
	listCtx, cancel := context.WithCancel(ctx)
	v := &Inventory{store: statHaser{r}, prefix: len(o.Prefix), maxNames: listingLimit(o.Chunks), cancel: cancel, answers: map[key]*answer{}}
	lister, can := As[Lister](r)
	for i := range v.parts {
		p := &v.parts[i]
		p.done = make(chan struct{})
		if !can || len(o.Prefix) > 3 {
			close(p.done)
			continue
		}
		go v.listPart(listCtx, lister, o.Prefix+strconv.FormatInt(int64(i), 16), p)
	}
	return v
}

func listingLimit(chunks int64) int64 {
	if chunks <= 0 {
		return defaultNames
	}
	return min(max(chunks, minNames/namesPerChunk)*namesPerChunk, maxNames)
}

func (v *Inventory) listPart(ctx context.Context, l Lister, prefix string, p *part) {
	defer close(p.done)
	p.complete = true
	for object, err := range l.List(ctx, prefix) {
		if err != nil {
			p.complete = false
			v.recordFailure(err)
			break
		}
		if v.listed.Add(1) > v.maxNames {
			p.complete = false
			break
		}
		if d, _, ok := ChunkObject(object.Name); ok && object.Size > 0 {
			p.keys = append(p.keys, keyOf(d))
		}
	}
	slices.SortFunc(p.keys, compareKeys)
}

func (v *Inventory) recordFailure(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed == nil {
		v.failed = err
	}
}

// Has implements Haser. The digest must have the prefix of the options.
func (v *Inventory) Has(ctx context.Context, d blob.Digest) (bool, error) {
	p := &v.parts[digitAt(d, v.prefix)]
	select {
	case <-p.done:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if _, found := slices.BinarySearchFunc(p.keys, keyOf(d), compareKeys); found || p.complete {
		return found, nil
	}
	return v.queryStore(ctx, d)
}

// queryStore requests a chunk's presence from the store, once. A failure is returned to all waiters
// of that request, and is not kept.
func (v *Inventory) queryStore(ctx context.Context, d blob.Digest) (bool, error) {
	a, mine := v.answerFor(keyOf(d))
	if !mine {
		select {
		case <-a.done:
			return a.has, a.err
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	a.has, a.err = v.store.Has(ctx, d)
	if a.err != nil {
		v.mu.Lock()
		delete(v.answers, keyOf(d))
		v.mu.Unlock()
	}
	close(a.done)
	return a.has, a.err
}

// answerFor returns the answer about a chunk, and reports whether the caller has to fill it in.
func (v *Inventory) answerFor(k key) (a *answer, mine bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if a := v.answers[k]; a != nil {
		return a, false
	}
	a = &answer{done: make(chan struct{})}
	v.answers[k] = a
	return a, true
}

// Err returns the first failure of a listing so far.
func (v *Inventory) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.failed
}

// Close cancels the listing and blocks until it has ended.
func (v *Inventory) Close() {
	v.cancel()
	for i := range v.parts {
		<-v.parts[i].done
	}
}

// digitAt returns the n-th hexadecimal digit of a digest, counted from 0.
func digitAt(d blob.Digest, n int) byte {
	if n%2 == 0 {
		return d[n/2] >> 4
	}
	return d[n/2] & 15
}

// key is half of a digest: enough that no two chunks share one, by chance or by intent (2^64
// tries).
type key [16]byte

func keyOf(d blob.Digest) key { return key(d[:16]) }

func compareKeys(a, b key) int { return bytes.Compare(a[:], b[:]) }

// Set is a set of chunks that a store is assumed to hold, in about 24 bytes each. It is a Haser
// that sends no requests. It may be shared once no more chunks are added.
type Set struct{ keys map[key]struct{} }

var _ Haser = (*Set)(nil)

// Add adds all chunks of an index.
func (s *Set) Add(x *blob.Index) {
	if s.keys == nil {
		s.keys = make(map[key]struct{}, x.Len())
	}
	for _, c := range x.All() {
		s.keys[keyOf(c.Digest)] = struct{}{}
	}
}

// Has implements Haser.
func (s *Set) Has(ctx context.Context, d blob.Digest) (bool, error) {
	_, has := s.keys[keyOf(d)]
	return has, ctx.Err()
}
