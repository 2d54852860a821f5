package assemble

import (
	"context"
	"io"
	"slices"

	"cairn/seed"
)

// Preview finds out what Run would do, by reading what it would read, and writes nothing. A nil target
// stands for a new file. The chunks that would be fetched are listed by number; stats count them as
// fetched, and nothing as written.
func Preview(ctx context.Context, p *seed.Plan, target io.ReaderAt, o Options) (Stats, []int, error) {
	o.New = target == nil
	j := newJob(p, nil, readOnly{target}, o)
	j.order = newOrder(p, 0, maxSegment, -1)
	var fetches []int
	err := j.each(ctx, func(_ context.Context, s *segment) error {
		s.gatherLocal()
		missing := s.countMissing()
		j.mu.Lock()
		fetches = append(fetches, missing...)
		j.mu.Unlock()
		return nil
	})
	if err != nil {
		return Stats{}, nil, err
	}
	slices.Sort(fetches)
	return j.stats(), fetches, ctx.Err()
}

// countMissing counts what would be fetched and copied, and lists what would be fetched.
func (s *segment) countMissing() []int {
	for i := range s.chunksIn(deferred) {
		s.job.count.copied.Add(s.chunk(i).Size)
	}
	var list []int
	for i := range s.chunksIn(missing) {
		list = append(list, i)
		s.job.count.fetches.Add(1)
		s.job.count.fetched.Add(s.chunk(i).Size)
	}
	return list
}

// readOnly is the target of a preview: nothing writes to it.
type readOnly struct{ io.ReaderAt }

func (readOnly) WriteAt([]byte, int64) (int, error) { panic("assemble: a preview writes") }
func (readOnly) Zero(int64, int64) error            { panic("assemble: a preview writes") }
func (readOnly) Sync() error                        { panic("assemble: a preview writes") }
