package keep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/store"
	"cairn/store/gcroot"
)

// CollectOptions configure a Collect.
type CollectOptions struct {
	// Grace is the age that an object must have to be removed, and a retired gc root to keep no more chunks, both
	// by the clock of the store.
	Grace   time.Duration
	Deltas  store.Bucket // the deltas of the store; nil for none
	Packs   store.Bucket // the packs of the store; nil for none
	Workers int          // requests for removals at once, at least one
	DryRun  bool         // nothing is removed
	// Dropped are gc roots that a dry run regards as retired now.
	Dropped []gcroot.Entry
	// Approve is called before anything is removed, with what would be removed. Its error ends the job. May be nil.
	Approve func(r CollectReport) error
	// Retry is the policy for failed removals, which take no retries from the buckets: see gcroot.Turn.Do.
	Retry store.Policy
	// Patience is for how long Collect waits for publishers to end; see gcroot.Dir.Turn.
	Patience time.Duration
	Show     func(step string, done, all int64) // called often, never concurrently; all is 0 if unknown; may be nil
}

// CollectReport counts what a Collect found and removed. A dry run counts as removed what it would remove.
type CollectReport struct {
	Roots        int            `json:"gc_roots"` // that keep chunks
	Retired      int            `json:"retired"`  // of them: their index is gone, and the grace has not passed
	RemovedRoots int            `json:"removed_gc_roots"`
	Kept         Amount         `json:"kept"`
	Fading       Amount         `json:"fading"` // in retired gc roots only: they stay for the grace
	Removed      Amount         `json:"removed"`
	Young        Amount         `json:"young"` // in no gc root, kept for the grace
	Packs        CollectedPacks `json:"packs"`
	Deltas       Others         `json:"removed_deltas"`
	Misnamed     Others         `json:"misnamed"`
	Foreign      Others         `json:"foreign"`
}

// Bytes returns the stored bytes of all chunks and packs that were found.
func (r CollectReport) Bytes() int64 {
	return r.Kept.Bytes + r.Fading.Bytes + r.Removed.Bytes + r.Young.Bytes + r.Packs.bytes()
}

// RemovedBytes returns the stored bytes of the chunks and packs that are removed.
func (r CollectReport) RemovedBytes() int64 { return r.Removed.Bytes + r.Packs.Removed.Bytes }

// Share returns how much of the store's chunks and packs is removed, as a part of their bytes.
func (r CollectReport) Share() float64 {
	return float64(r.RemovedBytes()) / float64(max(r.Bytes(), 1))
}

// turnTime limits the time for which publishers wait for removals. turnPause is the time between two turns: publishers look
// each one and a half seconds at most whether a turn has ended.
const (
	turnTime  = time.Minute
	turnPause = 3 * time.Second
)

// Collect removes the chunks of a store that are in none of its gc roots, the packs that none of their maps names, and
// the deltas to images that have none. It
// works beside publishers that hold leases: it looks for garbage while they are at work, removes packs that a gc root has
// named beside them, and the rest in turns with them. Objects of programs that know no leases are protected by the grace only.
//
// A gc root that cannot be read ends the job before anything is removed. After a failure or a crash, the next Collect
// removes the rest. Memory is about 40 bytes for each distinct chunk in the gc roots and 56 for each object to be
// removed.
func Collect(ctx context.Context, chunks store.Bucket, records *gcroot.Dir, o CollectOptions) (CollectReport, error) {
	c := &collect{options: o, chunks: chunks, records: records, marked: new(store.Set), fading: new(store.Set), read: map[string]bool{}, images: map[blob.Digest]bool{}}
	c.marks = markedPacks{map[blob.Digest]bool{}, map[blob.Digest]bool{}, map[blob.Digest]bool{}}
	if c.options.Show == nil {
		c.options.Show = func(string, int64, int64) {}
	}
	if err := c.run(ctx); err != nil {
		return c.report, fmt.Errorf("collecting garbage in %v: %w", chunks, err)
	}
	return c.report, ctx.Err()
}

