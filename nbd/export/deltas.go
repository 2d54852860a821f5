package export

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/blob/delta/apply"
	"cairn/blob/release"
	"cairn/blob/view"
	"cairn/blob/view/fetch"
	"cairn/store"
	"cairn/store/supply"
)

const (
	// deltaSilence is the time without a byte of a delta after which the chunk comes from the store.
	deltaSilence = 2 * time.Second
	// maxDeltaMemory limits the memory for the tables of the deltas of all images.
	maxDeltaMemory = 64 << 20
	// memoryPerDecoder is what a decoder of a delta's chunks takes at most: a window and a reference.
	memoryPerDecoder = 4<<20 + 2<<20
	// usedShare is the part of an image that is assumed to be read: a delta must be worth its table for that part.
	usedShare = 4
)

// errDeltaMemory is the reason why an image has no delta.
var errDeltaMemory = errors.New("the deltas of the open images take all memory that they may have")

// deltas makes chunks from the deltas beside some stores, and bytes of the seeds. A chunk from a delta is
// verified, so a stale, damaged or hostile delta costs a download. It implements fetch.Deltas.
type deltas struct {
	dirs    []store.Reader // of deltas, beside the stores
	link    *supply.Link   // to the stores
	silence time.Duration  // deltaSilence, or 0 for none
	all     atomic.Pointer[[]*imageDelta]
}

var _ fetch.Deltas = (*deltas)(nil)

// imageDelta is the delta that an open image uses.
type imageDelta struct {
	*apply.Maker
	seeds  *seeds
	from   []*seedContent // that hold the old image
	memory int64
}

// openDeltas opens the deltas beside stores, which are not requested yet. It returns nil if they are of no use: there
// are no seeds, or all stores are on this machine.
func (im *images) openDeltas(from *supply.Supply) *deltas {
	if im.o.NoDelta || len(im.o.Seeds) == 0 || !from.Far() {
		return nil
	}
	d := &deltas{dirs: from.Beside(release.DeltaDir), link: from.Link(), silence: deltaSilence}
	if im.o.Supply.RateLimit > 0 {
		d.silence = 0 // the limit makes answers wait
	}
	d.all.Store(new([]*imageDelta))
	return d
}

// MayMake implements fetch.Deltas.
func (d *deltas) MayMake(digest blob.Digest, size int64) bool {
	return slices.ContainsFunc(*d.all.Load(), func(one *imageDelta) bool {
		return one.MayMake(digest, size) && one.mayReadOld()
	})
}

// Make implements fetch.Deltas.
func (d *deltas) Make(ctx context.Context, digest blob.Digest, dst []byte) bool {
	for _, one := range *d.all.Load() {
		if one.MayMake(digest, int64(len(dst))) && one.mayReadOld() && one.Make(ctx, digest, dst) {
			return true
		}
	}
	return false
}

// mayReadOld reports whether the seeds with the old image answer, and none of them was given up.
func (d *imageDelta) mayReadOld() bool { return !slices.ContainsFunc(d.from, d.seeds.isLost) }

// changeDeltas replaces the list of deltas by what edit returns for a copy of it.
func (im *images) changeDeltas(d *deltas, edit func(all []*imageDelta) []*imageDelta) {
	im.mu.Lock()
	defer im.mu.Unlock()
	all := edit(slices.Clone(*d.all.Load()))
	d.all.Store(&all)
}

// startDelta looks for a delta to an image in the background, once the seeds are learned. end ends its use.
func (im *images) startDelta(i image, d *deltas) (end func()) {
	if d == nil {
		return func() {}
	}
	var found *imageDelta
	endSearch := im.inBackground(func(ctx context.Context) {
		if im.seeds.awaitFormat(ctx, i.index) != nil {
			return
		}
		found = im.findDelta(ctx, i, d)
	})
	return sync.OnceFunc(func() {
		endSearch()
		if found != nil {
			im.changeDeltas(d, func(all []*imageDelta) []*imageDelta {
				return slices.DeleteFunc(all, func(one *imageDelta) bool { return one == found })
			})
			im.addDeltaMemory(-found.memory)
		}
	})
}

// findDelta returns the delta that makes chunks of an image from now on, or nil. While a store is unavailable it tries
// again.
func (im *images) findDelta(ctx context.Context, i image, d *deltas) (found *imageDelta) {
	log := im.o.Log.With("image", nameOf(i.at))
	policy := store.Policy{Patience: -1, First: indexPause, Max: time.Minute}
	for _, dir := range d.dirs {
		err := policy.Do(ctx, func() (err error) {
			found, err = im.openDelta(ctx, i, d, dir)
			return err
		})
		switch {
		case found != nil || ctx.Err() != nil:
			return found
		case err == nil || apply.IsAbsent(err):
		default:
			log.Info("no delta is used", "directory", dir, "error", err)
		}
	}
	return nil
}

// errSentWhole is the reason why a delta is not used.
var errSentWhole = errors.New("the server sends files only as a whole")

// openDelta opens a delta to an image in a directory, from an old image that the seeds hold, and makes it available. It
// returns nil if there is none that is worth its table.
func (im *images) openDelta(ctx context.Context, i image, d *deltas, dir store.Reader) (*imageDelta, error) {
	if err := im.searching.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer im.searching.Release(1)
	from, held := im.seeds.asSeeds(i.index.Algorithm())
	file, old, err := apply.Find(ctx, dir, i.index, held, func(costs int64) (bool, error) {
		return apply.IsWorth(missingBytes(i.Image)/usedShare, costs), nil
	})
	if file == nil {
		return nil, err
	}
	defer file.Close()
	if file.IsStream() {
		return nil, errSentWhole
	}
	log := im.o.Log.With("image", nameOf(i.at), "old", file.Old)
	one := &imageDelta{seeds: im.seeds, from: from}
	one.Maker = apply.NewMaker(i.index, file, func(r delta.Range) bool { return old.Holds(r.Offset, r.Size) }, old,
		im.decoders, apply.MakerOptions{Admit: d.link.Admit, Silence: d.silence, GaveUp: func(err error) {
			log.Warn("the delta is not used any more; its chunks come from the store", "error", err)
		}})
	if one.Len() == 0 {
		return nil, nil
	}
	if one.memory = one.Memory() + old.Memory(); !im.addDeltaMemory(one.memory) {
		return nil, errDeltaMemory
	}
	im.changeDeltas(d, func(all []*imageDelta) []*imageDelta { return append(all, one) })
	log.Info("a delta is used", "chunks", one.Len())
	return one, nil
}

// addDeltaMemory counts the memory of a delta that is opened, or closed if it is negative. It reports false if the
// deltas would take more than maxDeltaMemory. The first one brings the memory of the decoders.
func (im *images) addDeltaMemory(bytes int64) bool {
	im.mu.Lock()
	if im.deltaMemory+bytes > maxDeltaMemory {
		im.mu.Unlock()
		return false
	}
	im.deltaMemory += bytes
	if !im.decoding {
		im.decoding = true
		bytes += memoryPerDecoder * int64(im.decoders.Len())
	}
	im.mu.Unlock()
	im.addIndexMemory(bytes)
	return true
}

// missingBytes returns how many bytes of an image are neither on this machine nor, presumably, in a seed.
func missingBytes(v *view.Image) (n int64) {
	for length, tier := range v.Tiers(0, v.Size()) {
		if tier == view.InStore {
			n += length
		}
	}
	return n
}
