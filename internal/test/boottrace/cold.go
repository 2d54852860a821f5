package boottrace

import (
	"context"
	"math/rand/v2"

	"golang.org/x/sync/errgroup"
)

const page = 4096

// Pages returns offsets of one page in each chunk that is not zero, in a random but fixed order.
func Pages(chunks int, chunk func(i int) (offset int64, zero bool)) (places []int64) {
	for i := range chunks {
		if offset, zero := chunk(i); !zero {
			places = append(places, (offset+page-1)&^(page-1))
		}
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	return places
}

// ReadPages reads the pages at the offsets, depth at once, and returns when all are read.
func ReadPages(ctx context.Context, places []int64, depth int, read func(ctx context.Context, p []byte, off int64) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(depth)
	for _, off := range places {
		group.Go(func() error { return read(ctx, make([]byte, page), off) })
	}
	return group.Wait()
}
