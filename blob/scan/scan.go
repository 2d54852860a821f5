// Package scan makes the index of an image: it cuts and hashes, reading the image once. Making a store
// (blob/ingest) and learning what a seed holds are both this. The package knows nothing of stores.
package scan

import (
	"bytes"
	"context"
	"fmt"

	"cairn/blob"
	"cairn/chunker"
)

// Options say how to cut and hash.
type Options struct {
	Algorithm blob.Algorithm
	Params    chunker.Params
	Workers   int // at least one works
	// Fresh is called with each chunk that the image did not have before, for several at once; data is
	// only valid during the call. An error ends the scan. May be nil.
	Fresh func(ctx context.Context, c blob.Chunk, data []byte) error
	// Progress is called after each batch of chunks, never twice at once. May be nil.
	Progress func(Stats)
}

// Like are the options that cut and hash as x was.
func Like(x *blob.Index) Options {
	return Options{Algorithm: x.Algorithm(), Params: chunker.Params(x.Params())}
}

// Stats tell what an image holds. Sizes are in bytes.
type Stats struct {
	Size     int64 `json:"size"`       // of the image
	Chunks   int   `json:"chunks"`     // in the index
	Distinct int   `json:"distinct"`   // different ones
	Zeros    int64 `json:"zero_bytes"` // in chunks inside runs of zeros
}

// Image cuts and hashes src and returns its index. A cancelled scan is an error.
func Image(ctx context.Context, src *chunker.Source, o Options) (*blob.Index, Stats, error) {
	builder, err := blob.NewBuilder(o.Algorithm, blob.Params(o.Params))
	if err != nil {
		return nil, Stats{}, err
	}
	s := &scanner{
		options: o, builder: builder,
		zeros:   make([]byte, o.Params.Max),
		zero:    o.Algorithm.SumZeros(o.Params.Max),
		workers: make([]scratch, max(o.Workers, 1)),
	}
	stages := chunker.Stages{Work: s.hash, Order: s.list, Finish: s.hand}
	if _, err := chunker.Split(ctx, src, o.Params, o.Workers, stages); err != nil {
		return nil, Stats{}, err
	}
	return builder.Index(), s.stats, nil
}

type scanner struct {
	options Options
	zeros   []byte      // a largest chunk of zeros
	zero    blob.Digest // and its digest
	workers []scratch
	// Used by one worker at a time, in image order:
	builder *blob.Builder
	stats   Stats
}

// scratch is what one worker keeps from stage to stage and from batch to batch.
type scratch struct {
	digests []blob.Digest // of the batch's chunks
	fresh   []int         // the chunks seen for the first time, by number in the batch
	// The chunks that need hashing, their numbers in the batch, and their digests.
	data  [][]byte
	which []int
	sums  []blob.Digest
}

// hash finds the digests of a batch. Zeros are compared, which is many times cheaper than hashing.
func (s *scanner) hash(_ context.Context, b *chunker.Batch) error {
	w := &s.workers[b.Worker]
	w.digests, w.data, w.which = w.digests[:0], w.data[:0], w.which[:0]
	for i, c := range b.Chunks {
		var digest blob.Digest
		switch {
		case s.isZero(c):
			digest = s.zero
		case c.Data == nil:
			digest = s.options.Algorithm.SumZeros(c.Size)
		default:
			w.data, w.which = append(w.data, c.Data), append(w.which, i)
		}
		w.digests = append(w.digests, digest)
	}
	if len(w.sums) < len(w.data) {
		w.sums = make([]blob.Digest, 2*len(w.data))
	}
	s.options.Algorithm.SumAll(w.sums, w.data)
	for n, i := range w.which {
		w.digests[i] = w.sums[n]
	}
	return nil
}

// isZero says whether c is a largest chunk of zeros, which is what runs of zeros are cut into.
func (s *scanner) isZero(c chunker.Chunk) bool {
	return c.Size == int64(len(s.zeros)) && (c.Data == nil || bytes.Equal(c.Data, s.zeros))
}

// list enters a batch into the index, and notes which of its chunks were not there before.
func (s *scanner) list(_ context.Context, b *chunker.Batch) error {
	w := &s.workers[b.Worker]
	w.fresh = w.fresh[:0]
	for i, c := range b.Chunks {
		first, err := s.builder.Add(c.Size, w.digests[i])
		if err != nil {
			return err
		}
		if first == b.First+i {
			w.fresh = append(w.fresh, i)
		}
		if w.digests[i] == s.zero {
			s.stats.Zeros += c.Size
		}
		s.stats.Size += c.Size
	}
	s.stats.Chunks = s.builder.Len()
	s.stats.Distinct += len(w.fresh)
	if s.options.Progress != nil {
		s.options.Progress(s.stats)
	}
	return nil
}

// hand passes the chunks on that were new.
func (s *scanner) hand(ctx context.Context, b *chunker.Batch) error {
	if s.options.Fresh == nil {
		return nil
	}
	w := &s.workers[b.Worker]
	for _, i := range w.fresh {
		c, data := b.Chunks[i], b.Chunks[i].Data
		if data == nil {
			data = s.zeros[:c.Size]
		}
		chunk := blob.Chunk{Digest: w.digests[i], Offset: c.Offset, Size: c.Size}
		if err := s.options.Fresh(ctx, chunk, data); err != nil {
			return fmt.Errorf("chunk %v of the image's bytes at %d: %w", chunk.Digest, chunk.Offset, err)
		}
	}
	return nil
}
