package release

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"cairn/blob"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/locate"
	"cairn/store/pack"
)

// leastUsed is the part of a pack that must be in maps, in percent; else Repack moves its chunks.
const leastUsed = 50

// RepackOptions are the settings of Repack.
type RepackOptions struct {
	Chunks store.Bucket // the store
	Packs  store.Bucket // the packs beside it
	Size   int64        // of new packs; see pack.NewWriter
	DryRun bool         // nothing is written
}

// RepackReport counts what Repack did. A dry run counts what it would do.
type RepackReport struct {
	Packs   int   `json:"packs"`       // whose chunks are moved; they stay for the grace of gc
	Chunks  int   `json:"chunks"`      // that are moved
	Bytes   int64 `json:"bytes"`       // of these, as stored
	Garbage int64 `json:"garbage"`     // bytes of the packs that are in no map
	Written int   `json:"new_packs"`   // that were written
	Indexes int   `json:"new_indexes"` // whose maps were replaced
}

// Repack moves the chunks of packs that are mostly garbage into new packs, and replaces the maps that name the old ones.
// It is a publisher with a lease. New packs are durable before a gc root with the new map, that before the map, and only
// then the old gc root is retired: readers with the old map read the old packs for the grace of gc. A crash leaves
// garbage.
func Repack(ctx context.Context, s *Indexes, o RepackOptions) (report RepackReport, err error) {
	r, err := NewRecorder(ctx, s.Records, o.Chunks, func(Note) {})
	if err != nil {
		return report, err
	}
	defer r.End()
	r.packs = o.Packs
	if r.records == nil {
		return report, fmt.Errorf("writing gc roots: %w", errors.ErrUnsupported)
	}
	j := &repack{options: o, shelf: s, recorder: r, uses: map[use]bool{}, used: map[pack.Pack]int64{}, old: map[pack.Pack]bool{}}
	if err := j.run(ctx); err != nil {
		return j.report, fmt.Errorf("repacking: %w", err)
	}
	return j.report, ctx.Err()
}

// use is a place in a pack that a map names.
type use struct {
	pack   blob.Digest
	offset int64
}

type repack struct {
	options  RepackOptions
	shelf    *Indexes
	recorder *Recorder
	report   RepackReport

	items []packedItem
	uses  map[use]bool
	used  map[pack.Pack]int64 // bytes of the places in uses
	old   map[pack.Pack]bool  // packs whose chunks are moved
}

// packedItem is a published index with a map of packs.
type packedItem struct {
	Item
	root *gcroot.Root
	m    *pack.Map
}

func (j *repack) run(ctx context.Context) error {
	if err := j.readItems(ctx); err != nil {
		return err
	}
	for p, used := range j.used {
		if used*100 < p.Size*leastUsed {
			j.old[p] = true
			j.report.Packs++
			j.report.Garbage += p.Size - used
			j.report.Bytes += used
		}
	}
	if len(j.old) == 0 || j.options.DryRun {
		return ctx.Err()
	}
	find, err := j.moveChunks(ctx)
	if err != nil {
		return err
	}
	for _, item := range j.items {
		if slices.ContainsFunc(item.m.Packs(), func(p pack.Pack) bool { return j.old[p] }) {
			replaced, err := j.replaceMap(ctx, item, find)
			if err != nil {
				return fmt.Errorf("%s: %w", item.Name, err)
			}
			if replaced {
				j.report.Indexes++
			}
		}
	}
	return ctx.Err()
}

// readItems reads the maps of what is published. The packs of an index that lies elsewhere stay, since its map there is
// not replaced. An index with several gc roots has several maps, perhaps; it is left to another run, and its packs stay,
// too.
func (j *repack) readItems(ctx context.Context) error {
	items, err := ReadItems(ctx, j.shelf.Records, j.recorder.lease.Listing)
	if err != nil {
		return err
	}
	for _, item := range items {
		for _, e := range item.Roots {
			root, err := j.shelf.Records.Read(ctx, e, false)
			if errors.Is(err, store.ErrNotFound) { // another gc has removed a duplicate
				continue
			}
			if err != nil {
				return err
			}
			m, err := decodeMap(root)
			if err != nil {
				return err
			}
			if m == nil {
				continue
			}
			movable := len(item.Roots) == 1 && item.isBeside()
			j.addUses(m, !movable)
			if movable {
				j.items = append(j.items, packedItem{item, root, m})
			}
		}
	}
	return ctx.Err()
}

// decodeMap returns the map of packs of a gc root, or nil if it has none.
func decodeMap(r *gcroot.Root) (*pack.Map, error) {
	if len(r.Map) == 0 {
		return nil, nil
	}
	m, err := pack.DecodeMap(bytes.NewReader(r.Map), r.Index)
	if err != nil {
		return nil, fmt.Errorf("the gc root of %s: %w", r.Name, err)
	}
	return m, nil
}

