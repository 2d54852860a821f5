package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store"
	"cairn/store/cachedir"
	"cairn/store/keep"
	"cairn/store/locate"
	"cairn/store/pack"
	"cairn/store/supply"
)

// stores holds the flags of the stores that chunks are read from.
type stores struct {
	access
	groups     [][]locate.Location // in order; the stores of a group have the same content
	cache      string
	cacheLimit int64 // as in cachedir.Options
	fetches    int   // 0: as many as the link to each store has room for
	rateLimit  int64
}

func (f *stores) addFlags(c *cobra.Command) {
	f.access.addFlags(c)
	c.Flags().VarP(groupsFlag(&f.groups), "store", "s",
		"`location` of a store: a path or URL, or A|B for stores with the same content (\\| is a | in a name); "+
			"repeatable, asked in order (default: default.castr beside the index)")
	c.Flags().StringVarP(&f.cache, "cache", "c", "", "`directory` that keeps downloaded chunks")
	c.Flags().Var(funcFlag{"size", "", func(text string) error {
		err := limitFlag(&f.cacheLimit).set(text)
		if err == nil && f.cacheLimit == 0 {
			f.cacheLimit = cachedir.Unlimited
		}
		return err
	}}, "cache-limit", "maximum `size` of the cache; 0 is no limit (default: a tenth of its file system, "+
		"at most half of the space that is free without the cache)")
	c.Flags().Var(limitFlag(&f.rateLimit), "rate-limit", "read at most this many `bytes` per second from the stores")
	c.Flags().IntVar(&f.fetches, "fetches", 0,
		"number of `chunks` to request from a store at the same time (default: measured for each store)")
	addCheck(c, func([]string) error {
		if f.fetches < 0 || f.fetches > 1024 {
			return fmt.Errorf("--fetches %d: want 1 to 1024", f.fetches)
		}
		if f.cacheLimit != 0 && f.cache == "" {
			return errors.New("--cache-limit needs --cache DIRECTORY")
		}
		return nil
	})
}

// open opens the stores that the flags name, or the default store beside the index of x. It reads the map of packs
// beside the index, if there is one. It reads at most budget bytes in all; 0 is no limit.
func (f *stores) open(ctx context.Context, index locate.Location, x *blob.Index, budget int64) (*supply.Supply, error) {
	groups, err := f.storesOf(index)
	if err != nil {
		return nil, err
	}
	access, err := f.openAccess()
	if err != nil {
		return nil, err
	}
	a := x.Algorithm()
	from, err := supply.Open(groups, access, a, supply.Options{
		Requests: f.fetches, MaxRequests: maxRequests(openFileLimit(), len(slices.Concat(groups...))),
		RateLimit: f.rateLimit, Budget: budget, LeftOut: warnLeftOut})
	if err != nil {
		return nil, absentHint(err, "name the store with --store LOCATION")
	}
	err = f.addCache(from, a)
	if err == nil {
		err = usePacks(ctx, from, index, x)
	}
	if err != nil {
		from.Close()
		return nil, err
	}
	return from, nil
}

// usePacks lets from read packs, if there is a map of them beside the index of x. A map is a hint: without it, chunks are
// read one by one.
func usePacks(ctx context.Context, from *supply.Supply, index locate.Location, x *blob.Index) error {
	at, err := release.MapOf(index, x.Digest())
	if err != nil {
		return nil // nothing is beside a stream
	}
	dir, name, err := from.File(at)
	var m *pack.Map
	if err == nil {
		defer store.Close(dir)
		m, err = release.ReadMap(ctx, dir, name, x)
	}
	switch {
	case err == nil:
		from.UsePacks(m, release.PackDir)
	case ctx.Err() != nil:
		return ctx.Err()
	case !release.IsAbsent(err):
		logf("warning: no packs are used: %v", err)
	}
	return nil
}

// maxRequests returns the largest number of requests to each store for a limit of open files. A request may take two
// descriptors: its connection, and one that is idle or still being opened for a request that has ended.
func maxRequests(files, stores int) int { return max((files-ownFiles)/2/max(stores, 1), 1) }

// storesOf returns the stores that the flags name, or the default store beside the index.
func (f *stores) storesOf(index locate.Location) ([][]locate.Location, error) {
	if len(f.groups) > 0 {
		return f.groups, nil
	}
	beside, err := index.DefaultStore()
	return [][]locate.Location{{beside}}, err
}

// locations returns the locations of the stores for the indexes, and of what lies beside both.
func (f *stores) locations(indexes ...locate.Location) (all []locate.Location) {
	for _, index := range indexes {
		groups, err := f.storesOf(index)
		if err != nil {
			continue // open reports it
		}
		for _, at := range slices.Concat(groups...) {
			all = append(all, at)
			for _, beside := range []func(locate.Location) (locate.Location, error){release.DeltaDir, release.PackDir} {
				if dir, err := beside(at); err == nil {
					all = append(all, dir)
				}
			}
		}
	}
	return all
}

// warnLeftOut reports a store of a group that cannot be opened.
func warnLeftOut(err error) { logf("warning: going on without one of the stores: %v", err) }

// addCache puts the directory of --cache in front of the stores. A cache that cannot be written, for example because
// its disk is full, is still read.
func (f *stores) addCache(from *supply.Supply, a blob.Algorithm) error {
	if f.cache == "" {
		return nil
	}
	cache := cachedir.Open(f.cache, cachedir.Options{Limit: f.cacheLimit})
	writer, err := store.NewWriter(cache, store.WriterOptions{})
	if err != nil {
		_ = cache.Close()
		return err
	}
	failed := func(err error) { logf("warning: the cache takes no more chunks for now: %v", err) }
	from.AddCache(store.NewChunks(cache, a), writer, failed, func() {
		_ = writer.Close() // the chunks that it committed stay
		sampleCache(cache)
		_ = cache.Close()
	})
	return nil
}

// sampleTime limits the time of sampleCache, apart from a read in progress.
const sampleTime = 20 * time.Millisecond

// sampleCache looks for damaged chunks in a cache, and removes them.
func sampleCache(cache *cachedir.Dir) {
	ctx, cancel := context.WithTimeout(context.Background(), sampleTime)
	defer cancel()
	if n := cache.Sample(ctx, keep.IsDamaged); n > 0 {
		logf("warning: a sample of the cache %v had %d damaged chunks, which are removed; its disk may be failing "+
			"('cairn store verify' checks all chunks)", cache, n)
	}
}
