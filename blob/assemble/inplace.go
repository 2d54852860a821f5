package assemble

import (
	"context"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/internal/bitset"
	"cairn/seed"
)

// FindInPlace returns which of the chunks that p fetches the target holds already. Run finds them
// itself; whoever must know before reads them twice.
func FindInPlace(ctx context.Context, p *seed.Plan, target io.ReaderAt, workers int) (*bitset.Set, error) {
	f := finder{plan: p, target: target, held: bitset.New(p.Index.Len())}
	group, ctx := errgroup.WithContext(ctx)
	for range workers {
		group.Go(func() error {
			var buf []byte
			for ctx.Err() == nil {
				lo, hi := f.next()
				if lo == hi {
					return nil
				}
				buf = f.compare(lo, hi, buf)
			}
			return ctx.Err()
		})
	}
	return f.held, group.Wait()
}

type finder struct {
	plan   *seed.Plan
	target io.ReaderAt
	held   *bitset.Set

	mu  sync.Mutex // guards pos
	pos int        // the first chunk that no worker has
}

// next returns the chunks [lo, hi) for a worker; lo = hi means that none is left.
func (f *finder) next() (lo, hi int) {
	const batch = 1 << 20 // bytes
	f.mu.Lock()
	defer f.mu.Unlock()
	lo = f.pos
	if lo < f.plan.Index.Len() {
		f.pos = f.plan.Index.Span(lo, batch)
	}
	return lo, f.pos
}

// compare hashes those of the chunks [lo, hi) that the plan fetches. It returns buf, or a larger buffer.
func (f *finder) compare(lo, hi int, buf []byte) []byte {
	x := f.plan.Index
	start := x.At(lo).Offset
	buf = resizeBuffer(buf, x.At(hi-1).End()-start)
	var numbers []int
	var data [][]byte
	for i := lo; i < hi; i++ {
		c := x.At(i)
		if f.plan.At(i).Kind != seed.Fetch {
			continue
		}
		b := buf[c.Offset-start:][:c.Size]
		if n, _ := f.target.ReadAt(b, c.Offset); n == len(b) && !blob.AllZero(b) {
			numbers, data = append(numbers, i), append(data, b)
		}
	}
	digests := make([]blob.Digest, len(data))
	x.Algorithm().SumAll(digests, data)
	for n, i := range numbers {
		if digests[n] == x.At(i).Digest {
			f.held.Add(i)
		}
	}
	return buf
}