type collect struct {
	options CollectOptions
	chunks  store.Bucket
	records *gcroot.Dir
	report  CollectReport

	marked  *store.Set           // the chunks of all gc roots that are not retired
	fading  *store.Set           // the chunks of retired ones whose grace has not passed
	read    map[string]bool      // names of the gc roots that were read, or have expired
	images  map[blob.Digest]bool // their indexes
	marks   markedPacks          // their packs
	expired []gcroot.Entry       // retired gc roots whose grace has passed
	garbage []object             // chunks to remove
	packs   []store.Object       // to remove, of which it is not known whether a publisher at work has written them
	known   []store.Object       // to remove, which a gc root has named
	deltas  []store.Object       // files of deltas to remove
}

func (c *collect) run(ctx context.Context) error {
	lister, err := listerOf(c.chunks)
	if err != nil {
		return err
	}
	remover, can := store.As[store.Remover](store.WithoutRetries(c.chunks))
	if !can {
		return fmt.Errorf("removing chunks: %w", errors.ErrUnsupported)
	}
	now, err := c.records.Now(ctx)
	if err != nil {
		return err
	}
	l, err := c.records.List(ctx)
	switch {
	case err != nil:
		return err
	case !l.Managed:
		return gcroot.ErrUnmanaged
	}
	c.findExpired(l, now)
	if err := c.mark(ctx, l); err != nil {
		return err
	}
	if err := c.findChunks(ctx, lister, now); err != nil {
		return err
	}
	if err := c.findPacks(ctx, now); err != nil {
		return err
	}
	if err := c.findDeltas(ctx, now); err != nil {
		return err
	}
	if c.options.DryRun || len(c.garbage)+len(c.packs)+len(c.known)+len(c.deltas)+len(c.expired) == 0 {
		return ctx.Err()
	}
	if c.options.Approve != nil {
		if err := c.options.Approve(c.report); err != nil {
			return err
		}
	}
	return c.removeAll(ctx, remover)
}

// findExpired finds the retired gc roots whose grace has passed.
func (c *collect) findExpired(l gcroot.Listing, now time.Time) {
	for i, e := range l.Roots {
		if slices.ContainsFunc(c.options.Dropped, func(d gcroot.Entry) bool { return d.Name == e.Name }) {
			e.Retired = now
			l.Roots[i] = e
		}
		switch {
		case e.Retired.IsZero():
			c.report.Roots++
		case c.isYoung(e.Retired, now):
			c.report.Roots++
			c.report.Retired++
		default:
			c.report.RemovedRoots++
			c.expired = append(c.expired, e)
			c.read[e.Name] = true
		}
	}
}

// isYoung reports whether the grace of an object has not passed. The age of an object without a time is unknown. Times
// may be whole seconds, so that an age of just the grace is up to a second less.
func (c *collect) isYoung(modified, now time.Time) bool {
	return c.options.Grace > 0 && (modified.IsZero() || now.Sub(modified) <= c.options.Grace)
}

// maxRelists limits the listings of gc roots in place of one that other collectors have made stale.
const maxRelists = 8

// mark reads the gc roots of a listing that were not read before. If one has gone since, it was a duplicate, or its grace
// has passed, and another collector has removed it. The one that stays may be newer than the listing, so mark lists again.
func (c *collect) mark(ctx context.Context, l gcroot.Listing) error {
	for range maxRelists {
		err := c.markListed(ctx, l)
		if !errors.Is(err, store.ErrNotFound) {
			return err
		}
		if l, err = c.records.List(ctx); err != nil {
			return err
		}
	}
	return c.markListed(ctx, l)
}

func (c *collect) markListed(ctx context.Context, l gcroot.Listing) error {
	for i, e := range l.Roots {
		if c.read[e.Name] {
			continue
		}
		c.options.Show("reading gc roots", int64(i), int64(len(l.Roots)))
		r, err := c.records.Read(ctx, e, false)
		if err != nil {
			return fmt.Errorf("%w (nothing is removed while a gc root cannot be read)", err)
		}
		if err := c.markPacks(r, !e.Retired.IsZero()); err != nil {
			return fmt.Errorf("%w (nothing is removed while a gc root cannot be read)", err)
		}
		if e.Retired.IsZero() {
			c.marked.Add(r.Index)
		} else {
			c.fading.Add(r.Index)
		}
		c.read[e.Name] = true
		c.images[e.Index] = true
	}
	return ctx.Err()
}

