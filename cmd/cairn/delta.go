package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/blob/delta/deltadir"
	"cairn/blob/release"
	"cairn/internal/openfile"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/locate"
)

type deltaFlags struct {
	common
	access
	keepLast
	old                locate.Location
	new                []locate.Location
	store              locate.Location // zero: the default store of each index
	oldImage, newImage string          // empty: the store
}

func newDelta() *cobra.Command {
	var f deltaFlags
	c := &cobra.Command{
		Use:   "delta OLD NEW...",
		Short: "Make deltas from one image to others, for smaller updates",
		Long: `delta encodes the chunks that the image NEW has and the image OLD lacks against bytes of OLD, and publishes the
result beside the store: NAME.cadelta beside NAME.castr. A client that has OLD downloads a part of that instead of the
chunks. The chunks must stay in the store. OLD and NEW are indexes, each a path or a URL.

The bytes of both images come from the store (-s, or default.castr beside each index), or from --old-image and
--new-image. They are verified by the indexes. Temporary files are in $TMPDIR. A delta appears when it is complete and
was decoded. A delta that is there already stays.

--keep-last N keeps the deltas to NEW from the N images that were named last. It removes the others, and all deltas to
the old images.`,
		Example: `  cairn delta v1.caibx v2.caibx
  cairn delta v1.caibx v2.caibx -s s3://images/default.castr --old-image v1.squashfs --new-image v2.squashfs
  cairn delta s3://images/v2.caibx s3://images/v3.caibx --keep-last 3`,
		Args: checkArgs(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, _ []string) error { return runDelta(c.Context(), c.OutOrStdout(), f) },
	}
	f.common.addFlags(c)
	f.access.addFlags(c)
	f.addPatience(c)
	f.keepLast.addFlags(c)
	indexArg(c, &f.old)
	indexArgs(c, &f.new, 1)
	flags := c.Flags()
	var group [][]locate.Location
	flags.VarP(groupsFlag(&group), "store", "s", "`location` of the store of all indexes (default: default.castr beside each index)")
	flags.StringVar(&f.oldImage, "old-image", "", "`file` or device with the image OLD")
	flags.StringVar(&f.newImage, "new-image", "", "`file` or device with the image NEW")
	addCheck(c, func([]string) (err error) {
		switch {
		case len(group) > 1:
			return errors.New("--store: one store is written, and several are named")
		case f.newImage != "" && len(f.new) > 1:
			return errors.New("--new-image is one image, and several indexes NEW are named")
		case len(group) == 1:
			f.store, err = onlyStore("--store", group[0])
		}
		return err
	})
	checkStdioUse(c, func(u *stdioUsers, args []string) {
		u.addReader("OLD", args[0])
		for _, index := range args[1:] {
			u.addReader("NEW", index)
		}
	})
	return c
}

// keepLast is the flag that limits the deltas to an image.
type keepLast struct{ n int }

func (f *keepLast) addFlags(c *cobra.Command) {
	c.Flags().IntVar(&f.n, "keep-last", 0, "keep deltas from the `number` of images named last, and remove older deltas")
	addCheck(c, func([]string) error {
		if c.Flags().Changed("keep-last") && (f.n < 1 || f.n > delta.MaxBases) {
			return fmt.Errorf("--keep-last %d: want 1 to %d", f.n, delta.MaxBases)
		}
		return nil
	})
}

// removeOld removes older deltas after those from old images to x are published.
func (f *keepLast) removeOld(ctx context.Context, dir deltaDir, x *blob.Index, old ...*blob.Index) (removed int, err error) {
	if f.n == 0 {
		return 0, nil
	}
	var digests []blob.Digest
	for _, x := range old {
		digests = append(digests, x.Digest())
	}
	removed, err = deltadir.KeepLast(ctx, dir.bucket, x, f.n, digests)
	if err != nil {
		return removed, fmt.Errorf("removing older deltas from %s: %w", dir.at, err)
	}
	if removed > 0 {
		logf("removed %s of older deltas", plaintext.Count(int64(removed), "file"))
	}
	return removed, nil
}

