package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/keep"
	"cairn/store/locate"
	"cairn/store/pack"
)

const (
	defaultGrace = 24 * time.Hour
	// mostRemoved is the part of a store that gc removes without --yes.
	mostRemoved = 0.2
)

type repoGCFlags struct {
	repoFlags
	retention release.Retention
	releases  []locate.Location // whose indexes stay
	grace     time.Duration
	wait      time.Duration
	dryRun    bool
	yes       bool
	repack    bool
}

func newRepoGC() *cobra.Command {
	var f repoGCFlags
	c := &cobra.Command{
		Use:   "gc STORE",
		Short: "Remove old indexes, and the chunks that no index needs",
		Long: `gc removes the chunks of a store that no published index has, the packs that no map of one names, and the deltas to
images that are not published. With
--keep-last or --keep-within it first removes the indexes that do not stay, as 'cairn repo remove' does. Then it also
drops indexes beside the store that were replaced by another one under their name, or are gone from there.

What was removed stays readable for the grace: chunks of a removed index, and all chunks that are younger, go only
when --grace has passed, by the clock of the store. Choose it longer than the longest update, and than a server may
serve a removed index.

A pack stays as long as a map names one of its chunks. --repack first moves the chunks of packs that are mostly garbage
into new packs, and replaces the maps. The old packs stay for the grace.

gc works beside publishers. While it removes chunks, new publishers wait for at most about a minute at a time, and
before that, gc waits for those at work. casync, desync and versions of cairn without 'repo' know nothing of gc: for
what they publish, only the grace protects new chunks, and nothing protects old chunks that they use again. Do not
run gc beside them.

gc refuses (exit status 5) a store with indexes that it may not know (see 'cairn repo adopt'), and without --yes a run
that would remove more than 20 % of the store. A gc root that cannot be read ends it before it removes anything.
After an interruption, the next gc does the rest.`,
		Example: `  cairn repo gc /srv/images/default.castr --dry-run
  cairn repo gc /srv/images/default.castr --keep-last 5 --keep-release /srv/images/stable.channel
  cairn repo gc s3://images/default.castr --keep-last 'root-*=5' --keep-last 'boot-*=5' --keep-within 720h`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error { return runRepoGC(c.Context(), c.OutOrStdout(), f) },
	}
	f.addFlags(c)
	flags := c.Flags()
	flags.Var(funcFlag{"[pattern=]n", "", func(text string) error {
		rule, err := parseKeepLast(text)
		f.retention.Last = append(f.retention.Last, rule)
		return err
	}}, "keep-last", "keep the last `[PATTERN=]N` published indexes, or those whose names match; repeatable")
	flags.DurationVar(&f.retention.Within, "keep-within", 0, "keep the indexes that were published in this `time`, such as 720h")
	flags.StringArrayVar(&f.retention.Names, "keep", nil, "keep the indexes whose names match this `pattern`; repeatable")
	flags.Var(locationsFlag(&f.releases), "keep-release", "keep the indexes that this release lists, or the release of this channel; repeatable")
	flags.DurationVar(&f.grace, "grace", defaultGrace, "`time` for which removed indexes and new chunks stay readable")
	addWait(c, &f.wait)
	flags.BoolVar(&f.dryRun, "dry-run", false, "remove nothing, and print what would be removed")
	flags.BoolVar(&f.repack, "repack", false, "move the chunks of packs that are mostly garbage into new packs")
	flags.BoolVar(&f.yes, "yes", false, "remove more than 20 % of the store")
	addCheck(c, func([]string) error {
		switch {
		case f.grace < 0:
			return fmt.Errorf("--grace %v: want 0 or more", f.grace)
		case f.retention.Within < 0:
			return fmt.Errorf("--keep-within %v: want more than 0", f.retention.Within)
		case len(f.retention.Names)+len(f.releases) > 0 && f.retention.IsZero():
			return errors.New("--keep and --keep-release need --keep-last or --keep-within: without them, gc removes no index")
		}
		return f.retention.Check()
	})
	return c
}

func parseKeepLast(text string) (rule release.KeepLast, err error) {
	count := text
	if at := strings.LastIndexByte(text, '='); at >= 0 {
		rule.Pattern, count = text[:at], text[at+1:]
		if rule.Pattern == "" {
			return rule, errors.New("the pattern is empty")
		}
	}
	if rule.Count, err = strconv.Atoi(count); err != nil || rule.Count < 1 {
		return rule, fmt.Errorf("%q is not a number of indexes, of at least 1", count)
	}
	return rule, nil
}

