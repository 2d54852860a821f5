package apply

import (
	"context"
	"errors"
	"fmt"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/blob/release"
	"cairn/seed"
	"cairn/store"
)

// ErrNoBase reports that there are deltas to an image, but none from an image like those of the seeds.
var ErrNoBase = errors.New("there is no delta from an image like those of the seeds")

const (
	// leastDelta is the least number of bytes to fetch for which a delta is looked for.
	leastDelta = 32 << 10
	// leastShare is the least number of bytes to fetch, as a multiple of the bytes that a delta's table takes.
	leastShare = 4
)

// IsWorth reports whether a job that fetches chunks of this many bytes uses a delta, of which costs bytes
// must be downloaded before it can be used.
func IsWorth(bytes, costs int64) bool { return bytes >= max(leastDelta, leastShare*costs) }

// mostOfOld is the part of an old image's samples that the seeds must hold, in percent.
const mostOfOld = 75

// IsAbsent reports whether an error of Find says that there is no delta. S3 may deny what is absent.
func IsAbsent(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDenied)
}

// Find opens the delta to the image of x, in a directory of deltas, from the old image that the seeds
// hold, or hold most of. It returns that image as the seeds hold it. worth is called with the number of
// bytes that must be downloaded before the delta can be used; if it reports false, Find returns nil. The
// caller must Close the file. A directory without deltas to the image is store.ErrNotFound.
//
// The Data of a seed may be nil: then the image that is returned must not be read.
func Find(
	ctx context.Context, dir store.Reader, x *blob.Index, seeds []seed.Seed, worth func(bytes int64) (bool, error),
) (*File, *seed.OldImage, error) {
	bases, err := release.ReadDeltaList(ctx, dir, x)
	if err != nil {
		return nil, nil, err
	}
	base, held, err := chooseBase(bases, seeds)
	if err != nil {
		return nil, nil, err
	}
	if held == nil {
		if s := findBeginning(seeds, base); s != nil {
			held, seeds = s.Index, append([]seed.Seed{*s}, seeds...)
		}
	}
	if ok, err := worth(headCost(base, held, x)); !ok || err != nil {
		return nil, nil, err
	}
	if held == nil {
		if held, err = release.ReadDeltaIndex(ctx, dir, x.Digest(), base.Index, mostChunks(x)); err != nil {
			return nil, nil, err
		}
	}
	name := release.DeltaName(x.Digest(), base.Index)
	f, err := Open(ctx, dir, name, x, Sizes{base.FileSize, base.HeadSize})
	if err != nil {
		return nil, nil, err
	}
	if f.Old != held.Digest() || f.OldSize != held.Size() {
		f.Close()
		return nil, nil, fmt.Errorf("reading %v/%s: %w: it is from another image than its name says", dir, name, delta.ErrInvalid)
	}
	return f, seed.NewOldImage(held, seeds...), nil
}

// mostChunks returns how many chunks an old image of x may have. An image of many more is not worth its
// index.
func mostChunks(x *blob.Index) int { return 4*x.Len() + 1<<16 }

// chooseBase returns the old image that the seeds hold, or hold most of. If a seed's index is that of
// the old image, it is returned too.
func chooseBase(bases []delta.Base, seeds []seed.Seed) (best delta.Base, held *blob.Index, err error) {
	digests := make([]blob.Digest, len(seeds))
	for i, s := range seeds {
		digests[i] = s.Index.Digest()
	}
	for _, b := range bases {
		for i, s := range seeds {
			if digests[i] == b.Index && (held == nil || b.FileSize < best.FileSize) {
				best, held = b, s.Index
			}
		}
	}
	if held != nil {
		return best, held, nil
	}
	most := 0
	for i, n := range countSamples(bases, seeds) {
		if n > most && 100*n >= mostOfOld*len(bases[i].Samples) {
			best, most = bases[i], n
		}
	}
	if most == 0 {
		return best, nil, ErrNoBase
	}
	return best, nil, nil
}

// countSamples returns how many samples of each base are of chunks that a seed has.
func countSamples(bases []delta.Base, seeds []seed.Seed) []int {
	sampled := map[[8]byte]bool{} // whether a seed has it
	for _, b := range bases {
		for _, s := range b.Samples {
			sampled[s] = false
		}
	}
	for _, s := range seeds {
		for _, c := range s.Index.All() {
			if _, ok := sampled[[8]byte(c.Digest[:8])]; ok {
				sampled[[8]byte(c.Digest[:8])] = true
			}
		}
	}
	counts := make([]int, len(bases))
	for i, b := range bases {
		for _, s := range b.Samples {
			if sampled[s] {
				counts[i]++
			}
		}
	}
	return counts
}

// findBeginning returns a seed that begins with the old image of base, as a seed of that length, or nil.
func findBeginning(seeds []seed.Seed, base delta.Base) *seed.Seed {
	for _, s := range seeds {
		if x := cutIndex(s, base.ImageSize); x != nil && x.Digest() == base.Index {
			return &seed.Seed{Name: s.Name, Index: x, Data: s.Data}
		}
	}
	return nil
}

// cutIndex returns the index of the first n bytes of a seed, as if they had been scanned alone, or nil.
// Only the chunk at the end differs from the seed's.
func cutIndex(s seed.Seed, n int64) *blob.Index {
	if n < 1 || n > s.Index.Size() || s.Data == nil {
		return nil
	}
	b, err := blob.NewBuilder(s.Index.Algorithm(), s.Index.Params())
	if err != nil {
		return nil
	}
	for _, c := range s.Index.All() {
		if c.End() > n {
			last := make([]byte, n-c.Offset)
			if k, _ := s.Data.ReadAt(last, c.Offset); k < len(last) {
				return nil
			}
			c.Size, c.Digest = int64(len(last)), s.Index.Algorithm().Sum(last)
		}
		if _, err := b.Add(c.Size, c.Digest); err != nil {
			return nil
		}
		if c.End() == n {
			break
		}
	}
	return b.Index()
}

// headCost returns how many bytes must be downloaded before the delta from base can be used. held is the
// old image's index, or nil if it must be downloaded too.
func headCost(base delta.Base, held, x *blob.Index) int64 {
	const row = 40 // bytes of an index for a chunk
	if held != nil {
		return base.HeadSize
	}
	return base.HeadSize + row*int64(x.Len())
}