// deltasResult is the output of delta --json.
type deltasResult struct {
	Deltas  []deltaResult `json:"deltas"`
	Removed int           `json:"removed_files"` // of older deltas
}

// deltaResult describes the delta between two images.
type deltaResult struct {
	Old   string `json:"old"`
	New   string `json:"new"`
	Delta string `json:"delta,omitempty"` // its location
	deltadir.Result
	Seconds float64 `json:"seconds"`
}

func runDelta(ctx context.Context, stdout io.Writer, f deltaFlags) error {
	old, err := readImageIndex(ctx, f.old, f.access)
	if err != nil {
		return err
	}
	var indexes []*blob.Index
	for _, at := range f.new {
		x, err := readImageIndex(ctx, at, f.access)
		if err != nil {
			return err
		}
		if err := checkPair(f.old, old, at, x.Algorithm(), x.Params()); err != nil {
			return err
		}
		indexes = append(indexes, x)
	}
	from, err := f.openImage(ctx, f.old, old, f.oldImage)
	if err != nil {
		return err
	}
	defer from.close()
	r := deltasResult{}
	for i, x := range indexes {
		if err := f.makeOne(ctx, from, f.new[i], x, &r); err != nil {
			return err
		}
	}
	if f.json {
		return writeJSON(stdout, r)
	}
	return nil
}

// checkPair refuses a delta between images with different digests or chunk sizes. A client cuts its seeds like the new
// image, and finds the old one by the digest of that index.
func checkPair(oldAt locate.Location, old *blob.Index, newAt locate.Location, a blob.Algorithm, p blob.Params) error {
	switch {
	case old.Algorithm() != a:
		return usageError{fmt.Errorf("%s has %v digests, and %s %v: a delta needs two images with the same",
			oldAt, old.Algorithm(), newAt, a)}
	case old.Params() != p:
		return usageError{fmt.Errorf("%s has chunks of %v bytes, and %s of %v: a delta needs two images with the same sizes",
			oldAt, old.Params(), newAt, p)}
	}
	return nil
}

// makeOne makes the delta to one image, removes older ones if the flags say so, and adds to the result.
func (f *deltaFlags) makeOne(ctx context.Context, from *deltaImage, at locate.Location, x *blob.Index, r *deltasResult) (err error) {
	where := f.store
	if where.IsZero() {
		if where, err = at.DefaultStore(); err != nil {
			return err
		}
	}
	dir, err := openDeltas(&f.access, where, f.keepLast)
	if err != nil {
		return err
	}
	defer store.Close(dir.bucket)
	to, err := f.openImage(ctx, at, x, f.newImage)
	if err != nil {
		return err
	}
	defer to.close()
	one, err := f.publishDelta(ctx, dir, from, to)
	if err != nil {
		return err
	}
	r.Deltas = append(r.Deltas, one)
	removed, err := f.removeOld(ctx, dir, x, from.Index)
	r.Removed += removed
	return err
}

// openImage opens the image of an index, in a file or in the store.
func (f *deltaFlags) openImage(ctx context.Context, at locate.Location, x *blob.Index, file string) (*deltaImage, error) {
	m := &deltaImage{at: at}
	if file == "" {
		return m, m.openStored(ctx, f.access, x, f.store, nil)
	}
	in, err := openfile.OpenInput(ctx, file)
	if err != nil {
		return nil, absentHint(fmt.Errorf("opening image %s: %w", file, err), "check the image's location")
	}
	m.closers = append(m.closers, in.Close)
	switch {
	case in.File == nil:
		err = usageError{errors.New("it is read at any place, which a pipe does not allow")}
	case in.File.Size() < x.Size():
		err = damagedError{fmt.Sprintf("it has %d bytes, and %d in its index", in.File.Size(), x.Size())}
	default:
		m.Image, err = deltadir.OpenImage(ctx, x, deltadir.Source{File: in.File})
	}
	if err != nil {
		m.close()
		return nil, fmt.Errorf("opening image %s: %w", file, err)
	}
	return m, nil
}

