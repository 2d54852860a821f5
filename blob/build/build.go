// Package build makes an index of an image and stores its chunks: the job "make". It reads the image
// once, asks the store before it compresses, and writes no chunk twice. It knows nothing of files,
// devices or networks; publishing the index is the caller's, after Image returned.
package build

import (
	"context"
	"fmt"
	"sync/atomic"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
)

// Store takes chunks in; *store.Writer is one. Safe for concurrent use.
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
	Workers   int         // at least one works
	Progress  func(Stats) // called now and then, never twice at once; may be nil
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
	index, scanned, err := scan.Image(ctx, src, so)
	if err != nil {
		return nil, Stats{}, err
	}
	if err := dst.Commit(ctx); err != nil {
		return nil, Stats{}, fmt.Errorf("making the chunks durable: %w", err)
	}
	return index, p.stats(scanned), ctx.Err()
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
