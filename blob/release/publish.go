package release

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/store"
	"cairn/store/locate"
)

// Note is something worth telling that does not stop the job: BaseLeftOut, NotListed or AttributesLost.
type Note any

// BaseLeftOut means that a base is not used: the store does not hold it whole (Err), or its chunk sizes are not those
// that are made (Err is nil).
type BaseLeftOut struct {
	Base
	Err error
}

// NotListed means that the store cannot be listed, so that it was asked for each chunk.
type NotListed struct{ Err error }

// AttributesLost means that a file could not be given all attributes of the one that it replaced.
type AttributesLost struct {
	Path string
	Err  error
}

// Base is an index whose chunks the store is said to hold.
type Base struct {
	At    locate.Location
	Index *blob.Index
}

// PublisherOptions say what will be published, and how.
type PublisherOptions struct {
	Writer    store.WriterOptions
	Algorithm blob.Algorithm
	Params    blob.Params
	Chunks    int64 // how many chunks there will be, about; 0 or less when it is not known
	Remote    bool  // the store is reached over a network: it is listed instead of asked for each chunk
	Bases     []Base
	Notes     func(Note) // called with BaseLeftOut and NotListed; may be nil
}

// Publisher writes the chunks of an image into a store that may hold some of them, and then publishes the index. It is
// an ingest.Store. Safe for concurrent use, but for Publish and Close.
type Publisher struct {
	writer    *store.Writer
	chunks    *store.Chunks
	inventory *store.Inventory // or nil
	notes     func(Note)

	mu        sync.Mutex // guards what follows
	assumes   bool       // the store is not asked for each chunk
	assumed   int        // chunks that the store is taken to hold
	few       [mostSamples]blob.Digest
	committed bool // all chunks that were put or found
}

// NewPublisher begins to publish into a store. It finds out in the cheapest way which chunks the store holds: from
// bases, from a listing if it is remote, else by asking for each. Close must be called in the end.
func NewPublisher(ctx context.Context, to store.Bucket, o PublisherOptions) (*Publisher, error) {
	p := &Publisher{chunks: store.NewChunks(to, o.Algorithm), notes: o.Notes}
	if p.notes == nil {
		p.notes = func(Note) {}
	}
	known, err := p.acceptBases(ctx, o)
	switch {
	case err != nil:
		return nil, err
	case known != nil:
		o.Writer.Known = known
	case o.Remote:
		p.inventory = store.TakeInventory(ctx, to, store.InventoryOptions{Chunks: o.Chunks})
		o.Writer.Known = p.inventory
	}
	p.assumes = o.Writer.Known != nil
	if p.writer, err = store.NewWriter(to, o.Writer); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// Close gives up what was not committed.
func (p *Publisher) Close() {
	if p.writer != nil {
		_ = p.writer.Close() // what counts was committed
	}
	if p.inventory != nil {
		p.inventory.Close()
	}
}

// acceptBases returns the chunks of the bases, or nil. A base that the store does not hold whole, or with other chunk
// sizes than are made, is left out.
func (p *Publisher) acceptBases(ctx context.Context, o PublisherOptions) (known *store.Set, err error) {
	for _, base := range o.Bases {
		x := base.Index
		if x.Algorithm() != o.Algorithm {
			return nil, fmt.Errorf("base %s has %v digests, and %v are made", base.At, x.Algorithm(), o.Algorithm)
		}
		if x.Params() != o.Params {
			p.notes(BaseLeftOut{base, nil})
			continue
		}
		few := make([]blob.Digest, min(samplesOf(x.Len()), x.Len()))
		for i := range few { // spread over the image
			few[i] = x.At((2*i + 1) * x.Len() / (2 * len(few))).Digest
		}
		err := p.askFor(ctx, few)
		if errors.Is(err, store.ErrNotFound) {
			p.notes(BaseLeftOut{base, err})
			continue
		}
		if err != nil {
			return nil, err
		}
		if known == nil {
			known = new(store.Set)
		}
		known.Add(x)
	}
	return known, nil
}

// mostSamples bounds a sample. Of a store that lost one chunk in ten, 32 miss none once in thirty times.
const mostSamples = 32

// samplesOf returns how many of n chunks are asked for, where not all are.
func samplesOf(n int) int { return min(n/512+1, mostSamples) }

// askFor asks the store for chunks. One that it lacks is store.ErrNotFound.
func (p *Publisher) askFor(ctx context.Context, digests []blob.Digest) error {
	group, groupCtx := errgroup.WithContext(ctx)
	for _, d := range digests {
		group.Go(func() error {
			_, err := p.chunks.Stat(groupCtx, d)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// Has reports whether the store holds a chunk, as far as is known.
func (p *Publisher) Has(ctx context.Context, d blob.Digest) (bool, error) {
	has, err := p.writer.Has(ctx, d)
	if has && err == nil {
		p.noteHeld(d)
	}
	return has, err
}

// noteHeld keeps a random few of the chunks that the store is taken to hold (reservoir sampling).
func (p *Publisher) noteHeld(d blob.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.committed = false
	if !p.assumes {
		return
	}
	if p.assumed++; p.assumed <= len(p.few) {
		p.few[p.assumed-1] = d
	} else if at := rand.IntN(p.assumed); at < len(p.few) {
		p.few[at] = d
	}
}

// Put implements store.Putter.
func (p *Publisher) Put(ctx context.Context, d blob.Digest, data []byte) (stored int64, err error) {
	p.mu.Lock()
	p.committed = false
	p.mu.Unlock()
	return p.writer.Put(ctx, d, data)
}

// Commit makes every chunk that was put or found durable.
func (p *Publisher) Commit(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.committed {
		return ctx.Err()
	}
	err := p.writer.Commit(ctx)
	p.committed = err == nil
	return err
}

// VanishedError means that the store has lost a chunk that it held, or was taken to hold, when the job began.
type VanishedError struct{ Err error }

func (e *VanishedError) Error() string {
	return fmt.Sprintf("the store has lost chunks meanwhile: %v", e.Err)
}
func (e *VanishedError) Unwrap() error { return e.Err }

// Publish makes the index of the chunks visible. The order is what readers rely on: all chunks are durable, then a few
// of those that the store was taken to hold are asked for once more, then the index is written.
func (p *Publisher) Publish(ctx context.Context, to *Outlet, x *blob.Index) error {
	if p.inventory != nil && p.inventory.Err() != nil {
		p.notes(NotListed{p.inventory.Err()})
	}
	if err := p.Commit(ctx); err != nil {
		return fmt.Errorf("making the chunks durable: %w", err)
	}
	if p.assumed > 0 {
		few := p.few[:min(p.assumed, len(p.few))]
		rand.Shuffle(len(few), func(i, j int) { few[i], few[j] = few[j], few[i] })
		err := p.askFor(ctx, few[:min(samplesOf(p.assumed), len(few))])
		if errors.Is(err, store.ErrNotFound) {
			return &VanishedError{err}
		}
		if err != nil {
			return err
		}
	}
	return to.Publish(ctx, x)
}
