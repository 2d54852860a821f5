package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/ingest"
	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/locate"
)

type storeAddFlags struct {
	common
	access
	compression
	layout
	publish
	stores [][]locate.Location // STORE
	index  locate.Location
}

func newStoreAdd() *cobra.Command {
	var f storeAddFlags
	c := &cobra.Command{
		Use:   "add STORE INDEX IMAGE",
		Short: "Add the chunks of an index to a store, from its image",
		Long: `add reads the chunks of INDEX that STORE lacks from IMAGE, verifies them, and writes them into STORE. IMAGE is a file,
a block device, DISK#NAME, PARTLABEL=NAME or PARTUUID=UUID. INDEX exists already and is not changed, so one index can
have its chunks in several stores.

add lists a remote store, or with --base OLD assumes that it holds the chunks of the index OLD, as make does. Exit
status 3 says that a chunk of IMAGE is not the one in INDEX.`,
		Example: `  cairn make v2.caibx root.squashfs --index-only
  cairn store add s3://images/default.castr v2.caibx root.squashfs --base v1.caibx`,
		Args: checkArgs(cobra.ExactArgs(3)),
		RunE: func(c *cobra.Command, args []string) error {
			return runStoreAdd(c.Context(), c.OutOrStdout(), f, args[2])
		},
	}
	f.common.addFlags(c)
	f.access.addFlags(c)
	f.addPatience(c)
	storeArgs(c, &f.stores, 1)
	addCheck(c, func(args []string) (err error) {
		if _, err = onlyStore("STORE", f.stores[0]); err == nil {
			f.index, err = parseIndex(args[1])
		}
		return err
	})
	localArg(c, 2, "IMAGE")
	f.compression.addFlags(c, "zstd `level`, 1 to 22")
	f.layout.addFlags(c)
	addCheck(c, func([]string) error {
		switch {
		case f.packs() && f.index.IsStream():
			return fmt.Errorf("--layout %s: the map of packs lies beside INDEX, and nothing can lie beside a stream", f.layout.layout)
		case f.packs() && f.writerOptions().Compression == store.None:
			return fmt.Errorf("--layout %s: chunks in packs are compressed", f.layout.layout)
		}
		return nil
	})
	f.addBases(c)
	addUploads(c, &f.uploads)
	f.gcRoot.addFlag(c)
	checkStdioUse(c, func(u *stdioUsers, _ []string) {
		u.addLocation("INDEX", f.index)
		for _, base := range f.bases {
			u.addLocation("--base", base)
		}
	})
	return c
}

// storeAddResult is the output of store add --json.
type storeAddResult struct {
	Store locate.Location `json:"store"`
	Index locate.Location `json:"index"`
	ingest.Stats
	Seconds float64 `json:"seconds"`
}

func runStoreAdd(ctx context.Context, stdout io.Writer, f storeAddFlags, image string) error {
	x, err := readAnyIndex(ctx, f.index, f.access)
	if err != nil {
		return err
	}
	src, err := ingest.Open(ctx, image, x.Size())
	if errors.Is(err, ingest.ErrStream) {
		return usageError{fmt.Errorf("image %s: it is read at any place, which a pipe does not allow", image)}
	}
	if err != nil {
		return fmt.Errorf("opening image %s: %w", image, err)
	}
	defer src.Close()
	at := f.stores[0][0]
	access, err := f.openAccess()
	if err != nil {
		return err
	}
	to, err := access.OpenBucket(at)
	if err != nil {
		return fmt.Errorf("opening store %s: %w", at, usageIfUnsupported(err))
	}
	defer store.Close(to)
	r := storeAddResult{Store: at, Index: f.index}
	p := newProgress(f.progress, "adding "+f.index.String()+" to "+at.String(), "", x.Size())
	r.Stats, err = f.addTo(ctx, to, x, src, p)
	p.end()
	if err != nil {
		return fmt.Errorf("adding the chunks of %s from %s to %s: %w", f.index, image, at, err)
	}
	if f.json {
		r.Seconds = p.elapsed().Seconds()
		return writeJSON(stdout, r)
	}
	logf("added %s (%s, stored in %s) to %s, which has all %d of %s now, in %s", plaintext.Count(r.New, "chunk"),
		plaintext.Size(r.NewBytes), plaintext.Size(r.Stored), at, r.Distinct, f.index, plaintext.Duration(p.elapsed()))
	return nil
}

// addTo adds the chunks to an open store.
func (f *storeAddFlags) addTo(ctx context.Context, to store.Bucket, x *blob.Index, src *ingest.Source, p *progress) (ingest.Stats, error) {
	bases, err := f.readBases(ctx, f.access)
	if err != nil {
		return ingest.Stats{}, err
	}
	at := f.stores[0][0]
	records, err := f.gcRoot.open(ctx, &f.access, at)
	if err != nil {
		return ingest.Stats{}, err
	}
	defer records.Close()
	remote := at.Remote()
	o := release.PublisherOptions{
		Writer: f.writerOptions(), Algorithm: x.Algorithm(), Params: x.Params(), Chunks: int64(x.Len()),
		Remote: remote, Bases: bases, Notes: logReleaseNote,
		Records: records, Name: release.RecordName(at, f.index),
	}
	uploads := 0
	if remote {
		uploads = f.uploads
	}
	o.Writer.Uploads = uploads
	outlet, end, err := f.openPackedIndex(ctx, records, &o)
	if err != nil {
		return ingest.Stats{}, err
	}
	defer end()
	publisher, err := release.NewPublisher(ctx, to, o)
	if err != nil {
		return ingest.Stats{}, err
	}
	defer publisher.Close()
	stats, err := ingest.Add(ctx, x, src.ReaderAt(), publisher, ingest.Options{Workers: f.jobs, AtOnce: uploads,
		Progress: func(s ingest.Stats) { p.show(s.Size, "new "+plaintext.Size(s.NewBytes), s) }})
	if err != nil {
		return ingest.Stats{}, err
	}
	if outlet != nil {
		return stats, publisher.Publish(ctx, outlet, x)
	}
	return stats, publisher.Finish(ctx, x)
}

// openPackedIndex sets the options for packs. It returns the outlet of the index, beside which the map of packs is
// published; nil without packs.
func (f *storeAddFlags) openPackedIndex(ctx context.Context, records *gcroot.Dir, o *release.PublisherOptions) (outlet *release.Outlet, end func(), err error) {
	if o.Packs, end, err = f.openPacks(ctx, &f.access, f.stores[0][0], f.index, records); o.Packs == nil || err != nil {
		return nil, end, err
	}
	access, err := f.openAccess()
	if err == nil {
		outlet, err = release.OpenOutlet(ctx, access, f.index, release.OutletOptions{Notes: logReleaseNote})
	}
	if err != nil {
		end()
		return nil, nil, fmt.Errorf("writing the map beside %s: %w", f.index, usageIfUnsupported(err))
	}
	return outlet, end, nil
}
