// Package ingest makes an index of an image and stores its chunks. It reads the image once, asks the
// store before it compresses, and writes no chunk twice. It knows nothing of networks. Package release
// publishes the index.
package ingest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
)

// Store stores chunks; *release.Publisher and *store.Writer implement it. Safe for concurrent use.
type Store interface {
	// Has reports whether the store holds the chunk.
	Has(ctx context.Context, d blob.Digest) (bool, error)
	// Put stores a chunk. It returns the chunk's stored size in bytes.
	Put(ctx context.Context, d blob.Digest, data []byte) (stored int64, err error)
	// Commit makes all chunks from Put durable.
	Commit(ctx context.Context) error
}

// ChunkStore is a Store that uses the places of chunks in the image.
type ChunkStore interface {
	// PutChunk is Put of a chunk of the image.
	PutChunk(ctx context.Context, c blob.Chunk, data []byte) (stored int64, err error)
}

// Options are the settings of Image.
type Options struct {
	Algorithm blob.Algorithm
	Params    chunker.Params
	Workers   int // number of concurrent workers, at least 1
	// AtOnce is the number of chunks that are looked up, compressed and stored concurrently, besides
	// the workers. It hides the latency of a remote store. These chunks take at most 64 MiB. With 0 the
	// workers do this themselves.
	AtOnce   int
	Progress func(Stats) // called after each batch of chunks, never concurrently; may be nil
}

// Stats are the counts of an ingest. Sizes are in bytes.
type Stats struct {
	scan.Stats
	New      int64 `json:"new_chunks"`   // chunks that the store lacked
	NewBytes int64 `json:"new_bytes"`    // plain size of these
	Stored   int64 `json:"stored_bytes"` // stored size of these
}

// Image cuts src, stores the chunks that dst lacks, and returns the image's index. When it returns nil,
// all chunks of the index are durable in dst.
func Image(ctx context.Context, src *chunker.Source, dst Store, o Options) (*blob.Index, Stats, error) {
	p := &putter{dst: dst}
	so := scan.Options{Algorithm: o.Algorithm, Params: o.Params, Workers: o.Workers, Fresh: p.storeChunk}
	if o.Progress != nil {
		so.Progress = func(s scan.Stats) { o.Progress(p.stats(s)) }
	}
	index, scanned, err := scanAndRelay(ctx, src, so, o.AtOnce)
	if err != nil {
		return nil, Stats{}, err
	}
	if err := dst.Commit(ctx); err != nil {
		return nil, Stats{}, fmt.Errorf("making the chunks durable: %w", err)
	}
	return index, p.stats(scanned), ctx.Err()
}

// scanAndRelay is scan.Image with concurrent calls of Fresh, up to atOnce at a time.
func scanAndRelay(ctx context.Context, src *chunker.Source, so scan.Options, atOnce int) (*blob.Index, scan.Stats, error) {
	if atOnce == 0 {
		return scan.Image(ctx, src, so)
	}
	r := newRelay(ctx, atOnce, so.Fresh)
	so.Fresh = r.relayChunk
	var index *blob.Index
	var scanned scan.Stats
	r.group.Go(func() (err error) {
		index, scanned, err = scan.Image(r.ctx, src, so)
		return err
	})
	if err := r.group.Wait(); err != nil {
		return nil, scan.Stats{}, err
	}
	return index, scanned, ctx.Err()
}

// relayBytes limits the bytes of the chunks in a relay.
const relayBytes = 64 << 20

// relay passes chunks to fresh in goroutines of their own. An error of fresh ends the group.
type relay struct {
	group    *errgroup.Group
	ctx      context.Context // of the group
	fresh    func(context.Context, blob.Chunk, []byte) error
	room     *semaphore.Weighted // in bytes
	spare    sync.Pool           // of *[]byte
	maxSpare int                 // capacity limit of spare buffers in bytes, since a small chunk may get one
}

func newRelay(ctx context.Context, atOnce int, fresh func(context.Context, blob.Chunk, []byte) error) *relay {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce + 1) // one more for the scan
	return &relay{group: group, ctx: groupCtx, fresh: fresh, room: semaphore.NewWeighted(relayBytes), maxSpare: relayBytes / atOnce}
}

func (r *relay) relayChunk(ctx context.Context, c blob.Chunk, data []byte) error {
	room := min(c.Size, relayBytes)
	if err := r.room.Acquire(ctx, room); err != nil {
		return err
	}
	buf, _ := r.spare.Get().(*[]byte)
	if buf == nil {
		buf = new([]byte)
	}
	*buf = append((*buf)[:0], data...)
	r.group.Go(func() error {
		defer r.room.Release(room)
		if cap(*buf) <= r.maxSpare {
			defer r.spare.Put(buf)
		}
		if err := r.fresh(r.ctx, c, *buf); err != nil {
			return fmt.Errorf("chunk %v of the image's bytes at %d: %w", c.Digest, c.Offset, err)
		}
		return nil
	})
	return nil
}

// putter stores chunks and counts them.
type putter struct {
	dst                   Store
	new, newBytes, stored atomic.Int64
}

func (p *putter) storeChunk(ctx context.Context, c blob.Chunk, data []byte) error {
	has, err := p.dst.Has(ctx, c.Digest)
	if has || err != nil {
		return err
	}
	return p.putChunk(ctx, c, data)
}

// putChunk stores a chunk that the store lacks.
func (p *putter) putChunk(ctx context.Context, c blob.Chunk, data []byte) error {
	put := func() (int64, error) { return p.dst.Put(ctx, c.Digest, data) }
	if placed, ok := p.dst.(ChunkStore); ok {
		put = func() (int64, error) { return placed.PutChunk(ctx, c, data) }
	}
	stored, err := put()
	if err != nil {
		return err
	}
	p.new.Add(1)
	p.newBytes.Add(c.Size)
	p.stored.Add(stored)
	return nil
}

func (p *putter) stats(s scan.Stats) Stats {
	return Stats{Stats: s, New: p.new.Load(), NewBytes: p.newBytes.Load(), Stored: p.stored.Load()}
}
