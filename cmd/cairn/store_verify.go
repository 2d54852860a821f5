package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/delta/deltadir"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/locate"
)

type storeVerifyFlags struct {
	common
	wholeStores
	stores     [][]locate.Location // one group
	indexes    []locate.Location
	state      string
	stateGiven bool // print a warning when state cannot be used
	restart    bool
	repair     [][]locate.Location
	remove     bool
}

func newStoreVerify() *cobra.Command {
	var f storeVerifyFlags
	c := &cobra.Command{
		Use:   "verify LOCATION [INDEX...]",
		Short: "Verify every chunk of a store; repair it from other stores",
		Long: `verify reads and hashes every chunk of a store, or only the chunks of the indexes. It lists damaged, empty and
misnamed chunks on stdout, and prints a note about other objects.

It also decodes the deltas of the store, or those to the images of the indexes. --repair or --remove-damaged removes
damaged ones, of which the store has the chunks.

--repair replaces damaged, empty and missing chunks by those of another store, after it verified them.
--remove-damaged removes damaged and empty chunks that could not be repaired. Readers cannot use a damaged chunk, and
make does not store it again as long as it is there. verify never removes anything else. The store lacks the removed
chunks until the next make or --repair.

Exit status 0 says that the store is intact, perhaps after repairs, 3 that chunks are damaged or missing now, and 6
that all damaged chunks were removed.

An interrupted verify continues where it stopped. It keeps this place in --state, and removes it at the end. It starts
again with --restart, and for another store, other indexes, or another --repair, --remove-damaged or --digest. It does
not see chunks that were written before that place since.`,
		Example: `  cairn store verify /srv/images/default.castr
  cairn store verify /srv/images/default.castr --repair https://mirror.example.com/default.castr
  cairn store verify s3://images/default.castr v2.caibx`,
		Args: checkArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			f.stateGiven = c.Flags().Changed("state")
			return forEachStore(c.Context(), f.stores[0], func(at locate.Location) error {
				return runStoreVerify(c.Context(), c.OutOrStdout(), f, at)
			})
		},
	}
	f.common.addFlags(c)
	f.wholeStores.addFlags(c)
	storeArgs(c, &f.stores, 1)
	indexArgs(c, &f.indexes, 1)
	flags := c.Flags()
	flags.StringVar(&f.state, "state", defaultState, "`directory` that remembers the place of an interrupted run; \"\" for none")
	flags.BoolVar(&f.restart, "restart", false, "start at the beginning, wherever an earlier run was interrupted")
	flags.Var(groupsFlag(&f.repair), "repair", "`location` of a store to repair from; repeatable, asked in order")
	flags.BoolVar(&f.remove, "remove-damaged", false, "remove damaged and empty chunks that are not repaired")
	checkIndexes(c, 1)
	return c
}

// storeVerifyResult is the output of store verify --json.
type storeVerifyResult struct {
	Store locate.Location `json:"store"`
	keep.VerifyReport
	Packs    keep.Others           `json:"packs,omitzero"`
	BadPacks int64                 `json:"damaged_packs,omitempty"`
	Deltas   deltadir.VerifyReport `json:"deltas,omitzero"`
	Findings findings              `json:"findings"`
	Seconds  float64               `json:"seconds"` // of this run
}

func runStoreVerify(ctx context.Context, stdout io.Writer, f storeVerifyFlags, at locate.Location) error {
	indexes, err := readIndexes(ctx, f.indexes, f.access)
	if err != nil {
		return err
	}
	reader, err := f.openReader(at)
	if err != nil {
		return err
	}
	o := keep.VerifyOptions{Algorithm: f.digest, Indexes: indexes, Workers: f.workers(at, f.jobs), Remove: f.remove}
	if err := f.openRepair(at, &o); err != nil {
		return err
	}
	checkpoint := f.newCheckpoint(at, o)
	if f.restart {
		checkpoint.Remove()
	}
	r := storeVerifyResult{Store: at, Findings: findings{}}
	if reader, err = f.withPacks(ctx, at, reader, indexes); err != nil {
		return err
	}
	err = f.verifyChunks(ctx, stdout, reader, o, checkpoint, &r)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return usageError{err}
	case err != nil:
		return fmt.Errorf("verifying %s: %w", at, err)
	}
	if err := f.verifyAllPacks(ctx, stdout, indexes, &r); err != nil {
		return fmt.Errorf("verifying the packs of %s: %w", at, err)
	}
	if err := f.verifyDeltas(ctx, stdout, reader, indexes, &r); err != nil {
		return fmt.Errorf("verifying the deltas of %s: %w", at, err)
	}
	checkpoint.Remove()
	if f.json {
		return errors.Join(writeJSON(stdout, r), r.failure())
	}
	logOtherObjects("no chunks", r.Foreign)
	logf("verified %s (%s stored) in %s: %d damaged, %d empty, %d missing, %d repaired, %d removed",
		plaintext.Count(r.Chunks, "chunk"), plaintext.Size(r.Bytes), r.Store, r.Damaged, r.Empty, r.Missing, r.Repaired, r.Removed)
	if r.Packs.Objects > 0 {
		logf("verified %s (%s): %d damaged", plaintext.Count(r.Packs.Objects, "pack"), plaintext.Size(r.Packs.Bytes), r.BadPacks)
	}
	r.logDeltas()
	return r.failure()
}

