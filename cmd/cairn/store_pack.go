package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/keep"
	"cairn/store/locate"
	"cairn/store/pack"
)

// openPackDir opens the directory of the packs of a store to read. It is nil if there is none.
func (f *wholeStores) openPackDir(at locate.Location) (store.Reader, error) {
	r, _, err := f.openBeside(at, release.PackDir, f.rateLimit)
	return r, err
}

// findPacked reads the maps of packs beside indexes, and returns a function that finds a chunk in them. It is nil if there
// are none.
func (f *wholeStores) findPacked(ctx context.Context, at []locate.Location, indexes []*blob.Index) (pack.Finder, error) {
	var maps []*pack.Map
	for i, x := range indexes {
		at, err := release.MapOf(at[i], x.Digest())
		if err != nil {
			continue // nothing is beside a stream
		}
		m, err := release.OpenMap(ctx, f.releaseAccess(), at, x)
		switch {
		case err == nil:
			maps = append(maps, m)
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !release.IsAbsent(err):
			logf("warning: no packs are used: %v", err)
		}
	}
	if len(maps) == 0 {
		return nil, nil
	}
	return func(d blob.Digest) (at pack.Place, ok bool) {
		for _, m := range maps {
			if at, ok = m.Find(d); ok {
				break
			}
		}
		return at, ok
	}, nil
}

// viewPacks returns a reader of the chunks that find finds in the packs of a store, or nil. Other chunks are read from
// rest, which may be nil.
func (f *wholeStores) viewPacks(at locate.Location, a blob.Algorithm, find pack.Finder, rest store.Reader) (store.Reader, error) {
	r, err := f.openPackDir(at)
	if err != nil || r == nil {
		return nil, err
	}
	return pack.NewView(pack.NewDir(r, a, pack.Options{}), find, rest), nil
}

// addPackedReaders puts readers of the chunks in packs of FROM before those of its chunks, for the indexes that have a
// map beside them.
func (f *storeCopyFlags) addPackedReaders(ctx context.Context, from []store.Reader, indexes []*blob.Index) ([]store.Reader, error) {
	find, err := f.findPacked(ctx, f.indexes, indexes)
	if find == nil || err != nil {
		return from, err
	}
	var packed []store.Reader
	for _, at := range f.stores[0] {
		view, err := f.viewPacks(at, indexes[0].Algorithm(), find, nil)
		if err != nil {
			return nil, err
		}
		if view != nil {
			packed = append(packed, view)
		}
	}
	return append(packed, from...), nil
}

// packIndexes writes the chunks of the indexes into packs beside TO, and publishes each index with its map.
func (f *storeCopyFlags) packIndexes(
	ctx context.Context, from []store.Reader, to store.Bucket, records *gcroot.Dir, outlets []*release.Outlet,
	indexes []*blob.Index, r *storeCopyResult,
) error {
	access, err := f.openAccess()
	if err != nil {
		return err
	}
	for i, x := range indexes {
		var outlet *release.Outlet
		if outlets != nil {
			outlet = outlets[i]
		} else if outlet, err = release.OpenOutlet(ctx, access, f.indexes[i], release.OutletOptions{Notes: logReleaseNote}); err != nil {
			return hintError{fmt.Errorf("writing the map beside %s: %w", f.indexes[i], usageIfUnsupported(err)), "name a directory for copies of the indexes with --indexes-to"}
		}
		if err := f.packIndex(ctx, from, to, records, outlet, x, i, r); err != nil {
			return fmt.Errorf("index %s: %w", f.indexes[i], err)
		}
		r.Indexes = append(r.Indexes, f.indexes[i])
	}
	return ctx.Err()
}

func (f *storeCopyFlags) packIndex(
	ctx context.Context, from []store.Reader, to store.Bucket, records *gcroot.Dir, outlet *release.Outlet,
	x *blob.Index, i int, r *storeCopyResult,
) error {
	o := release.PublisherOptions{
		Writer: f.writerOptions(), Algorithm: x.Algorithm(), Params: x.Params(), Chunks: int64(x.Len()), Remote: r.To.Remote(),
		Records: records, Name: f.recordName(i), Notes: logReleaseNote,
	}
	if r.To.Remote() {
		o.Writer.Uploads = f.uploads
	}
	packs, end, err := f.openPacks(ctx, &f.access, r.To, f.indexes[i], records)
	if err != nil {
		return err
	}
	defer end()
	o.Packs = packs
	p, err := release.NewPublisher(ctx, to, o)
	if err != nil {
		return err
	}
	defer p.Close()
	f.announcePacks(x.Size(), x.Params().Avg)
	bar := newProgress(f.progress, fmt.Sprintf("packing %s", f.indexes[i]), "", -1)
	err = p.AddStored(ctx, x, f.workers(f.stores[0][0], f.jobs), loadVerified(from, x.Algorithm()), func(stored int64) {
		r.Copied.Chunks++
		r.Copied.Bytes += stored
		bar.show(0, plaintext.Count(r.Copied.Chunks, "packed chunk"), nil)
	})
	bar.end()
	if err != nil {
		return err
	}
	err = p.Publish(ctx, outlet, x)
	r.Packs += len(p.Packs())
	return err
}