// repoGCResult is the output of repo gc --json.
type repoGCResult struct {
	Store  locate.Location `json:"store"`
	DryRun bool            `json:"dry_run"`
	// Indexes are the names of the indexes that are removed.
	Indexes  []string             `json:"removed_indexes"`
	Repacked release.RepackReport `json:"repacked,omitzero"`
	keep.CollectReport
	Seconds float64 `json:"seconds"`
}

func runRepoGC(ctx context.Context, stdout io.Writer, f repoGCFlags) error {
	if err := f.checkStore(); err != nil {
		return err
	}
	if read, err := f.openRecordsToRead(); err != nil { // so that a refused gc leaves no new directory
		return err
	} else if managed, err := read.IsManaged(ctx); err != nil || !managed {
		read.Close()
		if err == nil {
			err = gcroot.ErrUnmanaged
		}
		return f.explainUnmanaged(err)
	} else {
		read.Close()
	}
	records, err := f.openRecordsToWrite()
	if err != nil {
		return err
	}
	defer records.Close()
	chunks, err := f.openBucket(f.store)
	if err != nil {
		return err
	}
	defer store.Close(chunks)
	deltas, err := f.openToCollect(release.DeltaDir)
	if err != nil {
		return err
	}
	packs, err := f.openToCollect(release.PackDir)
	if err != nil {
		return err
	}
	for _, b := range []store.Bucket{deltas, packs} {
		if b != nil {
			defer store.Close(b)
		}
	}
	if err := f.keepReleases(ctx); err != nil {
		return err
	}
	return f.collect(ctx, stdout, records, chunks, deltas, packs)
}

// keepReleases adds the indexes of the releases to those that stay.
func (f *repoGCFlags) keepReleases(ctx context.Context) error {
	for _, at := range f.releases {
		indexes, err := release.IndexesOf(ctx, f.releaseAccess(), at)
		if err != nil {
			return fmt.Errorf("--keep-release: %w (nothing is removed)", err)
		}
		for _, index := range indexes {
			f.retention.Listed = append(f.retention.Listed, release.RecordName(f.store, index))
		}
	}
	return nil
}

// openToCollect opens a directory beside the store, or returns nil if there is none.
func (f *repoGCFlags) openToCollect(dirOf func(store locate.Location) (locate.Location, error)) (store.Bucket, error) {
	r, at, err := f.openBeside(f.store, dirOf, 0)
	if err != nil || r == nil {
		return nil, err
	}
	store.Close(r)
	return f.openBucket(at)
}

func (f *repoGCFlags) collect(ctx context.Context, stdout io.Writer, records *gcroot.Dir, chunks, deltas, packs store.Bucket) error {
	shelf := f.indexes(records)
	items, dropped, err := f.findDropped(ctx, shelf, records)
	if err != nil {
		return f.explainRefusal(err)
	}
	r := repoGCResult{Store: f.store, DryRun: f.dryRun, Indexes: []string{}}
	o := keep.CollectOptions{Grace: f.grace, Deltas: deltas, Packs: packs, Workers: 4, Patience: f.wait, DryRun: f.dryRun, Approve: f.approve}
	for _, item := range dropped {
		o.Dropped = append(o.Dropped, item.Roots...)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(garbagePercent)) // the tables of chunks are large and contain no pointers
	p := newProgress(f.progress, "collecting garbage in "+f.store.String(), "", -1)
	o.Show = func(step string, done, _ int64) { p.show(0, fmt.Sprintf("%s: %d", step, done), nil) }
	if len(dropped) > 0 && !f.dryRun { // all that would go is known before the first index goes
		o.DryRun = true
		if r.CollectReport, err = keep.Collect(ctx, chunks, records, o); err == nil {
			err = f.approve(r.CollectReport)
		}
		if err == nil {
			dropped, err = shelf.Remove(ctx, dropped, f.wait)
		}
		o.DryRun, o.Dropped, o.Approve = false, nil, nil
	}
	if err == nil && !f.dryRun {
		err = shelf.RemoveDuplicates(ctx, items)
	}
	if err == nil && f.repack && packs != nil {
		r.Repacked, err = release.Repack(ctx, shelf, release.RepackOptions{Chunks: chunks, Packs: packs, Size: pack.DefaultSize, DryRun: f.dryRun})
	}
	if err == nil {
		r.CollectReport, err = keep.Collect(ctx, chunks, records, o)
	}
	p.end()
	if err != nil {
		return f.explainRefusal(err)
	}
	for _, item := range dropped {
		r.Indexes = append(r.Indexes, item.Name)
	}
	r.Seconds = p.elapsed().Seconds()
	if f.json {
		return writeJSON(stdout, r)
	}
	r.print(f)
	return nil
}

