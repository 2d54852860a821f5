package release

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/store"
	"cairn/store/chunkfile"
	"cairn/store/gcroot"
	"cairn/store/locate"
	"cairn/store/pack"
)

// Note is an event that does not end the job: BaseLeftOut, NotListed, NotRecorded or AttributesLost.
type Note any

// BaseLeftOut reports that a base is not used. Either the store lacks chunks of it or may lack some (Err), or its chunk
// sizes differ from the new index's (Err is nil).
type BaseLeftOut struct {
	Base
	Err error
}

// NotListed reports that the store cannot be listed. The job asked for each chunk instead.
type NotListed struct{ Err error }

// AttributesLost reports that a file did not get all attributes of the file that it replaced.
type AttributesLost struct {
	Path string
	Err  error
}

// Base is an index whose chunks the store presumably holds.
type Base struct {
	At    locate.Location
	Index *blob.Index
}

// PublisherOptions are the settings of a Publisher.
type PublisherOptions struct {
	Writer    store.WriterOptions
	Algorithm blob.Algorithm
	Params    blob.Params
	Chunks    int64 // approximate number of chunks; 0 or less if unknown
	Remote    bool  // the store is reached over a network; it is listed instead of asked for each chunk
	Bases     []Base
	Records   *gcroot.Dir  // of the store; nil for none
	Name      string       // of the index in the records; see RecordName
	Packs     *PackOptions // nil for none; needs Records
	Notes     func(Note)   // called with BaseLeftOut, NotListed and NotRecorded; may be nil
}

// Publisher writes the chunks of an image that a store lacks, and then publishes the index. It
// implements ingest.Store. Safe for concurrent use, except Publish and Close.
type Publisher struct {
	writer    *store.Writer
	chunks    *store.Chunks
	inventory *store.Inventory // nil for none
	notes     func(Note)
	recorder  *Recorder
	name      string  // of the index in the records
	packs     *packer // nil without packs
	noChunks  bool    // chunks are only in packs

	mu        sync.Mutex // guards the fields below
	assumes   bool       // the store is not asked for each chunk
	assumed   int        // chunks that the store presumably holds
	sample    [maxSamples]blob.Digest
	committed bool // all chunks that were put or found
}

