package report

import (
	"cairn/blob"
	"cairn/blob/assemble"
)

// ExtractStats is the output of desync extract --print-stats, under desync's keys.
type ExtractStats struct {
	FromSeeds   int64 `json:"chunks-from-seeds"` // and zeros, and repeats of chunks of the image
	FromStore   int64 `json:"chunks-from-store"`
	InPlace     int64 `json:"chunks-in-place"`
	BytesCopied int64 `json:"bytes-copied-from-seeds"`
	BytesCloned int64 `json:"bytes-cloned-from-seeds"` // 0: cairn counts them as copied
	BlockSize   int64 `json:"blocksize"`
	BytesTotal  int64 `json:"bytes-total"`
	ChunksTotal int   `json:"chunks-total"`
	Seeds       int   `json:"seeds"` // and the seed of zeros that desync always has
}

// NewExtractStats returns the statistics of an image that was assembled.
func NewExtractStats(x *blob.Index, s assemble.Stats) ExtractStats {
	const block = 4096 // of most file systems
	stored := s.Fetches + s.Deltas
	stats := ExtractStats{
		FromStore: stored, InPlace: s.InPlaces, FromSeeds: int64(x.Len()) - stored - s.InPlaces, BlockSize: block,
		BytesTotal: x.Size(), ChunksTotal: x.Len(), Seeds: 1 + len(s.Seeds), BytesCopied: s.Copied,
	}
	for _, n := range s.Seeds {
		stats.BytesCopied += n
	}
	return stats
}

// MakeStats is the output of desync make --print-stats. desync also cuts chunks that it does not use.
type MakeStats struct {
	Accepted int `json:"ChunksAccepted"`
	Produced int `json:"ChunksProduced"`
}
