package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/delta/deltadir"
	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/locate"
)

type storeCopyFlags struct {
	common
	wholeStores
	compression
	layout
	uploads int
	gcRoot
	stores    [][]locate.Location // FROM, TO
	indexes   []locate.Location
	except    []locate.Location // indexes whose chunks are not copied
	indexesTo locate.Location
	noDelta   bool
}

func newStoreCopy() *cobra.Command {
	var f storeCopyFlags
	c := &cobra.Command{
		Use:   "copy FROM TO [INDEX...]",
		Short: "Copy chunks from one store to another: all, or those of indexes",
		Long: `copy copies the chunks of the indexes, or without indexes all chunks of FROM, to the store TO, unless TO holds them.
Every chunk is verified before it is written. Compressed chunks stay as they are, unless casync cannot read them.
Copied chunks stay when copy is interrupted. Run it again to copy the rest.

The deltas to the images of the indexes, or without indexes all deltas of FROM, are copied too, from NAME.cadelta
beside FROM to the one beside TO. A damaged delta is left out with a warning.

--except OLD leaves out the chunks of the index OLD, for example when the receiver has the image of OLD as a seed.

--layout packs writes the chunks of the indexes into packs beside TO, as make does, and their map beside each index: the
copied one, or else INDEX itself. FROM may be TO. Chunks in packs of FROM are read from there, if there is a map beside
INDEX: so --layout chunks turns packs into chunks. Without indexes, the packs of FROM are copied as they are.

--indexes-to also copies the indexes, for example to a mirror or for a site without a network. It writes an index
when all of its chunks are on the medium. Exit status 3 says that chunks in FROM are damaged, and 4 that some are
missing. The other chunks are copied.`,
		Example: `  cairn store copy https://images.example.com/default.castr /media/usb/default.castr \
      https://images.example.com/v2.caibx --indexes-to /media/usb
  cairn store copy /srv/images/default.castr s3://mirror/default.castr
  cairn store copy default.castr default.castr v2.caibx --layout packs`,
		Args: checkArgs(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, _ []string) error { return runStoreCopy(c.Context(), c.OutOrStdout(), f) },
	}
	f.common.addFlags(c)
	f.wholeStores.addFlags(c)
	addUploads(c, &f.uploads)
	f.gcRoot.addFlag(c)
	f.compression.addFlags(c, "zstd `level` of chunks that are compressed again, 1 to 22")
	f.layout.addFlags(c)
	storeArgs(c, &f.stores, 2)
	indexArgs(c, &f.indexes, 2)
	c.Flags().Var(locationFlag(&f.indexesTo), "indexes-to", "`location` of the directory to copy the indexes to: a path or URL")
	c.Flags().Var(locationsFlag(&f.except), "except", "copy no chunk of this `index`; repeatable")
	c.Flags().BoolVar(&f.noDelta, "no-delta", false, "copy no deltas")
	addCheck(c, func([]string) error { return f.checkLocations() })
	checkIndexes(c, 2)
	return c
}

func (f *storeCopyFlags) checkLocations() error {
	if len(f.stores[0]) > 1 && len(f.indexes) == 0 {
		return errors.New("several stores A|B are not listed as one: name indexes")
	}
	if _, err := onlyStore("TO", f.stores[1]); err != nil {
		return err
	}
	switch {
	case f.packs() && (len(f.indexes) == 0 || len(f.except) > 0 || slices.ContainsFunc(f.indexes, locate.Location.IsStream)):
		return fmt.Errorf("--layout %s: name the indexes whose chunks are packed, without --except; their maps lie beside them", f.layout.layout)
	case f.packs() && f.writerOptions().Compression == store.None:
		return fmt.Errorf("--layout %s: chunks in packs are compressed", f.layout.layout)
	case len(f.except) > 0 && len(f.indexes) == 0:
		return errors.New("--except: name the indexes to copy")
	case slices.ContainsFunc(f.except, locate.Location.IsStream):
		return errors.New("--except: the index is a file or a URL, not stdin; a file of that name is ./-")
	case f.indexesTo.IsZero():
		return nil
	case len(f.except) > 0:
		return errors.New("--indexes-to: with --except, not all chunks of the indexes are copied")
	case f.indexesTo.IsStream():
		return errors.New("--indexes-to: it is a directory or a URL, not stdout; a directory of that name is ./-")
	case len(f.indexes) == 0 || slices.ContainsFunc(f.indexes, locate.Location.IsStream):
		return errors.New("--indexes-to: name the indexes to copy")
	}
	named := map[string]locate.Location{}
	for _, index := range f.indexes {
		_, name, err := index.Split()
		if err != nil {
			continue // reading the index reports it
		}
		if other, is := named[name]; is && other.Sum() != index.Sum() {
			return fmt.Errorf("--indexes-to: two of the indexes are called %q", name)
		}
		named[name] = index
	}
	return nil
}