// findChunks lists the store and finds the chunks to remove.
func (c *collect) findChunks(ctx context.Context, lister store.Lister, now time.Time) error {
	var listed int64
	for shard, err := range listShards(ctx, lister) {
		if err != nil {
			return err
		}
		c.report.Foreign.add(shard.foreign)
		c.report.Misnamed.add(shard.misnamed)
		for _, o := range shard.objects {
			marked, err := c.marked.Has(ctx, o.digest)
			fading, _ := c.fading.Has(ctx, o.digest)
			switch {
			case err != nil:
				return err
			case marked:
				c.report.Kept.addChunk(o.size)
			case fading:
				c.report.Fading.addChunk(o.size)
			case c.isYoung(timeOf(o.modified), now):
				c.report.Young.addChunk(o.size)
			default:
				c.report.Removed.addChunk(o.size)
				c.garbage = append(c.garbage, o)
			}
		}
		listed += int64(len(shard.objects))
		c.options.Show("listing the store", listed, 0)
	}
	return nil
}

// findDeltas lists the deltas and finds those to remove. Their directory is named by the index of the new image.
func (c *collect) findDeltas(ctx context.Context, now time.Time) error {
	if c.options.Deltas == nil {
		return nil
	}
	lister, err := listerOf(c.options.Deltas)
	if err != nil {
		return err
	}
	for o, err := range lister.List(ctx, "") {
		if err != nil {
			return err
		}
		if image, ok := imageOf(o.Name); ok && !c.images[image] && !c.isYoung(o.Modified, now) {
			c.deltas = append(c.deltas, o)
			c.report.Deltas.countObject(o)
		}
	}
	// The list of the deltas to an image comes before them, since a client reads it first.
	slices.SortStableFunc(c.deltas, func(a, b store.Object) int { return cmp.Compare(orderOf(a), orderOf(b)) })
	return nil
}

func orderOf(o store.Object) int {
	if path.Base(o.Name) == "list" {
		return 0
	}
	return 1
}

// imageOf returns the index of the new image of a delta's file.
func imageOf(name string) (image blob.Digest, ok bool) {
	dir, _, ok := strings.Cut(name, "/")
	if !ok {
		return image, false
	}
	image, err := blob.ParseDigest(dir)
	return image, err == nil
}

