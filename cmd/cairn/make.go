package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/ingest"
	"cairn/blob/release"
	"cairn/chunker"
	"cairn/internal/openfile"
	"cairn/store"
	"cairn/store/locate"
)

type makeFlags struct {
	common
	access
	index     []locate.Location // one
	store     locate.Location
	digest    blob.Algorithm
	chunkSize string
	extent    int64 // how much of its location is the image, as ingest.Open takes it
	compression
	publish
}

func newMake() *cobra.Command {
	var f makeFlags
	c := &cobra.Command{
		Use:   "make INDEX IMAGE",
		Short: "Cut an image into a store and write its index",
		Long: `make cuts IMAGE (a file, a block device, a pipe, DISK#NAME, PARTLABEL=NAME, PARTUUID=UUID, or - for stdin) into
chunks, puts those into the store that it lacks, and when all of them are on the medium writes INDEX (- for
stdout). The same image and sizes give the index that casync gives, byte for byte.

INDEX and the store may be remote. Then the store is listed once, beside the cutting, instead of being asked
about each chunk; with --base it is not even listed: the chunks of OLD, an index of this store, are taken to be
there (a few of them are asked for), and all others are sent. Name as base only what was published into this
store and whose chunks nobody has removed since.

The whole device is the image. --size says otherwise: a number of bytes, or "filesystem" for what the file
system's superblock claims (squashfs, ext2/3/4, erofs); what is used is printed. make warns of an ext3, ext4,
xfs or btrfs that was mounted for writing when it was copied.`,
		Example: `  cairn make v2.caibx root.squashfs -s /srv/images/default.castr
  cairn make slot-a.caibx /dev/disk/by-partlabel/root-a --size filesystem
  zcat root.img.gz | cairn make v2.caibx -
  cairn make s3://images/v2.caibx root.squashfs --base s3://images/v1.caibx --create-only`,
		Args: arguments(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return wordMisuse(c, runMake(c.Context(), c.OutOrStdout(), f, args[1]))
		},
	}
	f.common.add(c)
	f.access.add(c)
	f.addPatience(c)
	flags := c.Flags()
	indexArgs(c, &f.index, 0, 1)
	localArgs(c, 1, "IMAGE")
	var group [][]locate.Location
	flags.VarP(groupsFlag(&group), "store", "s", "`location` of the store to write to (default: default.castr beside the index)")
	check(c, func([]string) (err error) {
		switch {
		case len(group) > 1:
			return errors.New("--store: one store is written, and several are named")
		case len(group) == 1:
			f.store, err = onlyStore("--store", group[0])
		}
		return err
	})
	flags.Var(digestFlag{&f.digest}, "digest", "`name` of the hash: sha512-256 (casync's default) or sha256")
	sizes := chunker.Default
	flags.StringVar(&f.chunkSize, "chunk-size", fmt.Sprintf("%d:%d:%d", sizes.Min>>10, sizes.Avg>>10, sizes.Max>>10), "chunk `sizes` MIN:AVG:MAX in KiB (or with a suffix), or AVG alone")
	f.compression.add(c, "zstd `level`, 1 to 22")
	size := flags.String("size", "", "use only the first `bytes` of the image, or \"filesystem\"")
	f.publish.add(c)
	checkStdio(c, func(u *users, args []string) {
		u.reads("IMAGE", args[1])
		for _, base := range f.bases {
			u.readsAt("--base", base)
		}
		u.writes("INDEX", args[0])
		u.prints("--json", f.json)
	})
	check(c, func([]string) (err error) {
		switch *size {
		case "":
			f.extent = ingest.Whole
		case "filesystem":
			f.extent = ingest.FileSystem
		default:
			if f.extent, err = parseBytes(*size); err != nil {
				return fmt.Errorf("--size: %w", err)
			}
		}
		_, err = chunker.ParseParams(f.chunkSize)
		return err
	})
	return c
}

// madeResult is what make --json prints.
type madeResult struct {
	Index   string  `json:"index"`
	Digest  string  `json:"index_digest"`
	Store   string  `json:"store"`
	Seconds float64 `json:"seconds"`
	ingest.Stats
}

