package deltadir

import (
	"context"
	"fmt"
	"io"
	"math"

	"cairn/blob/delta"
)

// maxEstimated is the number of chunks that an estimate encodes.
const maxEstimated = 32

// Estimate is what a delta between two images would be, as a sample of its chunks tells.
type Estimate struct {
	Sampled   int   // chunks that were encoded
	Chunks    int   // that the delta would encode
	FileBytes int64 // of the delta
	HeadBytes int64 // of them, in its head and table
	LeftOut   int64 // stored bytes of the chunks that the delta would leave out
	Error     int64 // standard error of FileBytes and LeftOut together
}

// EstimateDelta encodes a sample of at most 32 of the chunks that to has and from lacks, and reads little
// more than these. The real delta is likely a bit smaller. stored has the size of each of these chunks in
// the store, by its number.
func EstimateDelta(ctx context.Context, from, to *Image, stored []int64, o Options) (e Estimate, err error) {
	made, err := delta.Make(ctx, delta.Image{Index: from.Index, Data: from}, delta.Image{Index: to.Index, Data: to},
		io.Discard, delta.Options{Workers: o.Workers, Progress: o.Progress, Sample: maxEstimated})
	if err != nil {
		return e, err
	}
	var all, sampled, leftOut float64 // stored bytes
	lacking := 0
	for i := range lackingChunks(from.Index, to.Index) {
		all += float64(stored[i])
		lacking++
	}
	rows := made.Rows
	costs := make([]float64, len(made.Tried)) // bytes of each payload or chunk
	for n, i := range made.Tried {
		costs[n] = float64(stored[i])
		sampled += costs[n]
		if len(rows) > 0 && rows[0].Chunk == i {
			costs[n], rows = float64(rows[0].Size), rows[1:]
		} else {
			leftOut += costs[n]
		}
	}
	e = Estimate{Sampled: len(made.Tried)}
	if e.Sampled == 0 || sampled == 0 {
		e.LeftOut = int64(all)
		return e, nil
	}
	empty, err := delta.Encode(made.Head, nil)
	if err != nil {
		return e, fmt.Errorf("estimating a delta: %w", err)
	}
	head, err := delta.Encode(made.Head, made.Rows)
	if err != nil {
		return e, fmt.Errorf("estimating a delta: %w", err)
	}
	perBytes, perChunk := all/sampled, float64(lacking)/float64(e.Sampled)
	e.Chunks = int(perChunk * float64(len(made.Rows)))
	e.HeadBytes = int64(len(empty)) + int64(perChunk*float64(len(head)-len(empty)))
	e.FileBytes = e.HeadBytes + int64(perBytes*float64(made.Payloads))
	e.LeftOut = int64(perBytes * leftOut)
	if e.Sampled > 1 {
		// The standard error of a ratio of sums, in a sample of a finite number of chunks.
		share, squares, n := (float64(made.Payloads)+leftOut)/sampled, 0.0, float64(e.Sampled)
		for k, i := range made.Tried {
			squares += math.Pow(costs[k]-share*float64(stored[i]), 2)
		}
		e.Error = int64(perBytes * math.Sqrt(squares*n/(n-1)*(1-n/float64(lacking))))
	}
	return e, nil
}