// NewPublisher starts to publish into a store. With records it takes a lease first, so that gc removes nothing
// that the store holds from now on. It learns in the cheapest way which chunks those are: from bases, from a
// listing if the store is remote, or by asking for each chunk. Close must be called at the end.
func NewPublisher(ctx context.Context, to store.Bucket, o PublisherOptions) (*Publisher, error) {
	p := &Publisher{chunks: store.NewChunks(to, o.Algorithm), notes: o.Notes, name: o.Name}
	if p.notes == nil {
		p.notes = func(Note) {}
	}
	var err error
	if p.recorder, err = NewRecorder(ctx, o.Records, to, p.notes); err != nil {
		return nil, err
	}
	if o.Packs != nil {
		p.recorder.packs, p.noChunks = o.Packs.To, !o.Packs.Chunks
		if p.packs, err = newPacker(ctx, o, p.recorder); err != nil {
			p.Close()
			return nil, err
		}
	}
	if p.noChunks {
		return p, nil
	}
	known, err := p.acceptBases(ctx, o)
	switch {
	case err != nil:
		p.Close()
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

// Close discards all uncommitted chunks, and ends the lease.
func (p *Publisher) Close() {
	defer p.recorder.End()
	if p.packs != nil {
		p.packs.close()
	}
	if p.writer != nil {
		_ = p.writer.Close() // the index needs only committed chunks
	}
	if p.inventory != nil {
		p.inventory.Close()
	}
}

// acceptBases returns the chunks of the bases, or nil. A base is left out if its chunk sizes differ
// from o.Params, if gc may have removed chunks of it, or if the store lacks some of a sample of its chunks.
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
		err := checkHeld(ctx, p.chunks, few)
		if err == nil {
			err = p.recorder.checkKept(ctx, x.Digest())
		}
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, errNotKept) || errors.Is(err, errPacked) {
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

// maxSamples limits a sample. If a store lost one chunk in ten, a sample of 32 misses that once in
// thirty times.
const maxSamples = 32

// samplesOf returns how many of n chunks a sample asks for.
func samplesOf(n int) int { return min(n/512+1, maxSamples) }

// checkHeld asks a store for chunks. A missing chunk is store.ErrNotFound.
func checkHeld(ctx context.Context, chunks *store.Chunks, digests []blob.Digest) error {
	group, groupCtx := errgroup.WithContext(ctx)
	for _, d := range digests {
		group.Go(func() error {
			_, err := chunks.Stat(groupCtx, d)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// Has reports whether the store holds a chunk, or presumably holds it, in every form that is to be published.
func (p *Publisher) Has(ctx context.Context, d blob.Digest) (bool, error) {
	if p.packs != nil {
		if _, packed := p.packs.findOld(d); !packed || p.noChunks {
			return packed, ctx.Err()
		}
	}
	return p.hasFile(ctx, d)
}

// hasFile reports whether the store holds a chunk's file, or presumably holds it.
func (p *Publisher) hasFile(ctx context.Context, d blob.Digest) (bool, error) {
	has, err := p.writer.Has(ctx, d)
	if has && err == nil {
		p.sampleHeld(d)
	}
	return has, err
}

// sampleHeld adds d to the random sample of the chunks that the store presumably holds (reservoir
// sampling).
func (p *Publisher) sampleHeld(d blob.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.committed = false
	if !p.assumes {
		return
	}
	if p.assumed++; p.assumed <= len(p.sample) {
		p.sample[p.assumed-1] = d
	} else if at := rand.IntN(p.assumed); at < len(p.sample) {
		p.sample[at] = d
	}
}

// Put implements store.Putter, for a chunk at an unknown place of the image.
func (p *Publisher) Put(ctx context.Context, d blob.Digest, data []byte) (stored int64, err error) {
	return p.PutChunk(ctx, blob.Chunk{Digest: d, Size: int64(len(data))}, data)
}

// PutChunk implements ingest.ChunkStore.
func (p *Publisher) PutChunk(ctx context.Context, c blob.Chunk, data []byte) (stored int64, err error) {
	p.mu.Lock()
	p.committed = false
	p.mu.Unlock()
	if p.packs == nil {
		return p.writer.Put(ctx, c.Digest, data)
	}
	file, err := p.packs.encoder.Encode(nil, data)
	if err != nil {
		return 0, fmt.Errorf("putting chunk %v: %w", c.Digest, err)
	}
	return int64(len(file)), p.putFile(ctx, c, &store.Raw{Packed: true, Stored: file, Plain: data})
}

// PutRaw is PutChunk of a chunk that was read from a store and verified. Its stored bytes stay as they are if every
// reader can decode them.
func (p *Publisher) PutRaw(ctx context.Context, c blob.Chunk, raw *store.Raw) (stored int64, err error) {
	if p.packs == nil || !raw.Packed || !chunkfile.IsZstdFrame(raw.Stored) {
		return p.PutChunk(ctx, c, raw.Plain)
	}
	p.mu.Lock()
	p.committed = false
	p.mu.Unlock()
	return int64(len(raw.Stored)), p.putFile(ctx, c, raw)
}

// AddStored puts the chunks of x that the store lacks, in the order of the image, at most atOnce at a time. load reads
// a chunk and verifies it. progress is called with the chunk's stored size after each that was put, never concurrently.
func (p *Publisher) AddStored(
	ctx context.Context, x *blob.Index, atOnce int, load func(ctx context.Context, c blob.Chunk, into *store.Raw) error,
	progress func(stored int64),
) error {
	table := blob.NewTable(x)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(max(atOnce, 1))
	var mu sync.Mutex // held while progress is called
	for i, c := range x.All() {
		if groupCtx.Err() != nil {
			break
		}
		if table.Find(c.Digest) != i {
			continue
		}
		group.Go(func() error {
			if has, err := p.Has(groupCtx, c.Digest); has || err != nil {
				return err
			}
			var raw store.Raw
			if err := load(groupCtx, c, &raw); err != nil {
				return err
			}
			stored, err := p.PutRaw(groupCtx, c, &raw)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			progress(stored)
			return nil
		})
	}
	return cmp.Or(group.Wait(), ctx.Err())
}

// putFile puts a chunk's file wherever the store lacks it.
func (p *Publisher) putFile(ctx context.Context, c blob.Chunk, raw *store.Raw) error {
	if _, packed := p.packs.findOld(c.Digest); !packed {
		if err := p.packs.addFile(ctx, c, raw.Stored); err != nil {
			return err
		}
	}
	if p.noChunks {
		return nil
	}
	has, err := p.hasFile(ctx, c.Digest)
	if err == nil && !has {
		_, err = p.writer.PutRaw(ctx, c.Digest, raw)
	}
	return err
}

// Commit makes all chunks that were put or found durable.
func (p *Publisher) Commit(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.committed {
		return ctx.Err()
	}
	var err error
	if p.packs != nil {
		err = p.packs.commit(ctx)
	}
	if err == nil && !p.noChunks {
		err = p.writer.Commit(ctx)
	}
	p.committed = err == nil
	return err
}

// VanishedError reports that the store lost a chunk that it held, or presumably held, when the job
// began.
type VanishedError struct{ Err error }

func (e *VanishedError) Error() string {
	return fmt.Sprintf("the store has lost chunks meanwhile: %v", e.Err)
}
func (e *VanishedError) Unwrap() error { return e.Err }

// vanished returns the error of a chunk that the store lacks as a *VanishedError.
func vanished(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return &VanishedError{err}
	}
	return err
}

// Publish makes the index of the chunks visible. Readers rely on its order: the index is written when
// Finish has succeeded.
func (p *Publisher) Publish(ctx context.Context, to *Outlet, x *blob.Index) error {
	packMap, err := p.finish(ctx, x)
	if err != nil {
		return err
	}
	return p.recorder.Publish(ctx, func(ctx context.Context) error {
		if packMap != nil {
			if err := to.publishMap(ctx, x, packMap); err != nil {
				return err
			}
		}
		if err := to.Publish(ctx, x); err != nil || packMap != nil {
			return err
		}
		return to.removeMap(ctx, x)
	})
}

// Packs returns the packs that were written, when Finish or Publish has succeeded.
func (p *Publisher) Packs() []pack.Pack {
	if p.packs == nil {
		return nil
	}
	return p.packs.writer.Packs()
}

// Finish makes all chunks durable, and all of the index x stay: it writes the gc root of x if there are records.
// Before, it asks again for a sample of the chunks that the store presumably holds; a missing one is a
// *VanishedError.
func (p *Publisher) Finish(ctx context.Context, x *blob.Index) error {
	_, err := p.finish(ctx, x)
	return err
}

// finish is Finish, and returns the map of packs, or nil without packs.
func (p *Publisher) finish(ctx context.Context, x *blob.Index) (packMap []byte, err error) {
	if p.inventory != nil && p.inventory.Err() != nil {
		p.notes(NotListed{p.inventory.Err()})
	}
	if err := p.Commit(ctx); err != nil {
		return nil, fmt.Errorf("making the chunks durable: %w", err)
	}
	if p.assumed > 0 {
		few := p.sample[:min(p.assumed, len(p.sample))]
		rand.Shuffle(len(few), func(i, j int) { few[i], few[j] = few[j], few[i] })
		if err := checkHeld(ctx, p.chunks, few[:min(samplesOf(p.assumed), len(few))]); err != nil {
			return nil, vanished(err)
		}
	}
	if p.packs != nil {
		if packMap, err = p.packs.encodeMap(x); err != nil {
			return nil, err
		}
	}
	if err := p.recorder.Record(ctx, p.name, x, packMap); err != nil {
		return nil, err
	}
	return packMap, ctx.Err()
}