// removeAll removes what was found: packs that a gc root has named in pack turns, while they can be told by it, and the
// rest in turns with publishers.
func (c *collect) removeAll(ctx context.Context, chunks store.Remover) error {
	places := places{chunks: chunks}
	for _, place := range []struct {
		remover *store.Remover
		in      store.Bucket
		objects int
	}{{&places.deltas, c.options.Deltas, len(c.deltas)}, {&places.packs, c.options.Packs, len(c.packs) + len(c.known)}} {
		var can bool
		if place.objects == 0 {
			continue
		}
		if *place.remover, can = store.As[store.Remover](store.WithoutRetries(place.in)); !can {
			return fmt.Errorf("removing objects in %v: %w", place.in, errors.ErrUnsupported)
		}
	}
	if err := c.removeKnown(ctx, places.packs); err != nil {
		return err
	}
	for _, e := range c.expired {
		if err := c.records.Remove(ctx, e); err != nil {
			return err
		}
	}
	left := func() int { return len(c.garbage) + len(c.packs) + len(c.deltas) }
	for waited := time.Duration(0); left() > 0; {
		begun := time.Now()
		turn, err := c.records.Turn(ctx, max(c.options.Patience-waited, 0))
		if err != nil {
			return err
		}
		waited += time.Since(begun)
		err = c.removeInTurn(ctx, turn, places)
		if err := errors.Join(err, turn.End(ctx)); err != nil {
			return err
		}
		if err := pauseBetween(ctx, left()); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// pauseBetween lets publishers go on before the next turn, if there is anything left to remove in it.
func pauseBetween(ctx context.Context, left int) error {
	if left == 0 {
		return nil
	}
	return store.Sleep(ctx, turnPause)
}

// places are where a Collect removes objects; nil where there are none.
type places struct{ chunks, packs, deltas store.Remover }

// beginSweep reads the gc roots that were written since the store was listed, and spares what they keep.
func (c *collect) beginSweep(ctx context.Context, turn *gcroot.Turn) (*sweep, error) {
	if err := c.mark(ctx, turn.Listing); err != nil {
		return nil, err
	}
	if err := c.spare(ctx); err != nil {
		return nil, err
	}
	return &sweep{collect: c, turn: turn, end: time.Now().Add(turnTime)}, nil
}

// removeInTurn removes garbage for a limited time.
func (c *collect) removeInTurn(ctx context.Context, turn *gcroot.Turn, from places) error {
	s, err := c.beginSweep(ctx, turn)
	if err != nil {
		return err
	}
	n, err := s.remove(ctx, from.deltas, len(c.deltas), func(i int) string { return c.deltas[i].Name })
	c.deltas = c.deltas[n:]
	if err != nil || len(c.deltas) > 0 {
		return err
	}
	n, err = s.remove(ctx, from.packs, len(c.packs), func(i int) string { return c.packs[i].Name })
	c.packs = c.packs[n:]
	if err != nil || len(c.packs) > 0 {
		return err
	}
	n, err = s.remove(ctx, from.chunks, len(c.garbage), func(i int) string { return store.ObjectName(c.garbage[i].digest, c.garbage[i].packed) })
	c.garbage = c.garbage[n:]
	return err
}

// spare takes what is in a gc root now out of the garbage.
func (c *collect) spare(ctx context.Context) error {
	c.garbage = slices.DeleteFunc(c.garbage, func(o object) bool {
		marked, _ := c.marked.Has(ctx, o.digest)
		fading, _ := c.fading.Has(ctx, o.digest)
		switch {
		case marked:
			c.report.Kept.addChunk(o.size)
		case fading: // published, and removed again
			c.report.Fading.addChunk(o.size)
		default:
			return false
		}
		c.report.Removed.Chunks--
		c.report.Removed.Bytes -= o.size
		return true
	})
	c.sparePacks()
	c.deltas = slices.DeleteFunc(c.deltas, func(o store.Object) bool {
		image, _ := imageOf(o.Name)
		if c.images[image] {
			c.report.Deltas.Objects--
			c.report.Deltas.Bytes -= o.Size
		}
		return c.images[image]
	})
	return ctx.Err()
}

// oneByOne is the number of objects in a call for a remover that removes one at a time. Each takes some round trips, and the
// turn gives a call half a minute.
const oneByOne = 20

// sweep removes objects in one turn or pack turn.
type sweep struct {
	*collect
	turn *gcroot.Turn
	end  time.Time
}

// remove removes the first of n objects, until the end of the turn, and returns how many are done.
func (s *sweep) remove(ctx context.Context, from store.Remover, n int, name func(i int) string) (done int, err error) {
	atOnce, batch := max(s.options.Workers, 1), store.MaxSweep
	if _, many := from.(store.Sweeper); !many {
		batch = oneByOne
	}
	for done < n && time.Now().Before(s.end) {
		group, groupCtx := errgroup.WithContext(ctx)
		lo := done
		for ; done < n && done < lo+atOnce*batch; done = min(done+batch, n) {
			names := make([]string, 0, batch)
			for i := done; i < min(done+batch, n); i++ {
				names = append(names, name(i))
			}
			group.Go(func() error {
				return s.options.Retry.Do(groupCtx, func() error {
					return s.turn.Do(groupCtx, func(ctx context.Context) error { return store.Sweep(ctx, from, names) })
				})
			})
		}
		if err := group.Wait(); err != nil {
			return lo, err
		}
		s.options.Show("removing", int64(done), int64(n))
	}
	return done, nil
}
