package keep

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"cairn/blob"
	"cairn/store"
)

// StatOptions configure a Stat.
type StatOptions struct {
	Indexes iter.Seq2[*blob.Index, error] // read one after the other, and not kept; nil for none
	// Packed returns the stored size of a chunk of the index that Indexes yielded last, if the chunk is in a pack. Such
	// chunks are not missing. May be nil.
	Packed  func(d blob.Digest) (stored int64, ok bool)
	Workers int                // chunks that are requested at once, where the store cannot be listed
	Show    func(chunks int64) // called after each listed shard with the chunks counted so far; may be nil
}

// Amount is a number of chunks and their stored bytes. A chunk that is stored in both forms counts
// once, with the bytes of both.
type Amount struct {
	Chunks int64 `json:"chunks"`
	Bytes  int64 `json:"stored_bytes"`
}

func (a *Amount) addChunk(stored int64) {
	a.Chunks++
	a.Bytes += stored
}

// StatReport describes the content of a store.
type StatReport struct {
	Listed       bool        `json:"listed"` // if false, only the chunks of the indexes were requested
	Amount                   // all chunks, without the empty ones
	Plain        int64       `json:"plain"` // objects of chunks that are not compressed
	Empty        int64       `json:"empty"` // objects
	Misnamed     Others      `json:"misnamed"`
	Foreign      Others      `json:"foreign"`
	Unreferenced Amount      `json:"unreferenced"` // in none of the indexes
	Indexes      []IndexStat `json:"indexes,omitempty"`
	// Of all indexes together:
	ImageBytes    int64 `json:"image_bytes"`
	DistinctBytes int64 `json:"distinct_bytes"` // in distinct chunks
}

// IndexStat describes the part of a store that belongs to an index.
type IndexStat struct {
	ImageBytes    int64  `json:"image_bytes"`
	Distinct      int64  `json:"distinct"`
	DistinctBytes int64  `json:"distinct_bytes"`
	Stored        Amount `json:"stored"`
	Exclusive     Amount `json:"exclusive"` // in no other index: freed by removing this one
	Missing       int64  `json:"missing"`   // chunks that the store lacks
}

// Stat counts the chunks of a store, and those of each index. It reads no chunk. Memory is about 60
// bytes for each distinct chunk of the indexes and 4 bytes for each distinct chunk of each index,
// whatever the store holds.
func Stat(ctx context.Context, r store.Reader, o StatOptions) (StatReport, error) {
	s := stat{table: newTable(), options: o}
	if err := s.addIndexes(); err != nil {
		return StatReport{}, err
	}
	l, err := listerOf(r)
	switch {
	case err == nil:
		err = s.countListed(ctx, l)
	case len(s.members) > 0:
		err = s.requestSizes(ctx, r)
	}
	if err != nil {
		return StatReport{}, fmt.Errorf("counting the chunks of %v: %w", r, err)
	}
	for _, r := range s.table.rows {
		s.report.DistinctBytes += int64(r.size)
	}
	for i, rows := range s.members {
		s.report.ImageBytes += s.sizes[i]
		s.report.Indexes = append(s.report.Indexes, s.indexStat(s.sizes[i], rows))
	}
	return s.report, ctx.Err()
}

// Each returns a sequence of indexes that are in memory.
func Each(indexes []*blob.Index) iter.Seq2[*blob.Index, error] {
	return func(yield func(*blob.Index, error) bool) {
		for _, x := range indexes {
			if !yield(x, nil) {
				return
			}
		}
	}
}

func (s *stat) addIndexes() error {
	if s.options.Indexes == nil {
		return nil
	}
	for x, err := range s.options.Indexes {
		if err != nil {
			return err
		}
		rows := s.table.add(x, int32(len(s.members)))
		s.addPacked(rows)
		s.members = append(s.members, rows)
		s.sizes = append(s.sizes, x.Size())
	}
	return nil
}

// addPacked notes which chunks of an index are in packs.
func (s *stat) addPacked(rows []uint32) {
	if s.options.Packed == nil {
		return
	}
	for _, i := range rows {
		if stored, ok := s.options.Packed(s.table.rows[i].digest); ok {
			s.table.rows[i].stored = stored // until a file of the chunk is found
		}
	}
}

type stat struct {
	table   *table
	members [][]uint32 // row indexes of each index
	sizes   []int64    // of the image of each index
	options StatOptions
	report  StatReport
}

func (s *stat) countListed(ctx context.Context, l store.Lister) error {
	s.report.Listed = true
	for shard, err := range listShards(ctx, l) {
		if err != nil {
			return err
		}
		s.report.Foreign.add(shard.foreign)
		s.report.Misnamed.add(shard.misnamed)
		s.countObjects(shard.objects)
		if s.options.Show != nil {
			s.options.Show(s.report.Chunks)
		}
	}
	return nil
}

// countObjects counts objects, which are sorted.
func (s *stat) countObjects(objects []object) {
	for lo := 0; lo < len(objects); {
		hi, stored := lo, int64(0)
		for ; hi < len(objects) && objects[hi].digest == objects[lo].digest; hi++ {
			stored += objects[hi].size
			switch {
			case objects[hi].size == 0:
				s.report.Empty++
			case !objects[hi].packed:
				s.report.Plain++
			}
		}
		if stored > 0 {
			s.countChunk(objects[lo].digest, stored)
		}
		lo = hi
	}
}

func (s *stat) countChunk(d blob.Digest, stored int64) {
	s.report.addChunk(stored)
	if r := s.table.find(d); r != nil {
		r.stored = stored
	} else {
		s.report.Unreferenced.addChunk(stored)
	}
}

// requestSizes requests the size of each chunk of the indexes.
func (s *stat) requestSizes(ctx context.Context, r store.Reader) error {
	chunks, rows := store.NewChunks(r, 0), s.table.rows // no chunk is read, so the algorithm does not matter
	err := runWorkers(ctx, len(rows), s.options.Workers, func() func(context.Context, int, int) error {
		return func(ctx context.Context, lo, hi int) error {
			for i := range rows[lo:hi] {
				stored, err := chunks.Stat(ctx, rows[lo+i].digest)
				if err != nil && !errors.Is(err, store.ErrNotFound) {
					return err
				}
				if err == nil {
					rows[lo+i].stored = stored
				}
			}
			return nil
		}
	})
	for _, row := range rows {
		if row.stored > 0 {
			s.report.addChunk(row.stored)
		}
	}
	return err
}

func (s *stat) indexStat(size int64, rows []uint32) IndexStat {
	t := IndexStat{ImageBytes: size, Distinct: int64(len(rows))}
	for _, i := range rows {
		r := s.table.rows[i]
		t.DistinctBytes += int64(r.size)
		switch {
		case r.stored == 0:
			t.Missing++
			continue
		case r.owner != shared:
			t.Exclusive.addChunk(r.stored)
		}
		t.Stored.addChunk(r.stored)
	}
	return t
}