func runMake(ctx context.Context, stdout io.Writer, f makeFlags, image string) error {
	index := f.index[0]
	if f.store.IsZero() {
		var err error
		if f.store, err = index.DefaultStore(); err != nil {
			return err
		}
	}
	access, err := f.open()
	if err != nil {
		return err
	}
	outlet, err := release.OpenOutlet(ctx, access, index, release.OutletOptions{CreateOnly: f.createOnly, Notes: notePublished})
	if err != nil {
		err = fmt.Errorf("writing index %s: %w", index, unwritable(wordCreate(err)))
		return absentHint(err, "check the index's location, or make its directory")
	}
	openStore := func() (store.Bucket, error) {
		b, err := access.OpenBucket(f.store)
		if err != nil {
			return nil, fmt.Errorf("opening store %s: %w", f.store, unwritable(err))
		}
		return b, nil
	}
	var to store.Bucket
	if f.store.Remote() {
		if to, err = openStore(); err != nil {
			return err
		}
	}
	src, err := ingest.Open(ctx, image, f.extent)
	if err != nil {
		return fmt.Errorf("opening image %s: %w", image, wordSource(err))
	}
	defer src.Close()
	tellSource(image, src, f.extent)
	if to == nil { // a directory is not made before the image is there
		if to, err = openStore(); err != nil {
			return err
		}
	}
	defer store.Close(to)
	return makeInto(ctx, to, outlet, src, f, image, stdout)
}

// makeInto is make with everything open.
func makeInto(
	ctx context.Context, to store.Bucket, outlet *release.Outlet, src *ingest.Source, f makeFlags, image string, stdout io.Writer,
) error {
	prepareHeap(src.Size)
	index, uploads := f.index[0], 0
	if f.store.Remote() { // a directory would not gain by more at once than there are workers
		uploads = f.uploads
	}
	bases, err := f.readBases(ctx, f.access)
	if err != nil {
		return err
	}
	params, _ := chunker.ParseParams(f.chunkSize) // checked with the flags
	o := release.PublisherOptions{
		Writer: f.writerOptions(), Algorithm: f.digest, Params: blob.Params(params), Chunks: src.Size / params.Avg,
		Remote: f.store.Remote(), Bases: bases, Notes: notePublished,
	}
	o.Writer.Uploads = uploads
	publisher, err := release.NewPublisher(ctx, to, o)
	if err != nil {
		return err
	}
	defer publisher.Close()
	p := newProgress(f.progress, "making "+index.String(), src.Size)
	x, stats, err := ingest.Image(ctx, src.Source, publisher, ingest.Options{
		Algorithm: f.digest, Params: params, Workers: f.jobs, AtOnce: uploads,
		Progress: func(s ingest.Stats) { p.show(s.Size, "new "+size(s.NewBytes), s) },
	})
	p.end()
	if err != nil {
		return fmt.Errorf("making %s of %s: %w", index, image, err)
	}
	if err := publisher.Publish(ctx, outlet, x); err != nil {
		return fmt.Errorf("writing index %s: %w", index, wordCreate(err))
	}
	result := madeResult{Index: index.String(), Store: f.store.String(), Seconds: p.took().Seconds(), Stats: stats}
	if f.json {
		result.Digest = x.Digest().String()
		return writeJSON(openfile.Optional(stdout), result)
	}
	tellMade(result)
	return nil
}

func tellMade(r madeResult) {
	took := rounded(time.Duration(r.Seconds * float64(time.Second)))
	if r.New == 0 {
		say("made %s of %s (%s): the store has every chunk already, none was written, in %s",
			r.Index, size(r.Size), chunks(int64(r.Chunks)), took)
		return
	}
	say("made %s of %s (%s): %s (%s), stored in %s, in %s", r.Index, size(r.Size),
		chunks(int64(r.Chunks)), chunks(r.New, "new"), size(r.NewBytes), size(r.Stored), took)
}

// wordSource adds what to do to the error about a size that an image cannot have.
func wordSource(err error) error {
	switch {
	case errors.Is(err, ingest.ErrStream):
		return misuse{"--size needs an image that is a file or device, not a pipe"}
	case errors.Is(err, ingest.ErrNoClaim):
		return hintError{err, "give --size in bytes"}
	}
	return err
}

// tellSource says what of a location is the image, where that is not plain, and warns of file systems in it whose journal
// must be replayed.
func tellSource(image string, s *ingest.Source, extent int64) {
	switch {
	case s.Size < 0: // a stream, of which all is the image
	case extent == ingest.FileSystem:
		say("using the %s of its %s file system, of %s", size(s.Size), s.Kind, size(s.Held))
	case extent != ingest.Whole:
		say("using %s of %s", size(s.Size), size(s.Held))
	case s.Device && s.Kind != "" && s.Claimed < s.Size:
		say("the image is the whole device, %s; its %s file system has %s (--size filesystem)", size(s.Size), s.Kind, size(s.Claimed))
	}
	if image == dash {
		image = "stdin"
	}
	for _, fs := range s.Replay {
		where := image
		if p := fs.Partition; p != nil {
			where += "#" + cmp.Or(p.Name, strconv.Itoa(p.Number))
		}
		say("warning: the %s in %s was mounted when it was copied, and its journal is not replayed: where it cannot be written it mounts "+
			"with '-o ro,%s' only, perhaps without its last changes", fs.Kind, where, fs.Option)
	}
}