// addUses counts the places that a map names, or whole packs if they must stay.
func (j *repack) addUses(m *pack.Map, stay bool) {
	for _, c := range m.Index().All() {
		at, ok := m.Find(c.Digest)
		u := use{at.Pack.ID, at.Offset}
		if !ok || j.uses[u] {
			continue
		}
		j.uses[u] = true
		j.used[at.Pack] += at.Size
	}
	if stay {
		for _, p := range m.Packs() {
			j.used[p] += p.Size
		}
	}
}

// moveChunks writes the used chunks of the old packs into new ones, and returns a function that finds them there.
func (j *repack) moveChunks(ctx context.Context) (pack.Finder, error) {
	batch, err := store.NewBatch(j.options.Packs)
	if err != nil {
		return nil, err
	}
	defer func() { _ = batch.Close() }() // of what was not committed
	writers := map[blob.Algorithm]*pack.Writer{}
	for _, a := range []blob.Algorithm{blob.SHA512_256, blob.SHA256} {
		if writers[a], err = pack.NewWriter(batch, a, j.options.Size); err != nil {
			return nil, err
		}
	}
	packs := slices.SortedFunc(maps.Keys(j.old), func(a, b pack.Pack) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, p := range packs {
		if err := j.movePack(ctx, p, writers); err != nil {
			return nil, err
		}
	}
	for _, w := range writers {
		if err := w.Close(ctx); err != nil {
			return nil, err
		}
		j.report.Written += len(w.Packs())
	}
	return func(d blob.Digest) (at pack.Place, ok bool) {
		for _, w := range writers {
			if at, ok = w.Place(d); ok {
				break
			}
		}
		return at, ok
	}, batch.Commit(ctx)
}

// movePack adds the used chunks of a pack to a writer.
func (j *repack) movePack(ctx context.Context, p pack.Pack, writers map[blob.Algorithm]*pack.Writer) error {
	file, err := j.options.Packs.Read(ctx, p.Name(), nil, pack.MaxFile)
	if err != nil {
		return err
	}
	a, entries, err := pack.Decode(p.ID, file)
	if err != nil {
		return fmt.Errorf("pack %s: %w", p.Name(), err)
	}
	for _, e := range entries {
		if !j.uses[use{p.ID, e.Offset}] {
			continue
		}
		if err := writers[a].Add(ctx, e.Digest, file[e.Offset:][:e.Size]); err != nil {
			return err
		}
		j.report.Chunks++
	}
	return nil
}

// replaceMap writes a gc root with a new map, then the map, and retires the old gc root. It reports false if the index is
// not there: its publisher may be about to publish it with the old map, so the old gc root must stay.
func (j *repack) replaceMap(ctx context.Context, item packedItem, find pack.Finder) (replaced bool, err error) {
	if state, err := j.shelf.Find(ctx, item.Item); err != nil || state != Present {
		return false, err
	}
	m, err := pack.NewMap(item.root.Index, func(d blob.Digest) (at pack.Place, ok bool) {
		if at, ok = item.m.Find(d); ok && j.old[at.Pack] {
			return find(d)
		}
		return at, ok
	})
	if err != nil {
		return false, err
	}
	file, err := m.Encode()
	if err != nil {
		return false, err
	}
	root := *item.root
	root.Map = file
	w := &record{root: &root, number: item.Number}
	// When the lease lapses, gc may remove the new packs. Then the old map stays.
	inLease := func(step func(context.Context) error) error {
		return cmp.Or(j.recorder.lease.Do(ctx, step), j.recorder.lease.Check(ctx))
	}
	for _, step := range []func() error{
		func() error { return inLease(func(ctx context.Context) error { return j.recorder.write(ctx, w) }) },
		func() error { return j.recorder.confirmPacks(ctx, w) },
		func() error {
			return inLease(func(ctx context.Context) (err error) {
				replaced, err = j.writeMap(ctx, item.Item, file)
				return err
			})
		},
		func() error {
			if !replaced {
				return nil
			}
			return inLease(func(ctx context.Context) error { return j.shelf.Records.Retire(ctx, item.Roots[0]) })
		},
	} {
		if err := step(); err != nil {
			return false, err
		}
	}
	return replaced, nil
}

// writeMap writes the map beside an index, and reports whether the index is still there.
func (j *repack) writeMap(ctx context.Context, item Item, file []byte) (written bool, err error) {
	state, err := j.shelf.Find(ctx, item)
	if err != nil || state != Present {
		return false, err
	}
	at, err := j.shelf.Locate(item)
	if err != nil {
		return false, err
	}
	var dir locate.Location
	if dir, err = MapOf(at, item.Index); err != nil {
		return false, err
	}
	b, name, err := j.shelf.Bucket(dir)
	if err != nil {
		return false, err
	}
	defer store.Close(b)
	return true, b.Write(ctx, name, file)
}
