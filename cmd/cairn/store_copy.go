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
	"cairn/blob/release"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/locate"
)

type storeCopyFlags struct {
	common
	reading
	compression
	uploads   int
	stores    [][]locate.Location // FROM and TO
	indexes   []locate.Location
	indexesTo locate.Location
}

func newStoreCopy() *cobra.Command {
	var f storeCopyFlags
	c := &cobra.Command{
		Use:   "copy FROM TO [INDEX...]",
		Short: "Copy the chunks of indexes, or all, from one store to another",
		Long: `copy brings the chunks of the indexes, or without indexes all that FROM holds, to the store TO, as far as they are
not there yet. Each is hashed before it is written. Compressed chunks stay as they are, unless casync could not
read them. What was copied stays when copy is interrupted; run it again to do the rest.

--indexes-to copies the indexes too, each when all of its chunks are on the medium: what a mirror, or a site
without a network, needs. Exit status 3 says that chunks are damaged in FROM, 4 that some are missing; the others
are copied.`,
		Example: `  cairn store copy https://images.example.com/default.castr /media/usb/default.castr \
      https://images.example.com/v2.caibx --indexes-to /media/usb
  cairn store copy /srv/images/default.castr s3://mirror/default.castr`,
		Args: arguments(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, _ []string) error {
			return wordMisuse(c, runStoreCopy(c.Context(), c.OutOrStdout(), f))
		},
	}
	f.common.add(c)
	f.reading.add(c)
	addUploads(c, &f.uploads)
	f.compression.add(c, "zstd `level` for chunks that are compressed anew, 1 to 22")
	storeArgs(c, &f.stores, 2)
	indexArgs(c, &f.indexes, 2, 0)
	c.Flags().Var(locationFlag(&f.indexesTo), "indexes-to", "`location` to copy the indexes to: a directory, or a URL like one")
	check(c, func([]string) error { return f.check() })
	checkIndexes(c, 2)
	return c
}

func (f *storeCopyFlags) check() error {
	if len(f.stores[0]) > 1 && len(f.indexes) == 0 {
		return errors.New("stores that stand in for each other are not listed as one: name indexes")
	}
	if _, err := onlyStore("TO", f.stores[1]); err != nil {
		return err
	}
	switch {
	case f.indexesTo.IsZero():
		return nil
	case f.indexesTo.IsStream():
		return errors.New("--indexes-to: it is a directory or a URL, not stdout; a directory of that name is ./-")
	}
	if len(f.indexes) == 0 || slices.ContainsFunc(f.indexes, locate.Location.IsStream) {
		return errors.New("--indexes-to: name the indexes to copy")
	}
	return checkNamesDiffer(f.indexes)
}

// checkNamesDiffer refuses indexes that could not be copied to one place, as one would replace another.
func checkNamesDiffer(indexes []locate.Location) error {
	named := map[string]locate.Location{}
	for _, index := range indexes {
		_, name, err := index.Split()
		if err != nil {
			continue // reading it says why
		}
		if other, is := named[name]; is && other.Sum() != index.Sum() {
			return fmt.Errorf("--indexes-to: two of the indexes are called %q", name)
		}
		named[name] = index
	}
	return nil
}

// storeCopied is what store copy --json prints.
type storeCopied struct {
	From string          `json:"from"`
	To   locate.Location `json:"to"`
	keep.CopyReport
	Indexes  []locate.Location `json:"indexes,omitempty"`  // that were copied
	Findings []keep.Finding    `json:"findings,omitempty"` // the first of them
	Seconds  float64           `json:"seconds"`
}

func runStoreCopy(ctx context.Context, stdout io.Writer, f storeCopyFlags) error {
	indexes, err := f.readIndexes(ctx, f.indexes)
	if err != nil {
		return err
	}
	from, err := f.openGroup(f.stores[0])
	if err != nil {
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
	result := storeCopied{From: joinLocations(f.stores[0], "|"), To: f.stores[1][0]}
	if err := f.copy(ctx, from, to, indexes, &result); err != nil {
		return fmt.Errorf("copying %s to %s: %w", result.From, result.To, err)
	}
	for i, x := range indexes {
		if outlets == nil || !result.Whole[i] {
			continue
		}
		if err := outlets[i].Publish(ctx, x); err != nil {
			return f.wrapCopying(i, err)
		}
		result.Indexes = append(result.Indexes, f.indexes[i])
	}
	if f.json {
		err = writeJSON(stdout, result)
	} else {
		tellCopied(result)
	}
	return errors.Join(err, result.failure())
}

// openOutlets opens where the indexes are copied to, if they are, and finds out early that they can be.
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
			outlets[i], err = release.OutletIn(ctx, b, f.indexesTo, name, release.OutletOptions{Notes: notePublished})
		}
		if err != nil {
			return nil, f.wrapCopying(i, err)
		}
	}
	return outlets, nil
}

func (f *storeCopyFlags) wrapCopying(i int, err error) error {
	return fmt.Errorf("copying index %s to %s: %w", f.indexes[i], f.indexesTo, err)
}

func (f *storeCopyFlags) copy(ctx context.Context, from []store.Reader, to store.Bucket, indexes []*blob.Index, result *storeCopied) (err error) {
	o := keep.CopyOptions{
		Algorithm: f.algorithm(), Indexes: indexes, Else: from[1:], Workers: f.workers(f.stores[0][0], f.jobs),
		Writer: f.writerOptions(),
	}
	if result.To.Remote() {
		o.Writer.Uploads = f.uploads
		o.Workers = max(o.Workers, f.uploads)
	}
	total := int64(-1)
	if len(indexes) > 0 {
		total = keep.DistinctBytes(indexes)
	}
	p := newProgress(f.progress, fmt.Sprintf("copying %s to %s", result.From, result.To), total)
	o.Show = func(r keep.CopyReport) { p.show(r.Done, chunks(r.Copied.Chunks, "copied"), r) }
	o.Found = func(found keep.Finding) {
		if len(result.Findings) < keep.MostFindings {
			result.Findings = append(result.Findings, found)
		}
		if !f.json {
			say("%s: %s", found.Kind, found.Why)
		}
	}
	result.CopyReport, err = keep.Copy(ctx, from[0], to, o)
	p.end()
	result.Seconds = p.took().Seconds()
	return err
}

func tellCopied(r storeCopied) {
	say("copied %s (%s) from %s to %s, which held %s already", chunks(r.Copied.Chunks), size(r.Copied.Bytes), r.From, r.To, chunks(r.Held))
	if len(r.Indexes) > 0 {
		say("copied %s", joinLocations(r.Indexes, ", "))
	}
}

// failure says what could not be copied.
func (r storeCopied) failure() error {
	bad := r.Bad()
	switch {
	case bad == 0:
		return nil
	case r.Missing == bad:
		return hintError{fmt.Errorf("%s lacks %s: %w", r.From, chunks(bad), store.ErrNotFound), "what it has was copied; copy the rest from another store"}
	}
	return damagedError{fmt.Sprintf("%s could not be copied from %s: %d damaged, %d empty, %d missing, %d of unknown compression",
		chunks(bad), r.From, r.Damaged, r.Empty, r.Missing, r.Unknown)}
}