// storeCopyResult is the output of store copy --json.
type storeCopyResult struct {
	From string          `json:"from"`
	To   locate.Location `json:"to"`
	keep.CopyReport
	Packs    int                 `json:"packs,omitempty"` // that were written
	Deltas   deltadir.CopyReport `json:"deltas,omitzero"`
	Indexes  []locate.Location   `json:"indexes,omitempty"` // copied ones
	Findings findings            `json:"findings,omitempty"`
	Seconds  float64             `json:"seconds"`
}

func runStoreCopy(ctx context.Context, stdout io.Writer, f storeCopyFlags) error {
	indexes, err := readIndexes(ctx, f.indexes, f.access)
	if err != nil {
		return err
	}
	from, err := f.openReaders(f.stores[0])
	if err != nil {
		return err
	}
	if from, err = f.addPackedReaders(ctx, from, indexes); err != nil {
		return err
	}
	to, err := f.openBucket(f.stores[1][0], 0)
	if err != nil {
		return err
	}
	outlets, err := f.openOutlets(ctx)
	if err != nil {
		return err
	}
	r := storeCopyResult{From: joinLocations(f.stores[0], "|"), To: f.stores[1][0]}
	records, err := f.gcRoot.open(ctx, &f.access, r.To)
	if err != nil {
		return err
	}
	defer records.Close()
	if f.packs() {
		if err := f.packIndexes(ctx, from, to, records, outlets, indexes, &r); err != nil {
			return fmt.Errorf("packing chunks of %s beside %s: %w", r.From, r.To, err)
		}
		return f.printPacked(stdout, r)
	}
	recorder, err := release.NewRecorder(ctx, records, to, logReleaseNote)
	if err != nil {
		return err
	}
	defer recorder.End()
	if err := f.copyChunks(ctx, from, to, indexes, &r); err != nil {
		return fmt.Errorf("copying %s to %s: %w", r.From, r.To, err)
	}
	if err := f.copyPacks(ctx, &r); err != nil {
		return fmt.Errorf("copying the packs of %s to %s: %w", r.From, r.To, err)
	}
	if err := f.copyDeltas(ctx, indexes, &r); err != nil {
		return fmt.Errorf("copying the deltas of %s to %s: %w", r.From, r.To, err)
	}
	for i, x := range indexes {
		if !r.Whole[i] {
			continue
		}
		if err := recorder.Record(ctx, f.recordName(i), x, nil); err != nil {
			return f.indexError(i, err)
		}
		if outlets == nil {
			continue
		}
		err := recorder.Publish(ctx, func(ctx context.Context) error { return outlets[i].Publish(ctx, x) })
		if err != nil {
			return f.indexError(i, err)
		}
		r.Indexes = append(r.Indexes, f.indexes[i])
	}
	if f.json {
		return errors.Join(writeJSON(stdout, r), r.failure())
	}
	logf("copied %s (%s) from %s to %s, which held %s already",
		plaintext.Count(r.Copied.Chunks, "chunk"), plaintext.Size(r.Copied.Bytes), r.From, r.To, plaintext.Count(r.Held, "chunk"))
	if n := r.Deltas.Copied; n.Deltas > 0 {
		logf("copied %s (%s)", plaintext.Count(n.Deltas, "delta"), plaintext.Size(n.Bytes))
	}
	if len(r.Indexes) > 0 {
		logf("copied %s", joinLocations(r.Indexes, ", "))
	}
	return r.failure()
}