// deltaImage is an image at one end of a delta.
type deltaImage struct {
	*deltadir.Image
	at      locate.Location // of its index
	closers []func()
}

func (m *deltaImage) close() {
	if m.Image != nil {
		m.Image.Close()
	}
	for _, end := range m.closers {
		end()
	}
}

// openStored opens an image whose chunks are in a store, by default the one beside its index. If file is not nil, its
// bytes are used where they are right.
func (m *deltaImage) openStored(ctx context.Context, a access, x *blob.Index, where locate.Location, file io.ReaderAt) (err error) {
	if where.IsZero() {
		if where, err = m.at.DefaultStore(); err != nil {
			return err
		}
	}
	s := stores{access: a, groups: [][]locate.Location{{where}}}
	from, err := s.open(ctx, m.at, x, 0)
	if err != nil {
		return err
	}
	m.closers = append(m.closers, from.Close)
	m.Image, err = deltadir.OpenImage(ctx, x, deltadir.Source{File: file, Store: from, Remote: where.Remote()})
	if err != nil {
		m.close()
	}
	return err
}

// deltaDir is a directory of deltas that is open for writing.
type deltaDir struct {
	at     locate.Location
	bucket store.Bucket
}

// openDeltas opens the directory of the deltas of a store.
func openDeltas(a *access, where locate.Location, keep keepLast) (d deltaDir, err error) {
	if d.at, err = release.DeltaDir(where); err != nil {
		return d, usageError{err}
	}
	access, err := a.openAccess()
	if err != nil {
		return d, err
	}
	if d.bucket, err = access.OpenBucket(d.at); err != nil {
		return d, fmt.Errorf("opening %s: %w", d.at, usageIfUnsupported(err))
	}
	if keep.n > 0 {
		if err := deltadir.CheckRemovable(d.bucket); err != nil {
			store.Close(d.bucket)
			return d, hintError{usageError{err}, "leave --keep-last out, and remove old deltas on the server"}
		}
	}
	return d, nil
}

// publishDelta makes and publishes the delta between two images, and prints a line about it.
func (f *common) publishDelta(ctx context.Context, dir deltaDir, from, to *deltaImage) (r deltaResult, err error) {
	prepareHeap(from.Index.Size())
	defer debug.SetGCPercent(debug.SetGCPercent(garbagePercent)) // the encoder's tables are large and contain no pointers
	pair := fmt.Sprintf("from %s to %s", from.at, to.at)
	p := newProgress(f.progress, "making a delta "+pair, "", deltadir.LackingBytes(from.Index, to.Index))
	r = deltaResult{Old: from.at.String(), New: to.at.String()}
	o := deltadir.Options{Workers: f.jobs, Progress: func(done, _ int64) { p.show(done, "", nil) }}
	r.Result, err = deltadir.Publish(ctx, dir.bucket, from.Image, to.Image, o)
	p.end()
	r.Seconds = p.elapsed().Seconds()
	if err != nil {
		return r, fmt.Errorf("making a delta %s: %w", pair, err)
	}
	if r.Outcome == deltadir.Made || r.Outcome == deltadir.Held {
		r.Delta = dir.at.String() + "/" + release.DeltaName(to.Index.Digest(), from.Index.Digest())
	}
	if !f.json {
		r.print(p)
	}
	return r, nil
}

func (r deltaResult) print(p *progress) {
	encoded := fmt.Sprintf("%s for %s, which take %s in the store",
		plaintext.Size(r.FileBytes), plaintext.Count(int64(r.Chunks), "chunk"), plaintext.Size(r.ChunkBytes))
	switch r.Outcome {
	case deltadir.Made:
		logf("made a delta from %s to %s: %s, in %s", r.Old, r.New, encoded, plaintext.Duration(p.elapsed()))
	case deltadir.Held:
		logf("note: there is a delta from %s to %s already, which stays: %s", r.Old, r.New, encoded)
	case deltadir.None:
		logf("note: a delta from %s to %s would save nothing, and is not published", r.Old, r.New)
	case deltadir.Same:
		logf("note: %s and %s are the same image, and need no delta", r.Old, r.New)
	}
}
