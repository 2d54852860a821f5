// Package ingest makes an index of an image and stores its chunks. It reads the image once, asks the store before it
// compresses, and writes no chunk twice. It knows nothing of networks; blob/release publishes the index.
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

// Store takes chunks in; *release.Publisher and *store.Writer are two. Safe for concurrent use.
type Store interface {
	// Has says whether the store holds the chunk.
	Has(ctx context.Context, d blob.Digest) (bool, error)
	// Put stores a chunk, and returns how many bytes it takes there.
	Put(ctx context.Context, d blob.Digest, data []byte) (stored int64, err error)
	// Commit makes all that was put durable.
	Commit(ctx context.Context) error
}

// Options say how to cut and hash.
type Options struct {
	Algorithm blob.Algorithm
	Params    chunker.Params
	Workers   int // at least one works
	// AtOnce is how many chunks are asked for, compressed and put at once beside the workers, who need not
	// wait then: for a store that is far away. They take 64 MiB at most. At 0 workers do it themselves.
	AtOnce   int
	Progress func(Stats) // called now and then, never twice at once; may be nil
}

// Stats tell what was done. Sizes are in bytes.
type Stats struct {
	scan.Stats
	New      int64 `json:"new_chunks"`   // chunks that the store lacked
	NewBytes int64 `json:"new_bytes"`    // their plain size
	Stored   int64 `json:"stored_bytes"` // and what they take in the store
}

// Image cuts src, puts the chunks that dst lacks into it, and returns the image's index. When it returns
// nil, all chunks of the index are durable in dst.
func Image(ctx context.Context, src *chunker.Source, dst Store, o Options) (*blob.Index, Stats, error) {
	p := &putter{dst: dst}
	so := scan.Options{Algorithm: o.Algorithm, Params: o.Params, Workers: o.Workers, Fresh: p.put}
	if o.Progress != nil {
		so.Progress = func(s scan.Stats) { o.Progress(p.stats(s)) }
	}
	index, scanned, err := overlapped(ctx, src, so, o.AtOnce)
	if err != nil {
		return nil, Stats{}, err
	}
	if err := dst.Commit(ctx); err != nil {
		return nil, Stats{}, fmt.Errorf("making the chunks durable: %w", err)
	}
	return index, p.stats(scanned), ctx.Err()
}

// overlapped is scan.Image, but what is Fresh is handed on beside it, atOnce chunks at a time.
func overlapped(ctx context.Context, src *chunker.Source, so scan.Options, atOnce int) (*blob.Index, scan.Stats, error) {
	if atOnce == 0 {
		return scan.Image(ctx, src, so)
	}
	r := newRelay(ctx, atOnce, so.Fresh)
	so.Fresh = r.take
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

// relayBytes is what a relay holds at most.
const relayBytes = 64 << 20

// relay hands chunks on beside those who bring them. What fails ends the group.
type relay struct {
	group *errgroup.Group
	ctx   context.Context // the group's
	fresh func(context.Context, blob.Chunk, []byte) error
	room  *semaphore.Weighted // in bytes
	spare sync.Pool           // of *[]byte
	most  int                 // bytes of what is kept there, as a small chunk may get it next
}

func newRelay(ctx context.Context, atOnce int, fresh func(context.Context, blob.Chunk, []byte) error) *relay {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce + 1) // who brings them, too
	return &relay{group: group, ctx: groupCtx, fresh: fresh, room: semaphore.NewWeighted(relayBytes), most: relayBytes / atOnce}
}

func (r *relay) take(ctx context.Context, c blob.Chunk, data []byte) error {
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
		if cap(*buf) <= r.most {
			defer r.spare.Put(buf)
		}
		if err := r.fresh(r.ctx, c, *buf); err != nil {
			return fmt.Errorf("chunk %v of the image's bytes at %d: %w", c.Digest, c.Offset, err)
		}
		return nil
	})
	return nil
}

// putter stores chunks, and counts them.
type putter struct {
	dst                   Store
	new, newBytes, stored atomic.Int64
}

func (p *putter) put(ctx context.Context, c blob.Chunk, data []byte) error {
	has, err := p.dst.Has(ctx, c.Digest)
	if has || err != nil {
		return err
	}
	stored, err := p.dst.Put(ctx, c.Digest, data)
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
