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

// How far an inventory goes. A page of a listing, a thousand names, costs about what a dozen questions cost.
const (
	namesPerChunk = 20      // of a listing, for each chunk that will be asked for
	namesAtLeast  = 50_000  // however few those are
	namesUnknown  = 1 << 20 // when nobody knows how many
	namesAtMost   = 8 << 20 // however many; 128 MiB of memory
)

// InventoryOptions say what will be asked. The zero value asks for any number of any chunks.
type InventoryOptions struct {
	Chunks int64  // about how many chunks will be asked for; 0 when nobody knows
	Prefix string // of the digests that will be asked for, hexadecimal
}

// Inventory knows what chunks a store holds from a listing, so that they need not be asked for one by one. It
// lists in sixteen parts at once, and each question waits for the part that answers it. A listing that grows
// too long, or fails, is left; what it has not answered is asked for one by one. That bounds its memory: 16
// bytes a name, for at most 20 names for each chunk that will be asked for (not fewer than 50,000 nor more than
// 8,388,608, and 1,048,576 where the number is not known), and what is remembered of each question. Empty objects do not count, and no question is sent
// twice. What is written after the listing may count or not. Safe for concurrent use.
type Inventory struct {
	asking  asking
	prefix  int // digits
	most    int64
	seen    atomic.Int64
	cancel  context.CancelFunc
	parts   [16]part
	mu      sync.Mutex // guards what follows
	failed  error      // the first failure of listing
	answers map[key]*answer
}

// answer is what the store said, or will say, about one chunk.
type answer struct {
	done chan struct{} // closed when the others are final
	has  bool
	err  error
}

var _ Haser = (*Inventory)(nil)

// part is the listing of what begins with one more digit.
type part struct {
	done  chan struct{} // closed when the others are final
	keys  []key         // sorted
	whole bool
}

// TakeInventory begins to list r; if that cannot be listed, it asks for each chunk. Close must be called.
func TakeInventory(ctx context.Context, r Reader, o InventoryOptions) *Inventory {
	listCtx, cancel := context.WithCancel(ctx)
	v := &Inventory{asking: asking{r}, prefix: len(o.Prefix), most: longestListing(o.Chunks), cancel: cancel, answers: map[key]*answer{}}
	lister, can := As[Lister](r)
	for i := range v.parts {
		p := &v.parts[i]
		p.done = make(chan struct{})
		if !can || len(o.Prefix) > 3 {
			close(p.done)
			continue
		}
		go v.list(listCtx, lister, o.Prefix+strconv.FormatInt(int64(i), 16), p)
	}
	return v
}

func longestListing(chunks int64) int64 {
	if chunks <= 0 {
		return namesUnknown
	}
	return min(max(chunks, namesAtLeast/namesPerChunk)*namesPerChunk, namesAtMost)
}

func (v *Inventory) list(ctx context.Context, l Lister, prefix string, p *part) {
	defer close(p.done)
	p.whole = true
	for object, err := range l.List(ctx, prefix) {
		if err != nil {
			p.whole = false
			v.fail(err)
			break
		}
		if v.seen.Add(1) > v.most {
			p.whole = false
			break
		}
		if d, _, ok := ChunkObject(object.Name); ok && object.Size > 0 {
			p.keys = append(p.keys, keyOf(d))
		}
	}
	slices.SortFunc(p.keys, compareKeys)
}

func (v *Inventory) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed == nil {
		v.failed = err
	}
}

// Has implements Haser. The digest has the prefix that was told.
func (v *Inventory) Has(ctx context.Context, d blob.Digest) (bool, error) {
	p := &v.parts[digit(d, v.prefix)]
	select {
	case <-p.done:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	if _, found := slices.BinarySearchFunc(p.keys, keyOf(d), compareKeys); found || p.whole {
		return found, nil
	}
	return v.ask(ctx, d)
}

// ask asks the store itself, once. A failure is told to those who waited for it, and not kept.
func (v *Inventory) ask(ctx context.Context, d blob.Digest) (bool, error) {
	a, mine := v.question(keyOf(d))
	if !mine {
		select {
		case <-a.done:
			return a.has, a.err
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	a.has, a.err = v.asking.Has(ctx, d)
	if a.err != nil {
		v.mu.Lock()
		delete(v.answers, keyOf(d))
		v.mu.Unlock()
	}
	close(a.done)
	return a.has, a.err
}

// question is the answer to wait for, and whether the caller has to bring it.
func (v *Inventory) question(k key) (a *answer, mine bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if a := v.answers[k]; a != nil {
		return a, false
	}
	a = &answer{done: make(chan struct{})}
	v.answers[k] = a
	return a, true
}

// Err is why a listing failed, if one did so far.
func (v *Inventory) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.failed
}

// Close ends the listing, and returns when nothing runs any more.
func (v *Inventory) Close() {
	v.cancel()
	for i := range v.parts {
		<-v.parts[i].done
	}
}

// digit is the n-th hexadecimal digit of a digest, counted from 0.
func digit(d blob.Digest, n int) byte {
	if n%2 == 0 {
		return d[n/2] >> 4
	}
	return d[n/2] & 15
}

// key is half of a digest: enough that no two chunks share one, by chance or by intent (2^64 tries).
type key [16]byte

func keyOf(d blob.Digest) key { return key(d[:16]) }

func compareKeys(a, b key) int { return bytes.Compare(a[:], b[:]) }

// Set is a set of chunks that are taken to be in a store, in about 24 bytes each. It is a Haser that asks
// nobody. It may be shared when no more are added.
type Set struct{ keys map[key]struct{} }

var _ Haser = (*Set)(nil)

// Add takes all chunks of an index in.
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
