package main

import (
	"bytes"
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
	"cairn/internal/disk"
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
	size      string
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
	flags.StringVar(&f.size, "size", "", "use only the first `bytes` of the image, or \"filesystem\"")
	f.publish.add(c)
	checkStdio(c, func(u *users, args []string) {
		u.reads("IMAGE", args[1])
		for _, base := range f.bases {
			u.readsAt("--base", base)
		}
		u.writes("INDEX", args[0])
		u.prints("--json", f.json)
	})
	check(c, func(args []string) error {
		if f.size != "" && f.size != "filesystem" {
			if _, err := parseBytes(f.size); err != nil {
				return fmt.Errorf("--size: %w", err)
			}
		}
		_, err := chunker.ParseParams(f.chunkSize)
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

func runMake(ctx context.Context, stdout io.Writer, f makeFlags, image string) (err error) {
	index := f.index[0]
	if f.store.IsZero() {
		if f.store, err = index.DefaultStore(); err != nil {
			return err
		}
	}
	access, err := f.open()
	if err != nil {
		return err
	}
	outlet, err := openOutlet(ctx, index, f.createOnly, access)
	if err != nil {
		return absentHint(fmt.Errorf("writing index %s: %w", index, err), "check the index's location, or make its directory")
	}
	bucket, err := openRemote(f.store, access)
	if err != nil {
		return fmt.Errorf("opening store %s: %w", f.store, err)
	}
	src, total, err := openSource(ctx, image, f.size)
	if err != nil {
		return fmt.Errorf("opening image %s: %w", image, err)
	}
	defer src.Close()
	if bucket == nil { // a directory is not made before the image is there
		if bucket, err = access.OpenBucket(f.store); err != nil {
			return fmt.Errorf("opening store %s: %w", f.store, err)
		}
	}
	defer store.Close(bucket)
	return makeInto(ctx, destination{index, image, outlet, bucket, f.store.Remote(), f.access}, src, total, f, stdout)
}

// makeInto is make with everything open.
func makeInto(ctx context.Context, to destination, src imageSource, total int64, f makeFlags, stdout io.Writer) error {
	prepareHeap(total)
	params, _ := chunker.ParseParams(f.chunkSize) // checked with the flags
	publisher, err := f.newPublisher(ctx, to, release.PublisherOptions{Writer: f.writerOptions(),
		Algorithm: f.digest, Params: blob.Params(params), Chunks: total / params.Avg})
	if err != nil {
		return err
	}
	defer publisher.Close()
	p := newProgress(f.progress, "making "+to.index.String(), total)
	x, stats, err := ingest.Image(ctx, src.chunks, publisher, ingest.Options{
		Algorithm: f.digest, Params: params, Workers: f.jobs, AtOnce: f.atOnce(to),
		Progress: func(s ingest.Stats) { p.show(s.Size, "new "+size(s.NewBytes), s) },
	})
	p.end()
	if err != nil {
		return fmt.Errorf("making %s of %s: %w", to.index, to.image, err)
	}
	if err := publisher.Publish(ctx, to.outlet, x); err != nil {
		return fmt.Errorf("writing index %s: %w", to.index, wordCreate(err))
	}
	result := madeResult{Index: to.index.String(), Store: f.store.String(), Seconds: p.took().Seconds(), Stats: stats}
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

// imageSource is an image to be cut.
type imageSource struct {
	chunks *chunker.Source
	io.Closer
}

// openSource opens an image to be cut, and says how many bytes it has, or -1. Of a device that says how
// large its file system is, that is used if limit asks for it, and mentioned if not.
func openSource(ctx context.Context, image, limit string) (imageSource, int64, error) {
	f, stream, err := openfile.OpenInput(ctx, image)
	if f == nil && stream == nil && err == nil {
		f, err = openImage(image)
	}
	if image == dash {
		image = "stdin"
	}
	if stream != nil {
		return streamSource(stream, image, limit)
	}
	if err != nil {
		return imageSource{}, 0, err
	}
	kind, claimed, ok := disk.FilesystemSize(f)
	total, err := sourceSize(f.Size(), limit, claimed)
	switch {
	case err != nil:
		f.Close()
		return imageSource{}, 0, err
	case limit == "filesystem":
		say("using the %s of its %s file system, of %s", size(total), kind, size(f.Size()))
	case limit != "":
		say("using %s of %s", size(total), size(f.Size()))
	case ok && f.IsDevice() && claimed < total:
		say("the image is the whole device, %s; its %s file system has %s (--size filesystem)", size(total), kind, size(claimed))
	}
	warnReplay(image, io.NewSectionReader(f, 0, total), total)
	return imageSource{chunker.FromReaderAt(f, total), f}, total, nil
}

// warnReplay warns of file systems in an image whose journal must be replayed.
func warnReplay(image string, r io.ReaderAt, total int64) {
	for _, fs := range disk.NeedReplay(r, total) {
		where := image
		if p := fs.Partition; p != nil {
			where += "#" + cmp.Or(p.Name, strconv.Itoa(p.Number))
		}
		say("warning: the %s in %s was mounted when it was copied, and its journal is not replayed: where it cannot be written it mounts "+
			"with '-o ro,%s' only, perhaps without its last changes", fs.Kind, where, fs.Option)
	}
}

// sourceSize is how much of total bytes is the image.
func sourceSize(total int64, limit string, claimed int64) (int64, error) {
	wanted := total
	switch {
	case limit == "filesystem" && claimed == 0:
		return 0, hintError{fmt.Errorf("it holds no file system that tells its size (squashfs, ext2/3/4, erofs)"), "give --size in bytes"}
	case limit == "filesystem":
		wanted = claimed
	case limit != "":
		wanted, _ = parseBytes(limit) // checked with the flags
	}
	if wanted > total {
		return 0, fmt.Errorf("it has %d bytes, fewer than the %d wanted", total, wanted)
	}
	return wanted, nil
}

// headSize is how much of a stream is looked at: the superblocks of ext and btrfs are in it.
const headSize = 128 << 10

// streamSource is an image that is read until it ends.
func streamSource(stream io.Reader, name, limit string) (imageSource, int64, error) {
	if limit != "" {
		return imageSource{}, 0, misuse{"--size needs an image that is a file or device, not a pipe"}
	}
	head := make([]byte, headSize)
	n, _ := io.ReadFull(stream, head) // a stream that fails does so again
	warnReplay(name, bytes.NewReader(head[:n]), int64(n))
	return imageSource{chunker.FromReader(io.MultiReader(bytes.NewReader(head[:n]), stream)), io.NopCloser(nil)}, -1, nil
}
