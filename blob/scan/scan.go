// Package scan makes the index of an image. It cuts and hashes the image in one read. Package ingest
// uses it to fill a store, and package deploy to learn the content of a seed. It knows nothing of
// stores.
package scan

import (
	"bytes"
	"context"
	"fmt"

	"cairn/blob"
	"cairn/chunker"
)

// Options are the settings of Image.
type Options struct {
	Algorithm blob.Algorithm
	Params    chunker.Params
	Workers   int // number of concurrent workers, at least 1
	// Fresh is called with each chunk that did not occur earlier in the image, by several goroutines
	// concurrently. data is valid only during the call. An error ends the scan. May be nil.
	Fresh func(ctx context.Context, c blob.Chunk, data []byte) error
	// Progress is called after each batch of chunks, never concurrently. May be nil.
	Progress func(Stats)
}

// Like returns the options that cut and hash as x was.
func Like(x *blob.Index) Options {
	return Options{Algorithm: x.Algorithm(), Params: chunker.Params(x.Params())}
}

// Stats are the counts of a scan. Sizes are in bytes.
type Stats struct {
	Size     int64 `json:"size"`       // of the image
	Chunks   int   `json:"chunks"`     // in the index
	Distinct int   `json:"distinct"`   // distinct chunks
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
	stages := chunker.Stages{Work: s.hashBatch, Order: s.listBatch, Finish: s.callFresh}
	if _, err := chunker.Split(ctx, src, o.Params, o.Workers, stages); err != nil {
		return nil, Stats{}, err
	}
	return builder.Index(), s.stats, nil
}

type scanner struct {
	options Options
	zeros   []byte      // a chunk of zeros of the maximum size
	zero    blob.Digest // the digest of zeros
	workers []scratch
	// Used by one worker at a time, in image order:
	builder *blob.Builder
	stats   Stats
}

// scratch is the state of one worker, kept across stages and batches.
type scratch struct {
	digests []blob.Digest // of the batch's chunks
	fresh   []int         // the first occurrences of chunks, by number in the batch
	// The chunks to hash, their numbers in the batch, and their digests.
	data    [][]byte
	numbers []int
	hashes  []blob.Digest
}

// hashBatch computes the digests of a batch. Runs of zeros are cut into chunks of the maximum size. Such
// chunks are compared with zeros, which is many times cheaper than hashing them.
func (s *scanner) hashBatch(_ context.Context, b *chunker.Batch) error {
	w := &s.workers[b.Worker]
	w.digests, w.data, w.numbers = w.digests[:0], w.data[:0], w.numbers[:0]
	for i, c := range b.Chunks {
		var digest blob.Digest
		switch {
		case c.Size == int64(len(s.zeros)) && (c.Data == nil || bytes.Equal(c.Data, s.zeros)):
			digest = s.zero
		case c.Data == nil:
			digest = s.options.Algorithm.SumZeros(c.Size)
		default:
			w.data, w.numbers = append(w.data, c.Data), append(w.numbers, i)
		}
		w.digests = append(w.digests, digest)
	}
	if len(w.hashes) < len(w.data) {
		w.hashes = make([]blob.Digest, 2*len(w.data))
	}
	s.options.Algorithm.SumAll(w.hashes, w.data)
	for n, i := range w.numbers {
		w.digests[i] = w.hashes[n]
	}
	return nil
}

// listBatch adds a batch to the index, and notes the first occurrences of chunks.
func (s *scanner) listBatch(_ context.Context, b *chunker.Batch) error {
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

// callFresh calls Fresh for the first occurrences.
func (s *scanner) callFresh(ctx context.Context, b *chunker.Batch) error {
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