// loadVerified returns a function that loads a chunk from the first of some stores that has it whole.
func loadVerified(from []store.Reader, a blob.Algorithm) func(ctx context.Context, c blob.Chunk, into *store.Raw) error {
	var stores []*store.Chunks
	for _, r := range from {
		stores = append(stores, store.NewChunks(r, a))
	}
	return func(ctx context.Context, c blob.Chunk, into *store.Raw) (err error) {
		for _, s := range stores {
			for _, packed := range []bool{true, false} {
				if err = s.Load(ctx, c.Digest, packed, c.Size, into); err == nil && a.Sum(into.Plain) == c.Digest {
					return nil
				}
				if err == nil {
					err = &store.CorruptError{Name: "chunk " + c.Digest.String(), Err: errors.New("it has other bytes than its digest says")}
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
		}
		return err
	}
}

// copyPacks copies the packs of FROM as they are, if no indexes are named.
func (f *storeCopyFlags) copyPacks(ctx context.Context, r *storeCopyResult) error {
	if len(f.indexes) > 0 {
		return nil
	}
	from, err := f.openPackDir(f.stores[0][0])
	if from == nil || err != nil {
		return err
	}
	there, _, err := keep.ListPacks(ctx, from)
	if isAny(err, store.ErrNotFound, store.ErrDenied, keep.ErrCannotList) {
		return nil
	}
	if err != nil || len(there) == 0 {
		return err
	}
	at, err := release.PackDir(r.To)
	if err != nil {
		return err
	}
	to, err := f.openBucket(at, 0)
	if err != nil {
		return err
	}
	held, _, err := keep.ListPacks(ctx, to)
	if err != nil {
		return err
	}
	var file []byte
	for p := range there {
		if held[p] {
			continue
		}
		if file, err = from.Read(ctx, p.Name(), file[:0], pack.MaxFile); err != nil {
			return err
		}
		if _, _, err := pack.Decode(p.ID, file); err != nil {
			logf("warning: pack %s is not copied: %v", p.Name(), err)
			continue
		}
		if err := to.Write(ctx, p.Name(), file); err != nil {
			return err
		}
		r.Packs++
	}
	if r.Packs > 0 {
		logf("copied %s", plaintext.Count(int64(r.Packs), "pack"))
	}
	return ctx.Err()
}

// printPacked prints the result of a copy into packs.
func (f *storeCopyFlags) printPacked(stdout io.Writer, r storeCopyResult) error {
	if f.json {
		return writeJSON(stdout, r)
	}
	logf("packed %s (%s) from %s into %s beside %s: %s", plaintext.Count(r.Copied.Chunks, "chunk"), plaintext.Size(r.Copied.Bytes),
		r.From, plaintext.Count(int64(r.Packs), "pack"), r.To, joinLocations(r.Indexes, ", "))
	return nil
}

// verifyPacks verifies that each pack beside a store has the bytes that its name says. It returns how many it read, and
// calls found for each damaged one.
func (f *wholeStores) verifyPacks(ctx context.Context, at locate.Location, found func(name string, err error)) (n keep.Others, err error) {
	dir, err := f.openPackDir(at)
	if err != nil || dir == nil {
		return n, err
	}
	defer store.Close(dir)
	packs, n, err := keep.ListPacks(ctx, dir)
	if isAny(err, store.ErrNotFound, store.ErrDenied, keep.ErrCannotList) {
		return n, nil
	}
	if err != nil {
		return n, err
	}
	var file []byte
	for p := range packs {
		if file, err = dir.Read(ctx, p.Name(), file[:0], pack.MaxFile); err == nil {
			_, _, err = pack.Decode(p.ID, file)
		}
		switch {
		case ctx.Err() != nil:
			return n, ctx.Err()
		case isAny(err, pack.ErrInvalid, store.ErrTooLarge):
			found(fmt.Sprintf("%v/%s", dir, p.Name()), err)
		case err != nil && !errors.Is(err, store.ErrNotFound): // gc may have removed it
			return n, err
		}
	}
	return n, ctx.Err()
}