// openOutlets opens the outlets of the indexes before the job, so that a directory that cannot be written is found
// early. Without --indexes-to there are none.
func (f *storeCopyFlags) openOutlets(ctx context.Context) ([]*release.Outlet, error) {
	const mode = fs.FileMode(0o644)
	if f.indexesTo.IsZero() {
		return nil, nil
	}
	b, err := f.openBucket(f.indexesTo, mode)
	if err != nil {
		return nil, err
	}
	outlets := make([]*release.Outlet, len(f.indexes))
	for i, index := range f.indexes {
		_, name, err := index.Split()
		if err == nil {
			outlets[i], err = release.OutletIn(ctx, b, f.indexesTo, name, release.OutletOptions{Notes: logReleaseNote})
		}
		if err != nil {
			return nil, f.indexError(i, err)
		}
	}
	return outlets, nil
}

// recordName returns the name of a copied index in the gc roots of TO.
func (f *storeCopyFlags) recordName(i int) string {
	index := f.indexes[i]
	if _, name, err := index.Split(); err == nil && !f.indexesTo.IsZero() {
		index = f.indexesTo.Join(name)
	}
	return release.RecordName(f.stores[1][0], index)
}

func (f *storeCopyFlags) indexError(i int, err error) error {
	return fmt.Errorf("copying index %s to %s: %w", f.indexes[i], f.indexesTo, err)
}

// copyChunks copies the chunks, and fills in the result.
func (f *storeCopyFlags) copyChunks(ctx context.Context, from []store.Reader, to store.Bucket, indexes []*blob.Index, r *storeCopyResult) (err error) {
	o := keep.CopyOptions{
		Algorithm: f.digest, Indexes: indexes, Else: from[1:], Workers: f.workers(f.stores[0][0], f.jobs),
		Writer: f.writerOptions(),
	}
	if r.To.Remote() {
		o.Writer.Uploads = f.uploads
		o.Workers = max(o.Workers, f.uploads)
	}
	if o.Except, err = readIndexes(ctx, f.except, f.access); err != nil {
		return err
	}
	total := int64(-1)
	if len(indexes) > 0 {
		total = keep.DistinctBytes(indexes, o.Except)
	}
	p := newProgress(f.progress, fmt.Sprintf("copying %s to %s", r.From, r.To), "", total)
	o.Show = func(r keep.CopyReport) { p.show(r.Done, plaintext.Count(r.Copied.Chunks, "copied chunk"), r) }
	o.Found = func(found keep.Finding) {
		r.Findings.add(found)
		if !f.json {
			logf("%s: %s", found.Kind, found.Why)
		}
	}
	r.CopyReport, err = keep.Copy(ctx, from[0], to, o)
	p.end()
	r.Seconds = p.elapsed().Seconds()
	return err
}

// copyDeltas copies the deltas beside the first store that has any, and fills in the result.
func (f *storeCopyFlags) copyDeltas(ctx context.Context, indexes []*blob.Index, r *storeCopyResult) error {
	to, err := release.DeltaDir(r.To)
	if f.noDelta || err != nil {
		return nil // an error says that nothing can lie beside this store
	}
	for _, at := range f.stores[0] {
		from, dir, err := f.openDeltas(at)
		if err != nil || from == nil {
			if err != nil && len(f.stores[0]) > 1 {
				warnLeftOut(err)
				continue
			}
			return err
		}
		defer store.Close(from)
		r.Deltas, err = deltadir.Copy(ctx, from, deltadir.CopyOptions{
			Indexes: indexes, To: func() (store.Bucket, error) { return f.openBucket(to, 0) },
			Found: func(d deltadir.Defect) { logf("warning: %s/%s is not copied: %v", dir, d.Name, d.Err) },
		})
		return noteUnreadable(dir, err)
	}
	return nil
}

// failure returns the error about chunks that could not be copied.
func (r storeCopyResult) failure() error {
	bad := r.Bad()
	switch {
	case bad == 0:
		return nil
	case r.Missing == bad:
		return hintError{fmt.Errorf("%s lacks %s: %w", r.From, plaintext.Count(bad, "chunk"), store.ErrNotFound), "all its other chunks were copied; copy the rest from another store"}
	}
	return damagedError{fmt.Sprintf("%s could not be copied from %s: %d damaged, %d empty, %d missing, %d of unknown compression",
		plaintext.Count(bad, "chunk"), r.From, r.Damaged, r.Empty, r.Missing, r.Unknown)}
}