// withPacks returns a reader that also has the chunks of the indexes that are in packs.
func (f *storeVerifyFlags) withPacks(ctx context.Context, at locate.Location, reader store.Reader, indexes []*blob.Index) (store.Reader, error) {
	find, err := f.findPacked(ctx, f.indexes, indexes)
	if find == nil || err != nil {
		return reader, err
	}
	view, err := f.viewPacks(at, indexes[0].Algorithm(), find, reader)
	if view == nil {
		return reader, err
	}
	return view, err
}

// verifyAllPacks verifies the packs beside the store, if no indexes are named, and adds to the result.
func (f *storeVerifyFlags) verifyAllPacks(ctx context.Context, stdout io.Writer, indexes []*blob.Index, r *storeVerifyResult) (err error) {
	if len(indexes) > 0 {
		return nil // their chunks were read from packs
	}
	r.Packs, err = f.verifyPacks(ctx, r.Store, func(name string, err error) {
		r.BadPacks++
		found := keep.Finding{Kind: keep.Damaged, Name: name, Why: err.Error()}
		r.Findings.add(found)
		if !f.json {
			printFinding(stdout, found)
		}
	})
	return err
}

// verifyDeltas verifies the deltas beside the store, and adds to the result.
func (f *storeVerifyFlags) verifyDeltas(
	ctx context.Context, stdout io.Writer, chunks store.Reader, indexes []*blob.Index, r *storeVerifyResult,
) error {
	deltas, dir, err := f.openDeltas(r.Store)
	if err != nil || deltas == nil {
		return err
	}
	defer store.Close(deltas)
	o := deltadir.VerifyOptions{
		Indexes: indexes, Workers: f.jobs, Remote: r.Store.Remote(),
		Chunks: func(a blob.Algorithm) store.Getter { return store.NewChunksAtOnce(chunks, a, f.fetches) },
		Found: func(d deltadir.Defect) {
			found := keep.Finding{Kind: keep.Damaged, Name: dir.String() + "/" + d.Name, Why: d.Err.Error()}
			if d.Removed {
				found.Fate = keep.Removed
			}
			r.Findings.add(found)
			if !f.json {
				printFinding(stdout, found)
			}
		},
	}
	if f.remove || len(f.repair) > 0 {
		b, err := f.openBucket(dir, 0)
		if err != nil {
			return err
		}
		if deltadir.CheckRemovable(b) == nil {
			o.Bucket = b
		}
	}
	p := newProgress(f.progress, "verifying the deltas of "+r.Store.String(), "", -1)
	o.Show = func(r deltadir.VerifyReport) { p.show(r.Bytes, plaintext.Count(r.Deltas, "delta"), r) }
	r.Deltas, err = deltadir.Verify(ctx, deltas, o)
	p.end()
	r.Seconds += p.elapsed().Seconds()
	return noteUnreadable(dir, err)
}

// logDeltas prints what was verified of the deltas, if there are any.
func (r storeVerifyResult) logDeltas() {
	d := r.Deltas
	if d == (deltadir.VerifyReport{}) {
		return
	}
	logf("verified %s (%s): %d damaged, %d removed", plaintext.Count(d.Deltas, "delta"), plaintext.Size(d.Bytes), d.Damaged, d.Removed)
	if d.Unchecked > 0 {
		logf("note: %s not decoded, as an index or chunks of their images are missing", plaintext.Count(d.Unchecked, "delta"))
	}
	if d.Unlisted > 0 {
		logf("note: %s on no list, and not used", plaintext.Count(d.Unlisted, "delta"))
	}
}

