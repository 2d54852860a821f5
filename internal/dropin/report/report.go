// Package report computes what `desync info` and `desync inspect-chunks` print of an index, and
// --print-stats of a job, for programs that read their JSON. It reads the index, the seeds' indexes and answers of
// stores; it opens nothing.
package report

import (
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/store"
)

// Info is the output of desync info. Its numbers are those of desync, under desync's keys. Unless their names say
// otherwise, sizes are of uncompressed chunks, each counted once, in bytes.
type Info struct {
	Total              int   `json:"total"`    // chunks of the image
	Unique             int   `json:"unique"`   // different ones
	InStore            int   `json:"in-store"` // of these, as the others that follow
	InSeed             int   `json:"in-seed"`
	InCache            int   `json:"in-cache"`
	Missing            int   `json:"not-in-seed-nor-cache"`
	Size               int64 `json:"size"` // of the image
	SizeNotInSeed      int64 `json:"dedup-size-not-in-seed"`
	SizeMissing        int64 `json:"dedup-size-not-in-seed-nor-cache"`
	SizeMissingInStore int64 `json:"dedup-size-not-in-seed-nor-cache-compressed"` // 0 if the size of any of them is unknown
	ChunkSizeMin       int64 `json:"chunk-size-min"`
	ChunkSizeAvg       int64 `json:"chunk-size-avg"`
	ChunkSizeMax       int64 `json:"chunk-size-max"`
}

// ChunkInfo is an element of the output of desync inspect-chunks.
type ChunkInfo struct {
	ID     blob.Digest `json:"id"`
	Size   int64       `json:"uncompressed_size"`
	Stored int64       `json:"compressed_size,omitempty"` // in the store; 0 if it lacks the chunk
}

// Sources say where chunks are.
type Sources struct {
	Seeds   []*blob.Index
	Caches  []store.Haser // a chunk in any of them is in the cache
	Stores  []store.Haser
	Chunks  []ChunkInfo // the stored sizes of chunks
	Workers int         // chunks that are looked up at once, at least 1
}

// NewInfo counts the chunks of x and what of them the sources have.
func NewInfo(ctx context.Context, x *blob.Index, s Sources) (Info, error) {
	p := x.Params()
	info := Info{Total: x.Len(), Size: x.Size(), ChunkSizeMin: p.Min, ChunkSizeAvg: p.Avg, ChunkSizeMax: p.Max}
	chunks := distinctChunks(x)
	info.Unique = len(chunks)
	cached, err := findHeld(ctx, s.Caches, chunks, s.Workers)
	if err != nil {
		return Info{}, err
	}
	stored, err := findHeld(ctx, s.Stores, chunks, s.Workers)
	if err != nil {
		return Info{}, err
	}
	var seeds []*blob.Table
	for _, seed := range s.Seeds {
		seeds = append(seeds, blob.NewTable(seed))
	}
	var missing []blob.Chunk
	for i, c := range chunks {
		if cached[i] {
			info.InCache++
		}
		if stored[i] {
			info.InStore++
		}
		if isInAny(seeds, c.Digest) {
			info.InSeed++
			continue
		}
		info.SizeNotInSeed += c.Size
		if !cached[i] {
			missing = append(missing, c)
			info.SizeMissing += c.Size
		}
	}
	info.Missing = len(missing)
	info.SizeMissingInStore, err = storedSize(missing, s.Chunks)
	return info, err
}

// distinctChunks returns the first occurrences of the chunks of x.
func distinctChunks(x *blob.Index) (chunks []blob.Chunk) {
	table := blob.NewTable(x)
	for i, c := range x.All() {
		if table.Find(c.Digest) == i {
			chunks = append(chunks, c)
		}
	}
	return chunks
}

// findHeld reports for each chunk whether any of the stores has it.
func findHeld(ctx context.Context, stores []store.Haser, chunks []blob.Chunk, workers int) ([]bool, error) {
	held := make([]bool, len(chunks))
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(max(workers, 1))
	for i, c := range chunks {
		if len(stores) == 0 || groupCtx.Err() != nil {
			break
		}
		group.Go(func() (err error) {
			for _, s := range stores {
				if held[i], err = s.Has(groupCtx, c.Digest); held[i] || err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return held, ctx.Err()
}

func isInAny(tables []*blob.Table, d blob.Digest) bool {
	for _, t := range tables {
		if t.Find(d) >= 0 {
			return true
		}
	}
	return false
}

// storedSize returns the sum of the stored sizes of chunks, or 0 if one of them is unknown. A known chunk of another
// size is an error.
func storedSize(chunks []blob.Chunk, known []ChunkInfo) (sum int64, err error) {
	if len(known) == 0 {
		return 0, nil
	}
	infos := make(map[blob.Digest]ChunkInfo, len(known))
	for _, info := range known {
		infos[info.ID] = info
	}
	for _, c := range chunks {
		info, is := infos[c.Digest]
		switch {
		case is && info.Size != c.Size:
			return 0, fmt.Errorf("chunk %v has %d bytes in the list of chunks, and %d in the index", c.Digest, info.Size, c.Size)
		case !is || info.Stored == 0:
			return 0, nil
		}
		sum += info.Stored
	}
	return sum, nil
}

// WriteText writes the numbers as desync does in its plain format.
func (i Info) WriteText(w io.Writer) error {
	for _, row := range []struct {
		name string
		n    any
	}{
		{"Blob size", i.Size},
		{"Size of deduplicated chunks not in seed", i.SizeNotInSeed},
		{"Size of deduplicated chunks not in seed nor cache", i.SizeMissing},
		{"Total chunks", i.Total},
		{"Unique chunks", i.Unique},
		{"Chunks in store", i.InStore},
		{"Chunks in seed", i.InSeed},
		{"Chunks in cache", i.InCache},
		{"Chunks not in seed nor cache", i.Missing},
		{"Compressed chunks not in seed nor cache", i.SizeMissingInStore},
		{"Chunk size min", i.ChunkSizeMin},
		{"Chunk size avg", i.ChunkSizeAvg},
		{"Chunk size max", i.ChunkSizeMax},
	} {
		if _, err := fmt.Fprintf(w, "%s: %d\n", row.name, row.n); err != nil {
			return err
		}
	}
	return nil
}

// Stater tells the stored size of chunks; *store.Chunks implements it. Safe for concurrent use.
type Stater interface {
	Stat(ctx context.Context, d blob.Digest) (stored int64, err error)
}

// InspectChunks returns all chunks of x in their order, repeats too. Their stored sizes are those in a store, which may
// be nil.
func InspectChunks(ctx context.Context, x *blob.Index, from Stater, workers int) ([]ChunkInfo, error) {
	infos := make([]ChunkInfo, 0, x.Len())
	for _, c := range x.All() {
		infos = append(infos, ChunkInfo{ID: c.Digest, Size: c.Size})
	}
	if from == nil {
		return infos, ctx.Err()
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(max(workers, 1))
	table := blob.NewTable(x)
	for i, c := range x.All() {
		if groupCtx.Err() != nil {
			break
		}
		if table.Find(c.Digest) < i {
			continue
		}
		group.Go(func() (err error) {
			infos[i].Stored, err = from.Stat(groupCtx, c.Digest)
			if errors.Is(err, store.ErrNotFound) {
				return nil
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for i, c := range x.All() {
		infos[i].Stored = infos[table.Find(c.Digest)].Stored
	}
	return infos, ctx.Err()
}