// findDropped returns all items, and those that the retention does not keep. gc roots whose index is absent or replaced
// are not counted by the rules, and not kept.
func (f *repoGCFlags) findDropped(ctx context.Context, shelf release.Shelf, records *gcroot.Dir) (all, dropped []release.Item, err error) {
	published, orphans, err := shelf.Items(ctx)
	all = slices.Concat(published, orphans)
	if err != nil || f.retention.IsZero() {
		return all, nil, err
	}
	now, err := records.Now(ctx)
	return all, slices.Concat(orphans, f.retention.Dropped(published, now)), err
}

// approve returns an error about a run that would remove much of the store.
func (f *repoGCFlags) approve(r keep.CollectReport) error {
	if f.yes || r.Share() <= mostRemoved {
		return nil
	}
	return refusedError{fmt.Sprintf("it would remove %s of %s, which is more than 20 %%; nothing was removed",
		plaintext.Size(r.RemovedBytes()), plaintext.Size(r.Bytes())), "look at it with --dry-run, and give --yes"}
}

// explainRefusal adds what to do to errors about a store that gc does not manage, and about publishers at work.
func (f *repoGCFlags) explainRefusal(err error) error {
	if errors.Is(err, gcroot.ErrUnmanaged) {
		return f.explainUnmanaged(err)
	}
	return explainBusy(err)
}

func (r *repoGCResult) print(f *repoGCFlags) {
	removed, did := "removed", ""
	if f.dryRun {
		removed, did = "would remove", " (dry run: nothing was removed)"
	}
	if len(r.Indexes) > 0 {
		logf("%s %s: %s", removed, plaintext.Count(int64(len(r.Indexes)), "index"), strings.Join(r.Indexes, ", "))
	}
	logf("%s %s (%s) of %s%s", removed, plaintext.Count(r.Removed.Chunks, "chunk"), plaintext.Size(r.Removed.Bytes), f.store, did)
	if n := r.Repacked; n.Packs > 0 {
		logf("%s the chunks of %s (%s, and %s of garbage) into %s", map[bool]string{false: "moved", true: "would move"}[f.dryRun],
			plaintext.Count(int64(n.Packs), "pack"), plaintext.Size(n.Bytes), plaintext.Size(n.Garbage), plaintext.Count(int64(n.Written), "new pack"))
	}
	if n := r.Packs.Removed; n.Objects > 0 {
		logf("%s %s (%s)", removed, plaintext.Count(n.Objects, "pack"), plaintext.Size(n.Bytes))
	}
	if r.Deltas.Objects > 0 {
		logf("%s %s of deltas (%s)", removed, plaintext.Count(r.Deltas.Objects, "file"), plaintext.Size(r.Deltas.Bytes))
	}
	logf("kept %s (%s) of %s", plaintext.Count(r.Kept.Chunks, "chunk"), plaintext.Size(r.Kept.Bytes), plaintext.Count(int64(r.Roots-r.Retired), "gc root"))
	if n := r.Packs.Kept; n.Objects > 0 {
		logf("kept %s (%s)", plaintext.Count(n.Objects, "pack"), plaintext.Size(n.Bytes))
	}
	if n := r.Packs.Fading.Objects + r.Packs.Young.Objects; n > 0 {
		logf("kept %s (%s) of removed indexes or of none, until %v have passed", plaintext.Count(n, "pack"),
			plaintext.Size(r.Packs.Fading.Bytes+r.Packs.Young.Bytes), f.grace)
	}
	if r.Fading.Chunks > 0 {
		logf("kept %s (%s) of removed indexes, until %v have passed since their removal",
			plaintext.Count(r.Fading.Chunks, "chunk"), plaintext.Size(r.Fading.Bytes), f.grace)
	}
	if r.Young.Chunks > 0 {
		logf("kept %s (%s) of no index, which are younger than %v", plaintext.Count(r.Young.Chunks, "chunk"), plaintext.Size(r.Young.Bytes), f.grace)
	}
	logOtherObjects("called like chunks, in wrong directories", r.Misnamed)
	logOtherObjects("no chunks", r.Foreign)
}