// openRepair opens the stores to repair from, and the verified store to write if it may be changed.
func (f *storeVerifyFlags) openRepair(at locate.Location, o *keep.VerifyOptions) error {
	for _, group := range f.repair {
		readers, err := f.openReaders(group)
		if err != nil {
			return err
		}
		o.Repair = append(o.Repair, readers...)
	}
	if !f.remove && len(f.repair) == 0 {
		return nil
	}
	b, err := f.openBucket(at, 0) // openReader found the store
	o.Bucket = b
	return err
}

// newCheckpoint returns the checkpoint of a verify with these options.
func (f *storeVerifyFlags) newCheckpoint(at locate.Location, o keep.VerifyOptions) keep.Checkpoint {
	var stores []string
	for _, l := range append([]locate.Location{at}, slices.Concat(f.repair...)...) {
		stores = append(stores, fmt.Sprintf("%x", l.Sum())) // a location may contain a password
	}
	return keep.NewCheckpoint(f.state, o, stores...)
}

// verifyChunks verifies the chunks from the checkpoint on, and fills in the result.
func (f *storeVerifyFlags) verifyChunks(
	ctx context.Context, stdout io.Writer, reader store.Reader, o keep.VerifyOptions, checkpoint keep.Checkpoint, r *storeVerifyResult,
) (err error) {
	o.Found = func(found keep.Finding) {
		r.Findings.add(found)
		if !f.json {
			printFinding(stdout, found)
		}
	}
	if o.After = checkpoint.Load(); o.After != nil {
		logf("going on behind %s, as an earlier run left it: %s", o.After.Digest, plaintext.Count(o.After.Report.Chunks, "verified chunk"))
	}
	warn := f.stateGiven
	o.Done = func(m keep.Mark) error {
		if err := checkpoint.Save(m); err != nil && warn {
			logf("warning: cannot remember how far the store is verified: %v", err)
			warn = false
		}
		return nil
	}
	p := newProgress(f.progress, "verifying "+r.Store.String(), "", -1)
	o.Show = func(r keep.VerifyReport) { p.show(r.Bytes, plaintext.Count(r.Chunks, "chunk"), r) }
	r.VerifyReport, err = keep.Verify(ctx, reader, o)
	p.end()
	r.Seconds = p.elapsed().Seconds()
	return err
}

func printFinding(w io.Writer, f keep.Finding) {
	line := fmt.Sprintf("%-8s  %s", f.Kind, f.Name)
	if f.Fate != keep.Left {
		line += "  " + string(f.Fate)
	}
	printLine(w, "%s", line)
}

// failure returns the error about a store that lacks chunks after the run.
func (r storeVerifyResult) failure() error {
	switch {
	case r.Bad() > r.Removed:
		err := damagedError{fmt.Sprintf("%s is not whole: %s damaged, empty or missing", r.Store, plaintext.Count(r.Bad()-r.Removed, "chunk"))}
		return hintError{err, "--repair STORE replaces them by the chunks of another store; --remove-damaged lets make store them again"}
	case r.Unknown > 0:
		return hintError{fmt.Errorf("%s in %s compressed in a way that cannot be read", plaintext.Count(r.Unknown, "chunk"), r.Store), "name the indexes that they belong to"}
	case r.BadPacks > 0:
		err := damagedError{fmt.Sprintf("%s of %s damaged", plaintext.Count(r.BadPacks, "pack"), r.Store)}
		return hintError{err, "'cairn store copy OTHER STORE INDEX... --layout packs' packs the chunks of another store, when the damaged packs are removed"}
	case r.Deltas.Damaged > r.Deltas.Removed:
		err := damagedError{fmt.Sprintf("%s of %s damaged", plaintext.Count(r.Deltas.Damaged-r.Deltas.Removed, "delta"), r.Store)}
		return hintError{err, "--remove-damaged removes them, and 'cairn delta' makes them again"}
	case r.Removed > 0:
		return mendedError{fmt.Sprintf("%s was mended: damaged chunks were removed, and it lacks %s", r.Store, plaintext.Count(r.Removed, "chunk"))}
	case r.Deltas.Removed > 0:
		err := mendedError{fmt.Sprintf("%s was mended: %s removed", r.Store, plaintext.Count(r.Deltas.Removed, "damaged delta"))}
		return hintError{err, "'cairn delta' makes them again"}
	}
	return nil
}
