package assemble

import (
	"context"
	"io"

	"cairn/seed"
)

// Preview predicts Run by reading the same sources, and writes nothing. A nil target stands for a new
// file, or with o.Stream for a stream. Preview returns the stats, in which Written is 0, and the source
// of each chunk.
func Preview(ctx context.Context, p *seed.Plan, target io.ReaderAt, o Options) (Stats, []seed.Step, error) {
	o.New = target == nil
	j := newJob(p, nil, readOnly{target}, o)
	j.order = newOrder(p, 0, p.Index.Len(), j.order.segment, -1)
	j.sources = make([]seed.Step, p.Index.Len())
	err := j.forEachSegment(ctx, &j.order, func(_ context.Context, s *segment) error {
		s.gatherLocal()
		for i := range s.chunksIn(deferred) {
			s.setFinal(i, deferred, seed.Step{Kind: seed.Copy})
		}
		for i := range s.chunksIn(missing) {
			kind := seed.Fetch
			if p.At(i).Kind == seed.Delta {
				kind = seed.Delta
			}
			s.setFinal(i, missing, seed.Step{Kind: kind})
		}
		return nil
	})
	if err != nil {
		return Stats{}, nil, err
	}
	return j.stats(), j.sources, ctx.Err()
}

// FetchCalls returns the chunks that Run or Stream fetches from the store, in one call of its Get for each list. steps are
// the sources of the chunks, as Preview returns them with the same options.
func FetchCalls(p *seed.Plan, step func(chunk int) seed.Step, o Options) (calls [][]int) {
	j := newJob(p, nil, nil, o)
	lo, hi := 0, j.heads
	if o.Stream {
		j.order.runs, hi = []run{{0, p.Index.Len()}}, 0
	}
	for {
		var call []int
		for i := lo; i < hi; i++ {
			if step(i).Kind == seed.Fetch {
				call = append(call, i)
			}
		}
		if len(call) > 0 {
			calls = append(calls, call)
		}
		if lo, hi, _ = j.order.nextRun(false); lo == hi {
			return calls
		}
	}
}

// readOnly is the target of a preview, which is never written.
type readOnly struct{ io.ReaderAt }

func (readOnly) WriteAt([]byte, int64) (int, error) { panic("assemble: a preview writes") }
func (readOnly) Zero(int64, int64) error            { panic("assemble: a preview writes") }
func (readOnly) Sync() error                        { panic("assemble: a preview writes") }
