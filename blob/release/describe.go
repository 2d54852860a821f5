package release

import (
	"cairn/blob"
	"cairn/store/locate"
)

// Description summarises an index.
type Description struct {
	Index         string             `json:"index"` // its location
	Kind          Kind               `json:"kind"`
	Digest        string             `json:"index_digest"`
	Size          int64              `json:"size"` // of the image
	Chunks        int                `json:"chunks"`
	Distinct      int                `json:"distinct"`       // different chunks
	DistinctBytes int64              `json:"distinct_bytes"` // of them
	ZeroBytes     int64              `json:"zero_bytes"`     // in chunks of zeros
	Algorithm     string             `json:"digest"`
	Min           int64              `json:"chunk_min"`
	Avg           int64              `json:"chunk_avg"`
	Max           int64              `json:"chunk_max"`
	List          []ChunkDescription `json:"list,omitempty"`
}

// ChunkDescription describes a chunk of an image.
type ChunkDescription struct {
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	Digest string `json:"digest"`
	Zero   bool   `json:"zero,omitempty"`
}

// Describe returns the description of the index x that was read at a location, with or without the list of its chunks.
func Describe(at locate.Location, x *blob.Index, list bool) Description {
	p := x.Params()
	d := Description{Index: at.String(), Kind: KindOf(at, x), Digest: x.Digest().String(), Size: x.Size(), Chunks: x.Len(),
		Algorithm: x.Algorithm().String(), Min: p.Min, Avg: p.Avg, Max: p.Max}
	table := blob.NewTable(x)
	for i, c := range x.All() {
		zero := x.IsZero(i)
		if zero {
			d.ZeroBytes += c.Size
		}
		if table.Find(c.Digest) == i {
			d.Distinct++
			d.DistinctBytes += c.Size
		}
		if list {
			d.List = append(d.List, ChunkDescription{c.Offset, c.Size, c.Digest.String(), zero})
		}
	}
	return d
}
