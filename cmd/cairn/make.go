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
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/dropin/report"
	"cairn/internal/openfile"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/locate"
)

type makeFlags struct {
	common
	access
	index  locate.Location
	store  locate.Location
	digest blob.Algorithm
	params chunker.Params
	extent int64 // of the image at its location, as in ingest.Open
	compression
	layout
	publish
	keepLast
	deltaFrom   []locate.Location // indexes of old images
	indexOnly   bool              // store no chunks
	desyncStats bool              // print the statistics of desync
}

func newMake() *cobra.Command {
	var f makeFlags
	c := &cobra.Command{
		Use:   "make INDEX IMAGE",
		Short: "Cut an image into a store and write its index",
		Long: `make cuts IMAGE into chunks, writes the chunks that the store lacks, and then writes INDEX. When it ends with
status 0, all of them are on the medium. IMAGE is a file, a block device, a pipe, DISK#NAME, PARTLABEL=NAME,
PARTUUID=UUID, or - for stdin. INDEX is a path, a URL, or - for stdout. The same image and chunk sizes give the same
index as with casync, byte for byte.

make lists a remote store while it cuts. With --base OLD it does not list the store: it assumes that the store holds
the chunks of the index OLD, asks for a few of them, and sends all others. Give as OLD only an index that was
published into this store and whose chunks were not removed since.

The image is the whole file or device. --size limits it to a number of bytes, or with "filesystem" to the size in
the superblock of its file system (squashfs, ext2/3/4, erofs). make warns of an ext3, ext4, xfs or btrfs file system
that was mounted for writing when it was copied.

--delta-from OLD makes a delta from the image of the index OLD, whose chunks are in the same store, before INDEX is
written; see 'cairn delta'. If that fails, INDEX is not written.

--layout packs writes new chunks into packs beside the store: few large objects, of which clients read runs of chunks.
Their places are in a map beside the index, NAME.DIGEST.camap. casync and desync need --layout both or chunks.
The chunks of a boot profile are in packs of their own.

--index-only writes INDEX and stores no chunks, for example as the index of a seed.`,
		Example: `  cairn make v2.caibx root.squashfs -s /srv/images/default.castr
  cairn make slot-a.caibx /dev/disk/by-partlabel/root-a --size filesystem
  zcat root.img.gz | cairn make v2.caibx -
  cairn make s3://images/v2.caibx root.squashfs --base s3://images/v1.caibx --create-only
  cairn make v3.caibx root.squashfs --delta-from v1.caibx --delta-from v2.caibx --keep-last 2
  cairn make slot-a.caibx PARTLABEL=root-a --index-only`,
		Args: checkArgs(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error { return runMake(c.Context(), c.OutOrStdout(), f, args[1]) },
	}
	f.common.addFlags(c)
	f.access.addFlags(c)
	f.addPatience(c)
	flags := c.Flags()
	indexArg(c, &f.index)
	localArg(c, 1, "IMAGE")
	addStore(c, &f.store, "default.castr beside the index")
	flags.Var(digestFlag(&f.digest), "digest", "`name` of the digest algorithm: sha512-256 (as casync) or sha256")
	f.params = chunker.Default
	sizes := fmt.Sprintf("%d:%d:%d", f.params.Min>>10, f.params.Avg>>10, f.params.Max>>10)
	flags.Var(funcFlag{"sizes", sizes, func(text string) (err error) {
		f.params, err = chunker.ParseParams(text)
		return err
	}}, "chunk-size", "chunk `sizes` MIN:AVG:MAX in KiB (or with a suffix), or AVG alone")
	f.compression.addFlags(c, "zstd `level`, 1 to 22")
	f.layout.addFlags(c)
	f.extent = ingest.Whole
	flags.Var(funcFlag{"bytes", "", func(text string) (err error) {
		switch text {
		case "":
			f.extent = ingest.Whole
		case "filesystem":
			f.extent = ingest.FileSystem
		default:
			f.extent, err = parseBytes(text)
		}
		return err
	}}, "size", "use only the first `bytes` of the image, or \"filesystem\"")
	f.publish.addFlags(c)
	flags.Var(locationsFlag(&f.deltaFrom), "delta-from", "make a delta from the image of this `index`; repeatable, the newest last")
	f.keepLast.addFlags(c)
	flags.BoolVar(&f.indexOnly, "index-only", false, "write the index, and store no chunks")
	addCheck(c, func([]string) error {
		if f.keepLast.n > 0 && len(f.deltaFrom) == 0 {
			return errors.New("--keep-last needs --delta-from INDEX")
		}
		if f.packs() && f.writerOptions().Compression == store.None {
			return fmt.Errorf("--layout %s: chunks in packs are compressed", f.layout.layout)
		}
		for _, name := range storeFlags {
			if f.indexOnly && flags.Changed(name) {
				return fmt.Errorf("--%s is about a store, and --index-only writes to none", name)
			}
		}
		return nil
	})
	addDesyncStats(c, &f.desyncStats)
	checkStdioUse(c, func(u *stdioUsers, args []string) {
		u.addReader("IMAGE", args[1])
		for _, base := range f.bases {
			u.addLocation("--base", base)
		}
		for _, old := range f.deltaFrom {
			u.addLocation("--delta-from", old)
		}
		u.addWriter("INDEX", args[0])
		u.addPrinter("--json", f.json)
	})
	return c
}

// addStore adds the flag for the store that a command writes to.
func addStore(c *cobra.Command, into *locate.Location, byDefault string) {
	var group [][]locate.Location
	c.Flags().VarP(groupsFlag(&group), "store", "s", "`location` of the store to write to (default: "+byDefault+")")
	addCheck(c, func([]string) (err error) {
		switch {
		case len(group) > 1:
			return errors.New("--store: one store is written, and several are named")
		case len(group) == 1:
			*into, err = onlyStore("--store", group[0])
		}
		return err
	})
}

// storeFlags are the flags of make that have no effect without a store.
var storeFlags = []string{"store", "base", "uploads", "gc-root", "compression", "compression-level", "delta-from", "layout"}

// makeResult is the output of make --json.
type makeResult struct {
	Index   string  `json:"index"`
	Digest  string  `json:"index_digest"`
	Store   string  `json:"store,omitempty"` // "" without a store
	Seconds float64 `json:"seconds"`
	ingest.Stats
	Packs   int           `json:"packs,omitempty"` // that were written
	Deltas  []deltaResult `json:"deltas,omitempty"`
	Removed int           `json:"removed_files,omitempty"` // of older deltas
}

func runMake(ctx context.Context, stdout io.Writer, f makeFlags, image string) error {
	if f.store.IsZero() && !f.indexOnly {
		var err error
		if f.store, err = f.index.DefaultStore(); err != nil {
			return err
		}
	}
	access, err := f.openAccess()
	if err != nil {
		return err
	}
	outlet, err := release.OpenOutlet(ctx, access, f.index, release.OutletOptions{CreateOnly: f.createOnly, Notes: logReleaseNote})
	if err != nil {
		err = fmt.Errorf("writing index %s: %w", f.index, usageIfUnsupported(explainNoCreate(err)))
		return absentHint(err, "check the index's location, or make its directory")
	}
	openStore := func() (store.Bucket, error) {
		b, err := access.OpenBucket(f.store)
		if err != nil {
			return nil, fmt.Errorf("opening store %s: %w", f.store, usageIfUnsupported(err))
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
		return fmt.Errorf("opening image %s: %w", image, explainSource(err))
	}
	defer src.Close()
	logSource(image, src, f.extent)
	if f.indexOnly {
		return makeIndex(ctx, outlet, src, f, image, stdout)
	}
	if to == nil { // a missing image leaves no new directory
		if to, err = openStore(); err != nil {
			return err
		}
	}
	defer store.Close(to)
	return makeInto(ctx, to, outlet, src, f, image, stdout)
}

// makeIndex cuts an open image, publishes its index and prints the result. No chunk is stored.
func makeIndex(
	ctx context.Context, outlet *release.Outlet, src *ingest.Source, f makeFlags, image string, stdout io.Writer,
) error {
	prepareHeap(src.Size)
	p := newProgress(f.progress, "making "+f.index.String(), "Chunking ", src.Size)
	x, stats, err := scan.Image(ctx, src.Source, scan.Options{
		Algorithm: f.digest, Params: f.params, Workers: f.jobs,
		Progress: func(s scan.Stats) { p.show(s.Size, "", s) },
	})
	p.end()
	if err != nil {
		return fmt.Errorf("making %s of %s: %w", f.index, image, err)
	}
	if err := outlet.Publish(ctx, x); err != nil {
		return fmt.Errorf("writing index %s: %w", f.index, explainNoCreate(err))
	}
	r := makeResult{Index: f.index.String(), Stats: ingest.Stats{Stats: stats}}
	return f.printResult(stdout, r, x, p.elapsed(), "no chunk was stored")
}

// makeInto cuts an open image into a store, publishes its index and prints the result.
func makeInto(
	ctx context.Context, to store.Bucket, outlet *release.Outlet, src *ingest.Source, f makeFlags, image string, stdout io.Writer,
) error {
	prepareHeap(src.Size)
	uploads := 0
	if f.store.Remote() { // more writes than workers do not make a directory faster
		uploads = f.uploads
	}
	bases, err := f.readBases(ctx, f.access)
	if err != nil {
		return err
	}
	deltas, err := f.openDeltaJob(ctx)
	if err != nil {
		return err
	}
	defer deltas.close()
	records, err := f.gcRoot.open(ctx, &f.access, f.store)
	if err != nil {
		return err
	}
	defer records.Close()
	o := release.PublisherOptions{
		Writer: f.writerOptions(), Algorithm: f.digest, Params: blob.Params(f.params), Chunks: src.Size / f.params.Avg,
		Remote: f.store.Remote(), Bases: bases, Notes: logReleaseNote,
		Records: records, Name: release.RecordName(f.store, f.index),
	}
	o.Writer.Uploads = uploads
	var end func()
	if o.Packs, end, err = f.openPacks(ctx, &f.access, f.store, f.index, records); err != nil {
		return err
	}
	defer end()
	if o.Packs != nil && outlet.IsStream() {
		return usageError{fmt.Errorf("--layout %s: the map of packs lies beside INDEX, and nothing can lie beside a stream", f.layout.layout)}
	}
	f.announcePacks(src.Size, f.params.Avg)
	publisher, err := release.NewPublisher(ctx, to, o)
	if err != nil {
		return err
	}
	defer publisher.Close()
	p := newProgress(f.progress, "making "+f.index.String(), "Chunking ", src.Size)
	x, stats, err := ingest.Image(ctx, src.Source, publisher, ingest.Options{
		Algorithm: f.digest, Params: f.params, Workers: f.jobs, AtOnce: uploads,
		Progress: func(s ingest.Stats) { p.show(s.Size, "new "+plaintext.Size(s.NewBytes), s) },
	})
	p.end()
	if err != nil {
		return fmt.Errorf("making %s of %s: %w", f.index, image, err)
	}
	r := makeResult{Index: f.index.String(), Store: f.store.String(), Stats: stats}
	if len(f.deltaFrom) > 0 {
		if err := publisher.Commit(ctx); err != nil {
			return fmt.Errorf("making the chunks durable: %w", err)
		}
		if r.Deltas, err = f.makeDeltas(ctx, deltas, x, src); err != nil {
			return fmt.Errorf("%w (%s is not written)", err, f.index)
		}
	}
	if err := publisher.Publish(ctx, outlet, x); err != nil {
		return fmt.Errorf("writing index %s: %w", f.index, explainNoCreate(err))
	}
	if r.Removed, err = f.removeOld(ctx, deltas.dir, x, deltas.old...); err != nil {
		return err
	}
	r.Packs = len(publisher.Packs())
	outcome := "the store has every chunk already, none was written"
	if r.New > 0 {
		outcome = fmt.Sprintf("%s (%s), stored in %s", plaintext.Count(r.New, "new chunk"), plaintext.Size(r.NewBytes), plaintext.Size(r.Stored))
		if r.Packs > 0 {
			outcome += fmt.Sprintf(" of %s", plaintext.Count(int64(r.Packs), "pack"))
		}
	}
	return f.printResult(stdout, r, x, p.elapsed(), outcome)
}

// printResult prints the result of a make. outcome says what became of the chunks.
func (f *makeFlags) printResult(stdout io.Writer, r makeResult, x *blob.Index, elapsed time.Duration, outcome string) error {
	if f.json {
		r.Digest, r.Seconds = x.Digest().String(), elapsed.Seconds()
		return writeJSON(openfile.Optional(stdout), r)
	}
	logf("made %s of %s (%s): %s, in %s",
		r.Index, plaintext.Size(r.Size), plaintext.Count(int64(r.Chunks), "chunk"), outcome, plaintext.Duration(elapsed))
	if f.desyncStats { // as desync, on stderr: the index may be on stdout
		return writeJSON(stderr, report.MakeStats{Accepted: r.Chunks, Produced: r.Chunks})
	}
	return nil
}

// deltaJob is what --delta-from needs besides the new image.
type deltaJob struct {
	old []*blob.Index
	dir deltaDir
}

func (j *deltaJob) close() {
	if j.dir.bucket != nil {
		store.Close(j.dir.bucket)
	}
}

// openDeltaJob reads the indexes of --delta-from and opens the directory of deltas, before the work.
func (f *makeFlags) openDeltaJob(ctx context.Context) (*deltaJob, error) {
	j := &deltaJob{}
	if len(f.deltaFrom) == 0 {
		return j, nil
	}
	for _, at := range f.deltaFrom {
		x, err := readImageIndex(ctx, at, f.access)
		if err != nil {
			return nil, err
		}
		if err := checkPair(at, x, f.index, f.digest, blob.Params(f.params)); err != nil {
			return nil, err
		}
		j.old = append(j.old, x)
	}
	var err error
	j.dir, err = openDeltas(&f.access, f.store, f.keepLast)
	return j, err
}

// makeDeltas makes the deltas of --delta-from to the new image, whose chunks are in the store.
func (f *makeFlags) makeDeltas(ctx context.Context, j *deltaJob, x *blob.Index, src *ingest.Source) (results []deltaResult, err error) {
	to := &deltaImage{at: f.index}
	if err := to.openStored(ctx, f.access, x, f.store, src.ReaderAt()); err != nil {
		return nil, err
	}
	defer to.close()
	for i, old := range j.old {
		from := &deltaImage{at: f.deltaFrom[i]}
		if err := from.openStored(ctx, f.access, old, f.store, nil); err != nil {
			return nil, err
		}
		r, err := f.publishDelta(ctx, j.dir, from, to)
		from.close()
		if err != nil {
			return nil, err
		}
		results = append(results, r)
	}
	return results, nil
}

// explainSource adds what to do to an error about --size.
func explainSource(err error) error {
	switch {
	case errors.Is(err, ingest.ErrStream):
		return usageError{errors.New("--size needs an image that is a file or device, not a pipe")}
	case errors.Is(err, ingest.ErrNoClaim):
		return hintError{err, "give --size in bytes"}
	}
	return err
}

// logSource prints the size of the image if it is not the size of its file, and warns of file systems in it whose journal
// must be replayed.
func logSource(image string, s *ingest.Source, extent int64) {
	switch {
	case s.Size < 0: // the image is all of a stream
	case extent == ingest.FileSystem:
		logf("using the %s of its %s file system, of %s", plaintext.Size(s.Size), s.Kind, plaintext.Size(s.Held))
	case extent != ingest.Whole:
		logf("using %s of %s", plaintext.Size(s.Size), plaintext.Size(s.Held))
	case s.Device && s.Kind != "" && s.Claimed < s.Size:
		logf("the image is the whole device, %s; its %s file system has %s (--size filesystem)", plaintext.Size(s.Size), s.Kind, plaintext.Size(s.Claimed))
	}
	if image == openfile.Dash {
		image = "stdin"
	}
	for _, fs := range s.Replay {
		where := image
		if p := fs.Partition; p != nil {
			where += "#" + cmp.Or(p.Name, strconv.Itoa(p.Number))
		}
		logf("warning: the %s in %s was mounted when it was copied, and its journal is not replayed: where it cannot be written it mounts "+
			"with '-o ro,%s' only, perhaps without its last changes", fs.Kind, where, fs.Option)
	}
}
