package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/keep"
	"cairn/store/locate"
	"cairn/store/pack"
)

func newRepo() *cobra.Command {
	c := &cobra.Command{
		Use:   "repo",
		Short: "List and remove what is published, and collect garbage",
		Long: `repo acts on a repository: the indexes that were published, and the store that has their chunks. Each publishing
command writes a gc root for its index, into NAME.caroots beside the store NAME.castr. gc removes the chunks that no
gc root keeps.

STORE is a directory, or a location on S3 or an SFTP server. A web server cannot be listed: run repo where its files
are.`,
		Args: requireCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newRepoList(), newRepoAdopt(), newRepoRemove(), newRepoGC(), newRepoCheck())
	return c
}

// repoFlags holds the flags of commands on a repository.
type repoFlags struct {
	common
	access
	store locate.Location
}

// addFlags adds the flags, and the parsing of the first argument as the store.
func (f *repoFlags) addFlags(c *cobra.Command) {
	f.common.addFlags(c)
	f.access.addFlags(c)
	f.addPatience(c)
	var groups [][]locate.Location
	storeArgs(c, &groups, 1)
	addCheck(c, func([]string) (err error) {
		f.store, err = onlyStore("STORE", groups[0])
		return err
	})
	c.Flags().Lookup("jobs").Hidden = true
}

// openRecordsToRead opens the gc roots of the store, which may have none.
func (f *repoFlags) openRecordsToRead() (*gcroot.Dir, error) {
	at, err := release.RecordsDir(f.store)
	if err != nil {
		return nil, usageError{err}
	}
	r, err := f.access.openReader(at, 0)
	if errors.Is(err, store.ErrNotFound) {
		return nil, cmp.Or(f.checkStore(), f.explainUnmanaged(gcroot.ErrUnmanaged))
	}
	if err != nil {
		return nil, err
	}
	records, err := gcroot.OpenReader(r)
	return records, explainUnlisted(err)
}

// openRecordsToWrite opens the gc roots of the store for a command that changes them.
func (f *repoFlags) openRecordsToWrite() (*gcroot.Dir, error) {
	at, err := release.RecordsDir(f.store)
	if err != nil {
		return nil, usageError{err}
	}
	b, err := f.openBucket(at)
	if err != nil {
		return nil, err
	}
	records, err := gcroot.Open(b, gcroot.Options{OneMachine: !at.Remote(), Waiting: logWaiting})
	return records, explainUnlisted(err)
}

// explainUnlisted adds what to do to the error about a place that cannot be listed.
func explainUnlisted(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return hintError{usageError{err}, "run it on the server with the path of the store, or with its location on S3 or SFTP"}
	}
	return err
}

// openBucket opens a directory of the repository to write.
func (f *repoFlags) openBucket(at locate.Location) (store.Bucket, error) {
	a, err := f.openAccess()
	if err != nil {
		return nil, err
	}
	b, err := a.OpenBucket(at)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", at, usageIfUnsupported(err))
	}
	return b, nil
}

// checkStore returns an error if the store does not exist. Commands that would make its directory call it first.
func (f *repoFlags) checkStore() error {
	r, err := f.access.openReader(f.store, 0)
	if err == nil {
		store.Close(r)
	}
	return err
}

// indexes returns the indexes of the repository.
func (f *repoFlags) indexes(records *gcroot.Dir) *release.Indexes {
	return &release.Indexes{
		Access: f.releaseAccess(), Store: f.store, Records: records,
		Bucket: func(at locate.Location) (store.Bucket, string, error) {
			a, err := f.openAccess()
			if err != nil {
				return nil, "", err
			}
			return a.FileBucket(at)
		},
	}
}

// explainUnmanaged adds what to do to the error about a store that gc does not manage.
func (f *repoFlags) explainUnmanaged(err error) error {
	if !errors.Is(err, gcroot.ErrUnmanaged) {
		return err
	}
	return hintError{fmt.Errorf("%s: %w: its indexes may have no gc roots", f.store, gcroot.ErrUnmanaged),
		fmt.Sprintf("'cairn repo adopt %s INDEX...' with all indexes of the store writes their gc roots", f.store)}
}

func newRepoList() *cobra.Command {
	var f repoFlags
	c := &cobra.Command{
		Use:   "list STORE",
		Short: "List the indexes that were published into a store, and what each keeps there",
		Long: `list reads the gc roots of a store. For each published index it prints the time of its publication, the size of its
image, the bytes that the store holds of its chunks, and how many of these belong to no other index: removing the
index frees them after the grace. The oldest index comes first.`,
		Example: `  cairn repo list /srv/images/default.castr
  cairn repo list s3://images/default.castr --json`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error { return runRepoList(c.Context(), c.OutOrStdout(), f) },
	}
	f.addFlags(c)
	return c
}

// repoListResult is the output of repo list --json.
type repoListResult struct {
	Store   locate.Location `json:"store"`
	Managed bool            `json:"managed"` // by gc
	Retired int             `json:"retired"` // gc roots of removed indexes
	Items   []repoItem      `json:"items"`   // the oldest first
	Total   keep.Amount     `json:"total"`   // chunks of the store that have files of their own
	Packs   keep.Others     `json:"packs"`
	// Unreferenced chunks are in none of the indexes.
	Unreferenced keep.Amount `json:"unreferenced"`
}

type repoItem struct {
	Name      string    `json:"name"`
	Published time.Time `json:"published"`
	Index     string    `json:"index_digest"`
	keep.IndexStat
}

func runRepoList(ctx context.Context, stdout io.Writer, f repoFlags) error {
	records, err := f.openRecordsToRead()
	if err != nil {
		return err
	}
	defer records.Close()
	listing, items, err := readItems(ctx, records)
	if err != nil {
		return err
	}
	packs, err := f.listPacks(ctx)
	if err != nil {
		return err
	}
	report, err := f.stat(ctx, readRoots(ctx, records, items, packs), packs)
	if err != nil {
		return err
	}
	r := repoListResult{Store: f.store, Managed: listing.Managed, Items: []repoItem{}, Total: report.Amount, Unreferenced: report.Unreferenced,
		Packs: packs.all}
	for _, e := range listing.Roots {
		if !e.Retired.IsZero() {
			r.Retired++
		}
	}
	for i, item := range items {
		r.Items = append(r.Items, repoItem{item.Name, item.Published.UTC(), item.Index.String(), report.Indexes[i]})
	}
	if f.json {
		return writeJSON(stdout, r)
	}
	return printRepoList(stdout, r)
}

func printRepoList(w io.Writer, r repoListResult) error {
	rows := [][]string{{"index", "published", "image", "stored", "alone"}}
	for _, item := range r.Items {
		rows = append(rows, []string{item.Name, item.Published.Format(time.DateTime), plaintext.Size(item.ImageBytes),
			plaintext.Size(item.Stored.Bytes), plaintext.Size(item.Exclusive.Bytes)})
	}
	if err := plaintext.WriteTable(w, rows); err != nil {
		return err
	}
	logf("%s: %s in the store, %s of them in none of these indexes", plaintext.Count(int64(len(r.Items)), "index"),
		plaintext.Size(r.Total.Bytes), plaintext.Size(r.Unreferenced.Bytes))
	if r.Packs.Objects > 0 {
		logf("%s in %s beside the store", plaintext.Size(r.Packs.Bytes), plaintext.Count(r.Packs.Objects, "pack"))
	}
	if r.Retired > 0 {
		logf("%s of removed indexes, whose chunks stay for the grace of gc", plaintext.Count(int64(r.Retired), "gc root"))
	}
	if !r.Managed {
		logf("note: gc does not manage this store: it may have indexes that are not listed here (see 'cairn repo adopt')")
	}
	return nil
}

// stat counts the chunks of the store, and those of each index.
func (f *repoFlags) stat(ctx context.Context, indexes iter.Seq2[*blob.Index, error], packs *repoPacks) (keep.StatReport, error) {
	r, err := f.access.openReader(f.store, 0)
	if err != nil {
		return keep.StatReport{}, err
	}
	defer store.Close(r)
	defer debug.SetGCPercent(debug.SetGCPercent(garbagePercent)) // the tables of chunks are large and contain no pointers
	p := newProgress(f.progress, "counting "+f.store.String(), "", -1)
	defer p.end()
	return keep.Stat(ctx, r, keep.StatOptions{Indexes: indexes, Packed: packs.sizeOf, Workers: 32,
		Show: func(n int64) { p.show(0, plaintext.Count(n, "chunk"), n) }})
}

// readItems lists the records, and reads what is published.
func readItems(ctx context.Context, records *gcroot.Dir) (gcroot.Listing, []release.Item, error) {
	l, err := records.List(ctx)
	if err != nil {
		return l, nil, err
	}
	items, err := release.ReadItems(ctx, records, l)
	return l, items, err
}

// repoPacks are the packs beside a store, and the map of the index that was read last.
type repoPacks struct {
	there   map[pack.Pack]bool
	all     keep.Others
	current *pack.Map // nil for none
}

// sizeOf returns the stored size of a chunk of the current index, if it is in a pack that is there.
func (p *repoPacks) sizeOf(d blob.Digest) (stored int64, ok bool) {
	if p.current == nil {
		return 0, false
	}
	at, ok := p.current.Find(d)
	return at.Size, ok && p.there[at.Pack]
}

// listPacks lists the packs beside the store.
func (f *repoFlags) listPacks(ctx context.Context) (p *repoPacks, err error) {
	p = &repoPacks{}
	r, _, err := f.openBeside(f.store, release.PackDir, 0)
	if err != nil || r == nil {
		return p, err
	}
	defer store.Close(r)
	p.there, p.all, err = keep.ListPacks(ctx, r)
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	return p, err
}

// readRoots reads the index of each item from its newest gc root, and sets the current map of packs.
func readRoots(ctx context.Context, records *gcroot.Dir, items []release.Item, packs *repoPacks) iter.Seq2[*blob.Index, error] {
	return func(yield func(*blob.Index, error) bool) {
		for _, item := range items {
			r, err := records.Read(ctx, item.Roots[0], false)
			if err == nil {
				packs.current, err = keep.MapOf(r)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(r.Index, nil) {
				return
			}
		}
	}
}

type repoAdoptFlags struct {
	repoFlags
	indexes []locate.Location
}

func newRepoAdopt() *cobra.Command {
	var f repoAdoptFlags
	c := &cobra.Command{
		Use:   "adopt STORE INDEX...",
		Short: "Let gc manage a store that other programs filled, by naming all of its indexes",
		Long: `adopt writes a gc root for each INDEX, and declares that gc manages STORE from now on. It is for stores that casync,
desync or an older cairn filled. Name all indexes of the store: gc removes the chunks of any other one. Indexes that
have a gc root already may be left out.

gc cannot see when casync, desync or an older cairn publishes: it protects their chunks for its --grace only, and
they need 'cairn repo adopt' for each new index.`,
		Example: `  cairn repo adopt /srv/images/default.castr /srv/images/*.caibx`,
		Args:    checkArgs(cobra.MinimumNArgs(2)),
		RunE:    func(c *cobra.Command, _ []string) error { return runRepoAdopt(c.Context(), c.OutOrStdout(), f) },
	}
	f.addFlags(c)
	indexArgs(c, &f.indexes, 1)
	checkIndexes(c, 1)
	return c
}

// adoptionsOf reads the maps of packs beside the indexes. An index whose map cannot be read is not adopted, because gc
// would remove its packs.
func (f *repoAdoptFlags) adoptionsOf(ctx context.Context, indexes []*blob.Index) ([]release.Adoption, error) {
	adoptions := make([]release.Adoption, len(indexes))
	for i, at := range f.indexes {
		adoptions[i] = release.Adoption{Name: release.RecordName(f.store, at), Index: indexes[i]}
		file, err := release.MapOf(at, indexes[i].Digest())
		if err != nil {
			continue // nothing is beside a stream
		}
		m, err := release.OpenMap(ctx, f.releaseAccess(), file, indexes[i])
		if release.IsAbsent(err) {
			continue
		}
		if err == nil {
			adoptions[i].Map, err = m.Encode()
		}
		if err != nil {
			return nil, fmt.Errorf("adopting %s: %w", at, err)
		}
	}
	return adoptions, nil
}

// repoAdoptResult is the output of repo adopt --json.
type repoAdoptResult struct {
	Store   locate.Location `json:"store"`
	Indexes int             `json:"indexes"`
	Adopted int             `json:"adopted"` // of them had no gc root
}

func runRepoAdopt(ctx context.Context, stdout io.Writer, f repoAdoptFlags) error {
	indexes, err := readAnyIndexes(ctx, f.indexes, f.access)
	if err != nil {
		return err
	}
	if err := f.checkStore(); err != nil {
		return err
	}
	to, err := f.openBucket(f.store)
	if err != nil {
		return err
	}
	defer store.Close(to)
	records, err := f.openRecordsToWrite()
	if err != nil {
		return err
	}
	defer records.Close()
	adoptions, err := f.adoptionsOf(ctx, indexes)
	if err != nil {
		return err
	}
	packs, _, err := f.openBeside(f.store, release.PackDir, 0)
	if err != nil {
		return err
	}
	if packs != nil {
		defer store.Close(packs)
	}
	r := repoAdoptResult{Store: f.store, Indexes: len(indexes)}
	if r.Adopted, err = release.Adopt(ctx, records, to, packs, adoptions); err != nil {
		return fmt.Errorf("adopting indexes of %s: %w", f.store, err)
	}
	if f.json {
		return writeJSON(stdout, r)
	}
	logf("gc manages %s: %s, %d of them adopted now", f.store, plaintext.Count(int64(r.Indexes), "named index"), r.Adopted)
	return nil
}

// readAnyIndexes reads indexes of images or of directory trees. gc keeps the chunks of both.
func readAnyIndexes(ctx context.Context, locations []locate.Location, a access) (indexes []*blob.Index, err error) {
	for _, at := range locations {
		x, err := readAnyIndex(ctx, at, a)
		if err != nil {
			return nil, err
		}
		indexes = append(indexes, x)
	}
	return indexes, nil
}

type repoRemoveFlags struct {
	repoFlags
	wait time.Duration
}

// addWait adds the flag for how long a command waits for publishers.
func addWait(c *cobra.Command, wait *time.Duration) {
	c.Flags().DurationVar(wait, "wait", 15*time.Minute, "how long to wait for publishers at work")
	addCheck(c, func([]string) error {
		if *wait < 0 {
			return fmt.Errorf("--wait %v: want 0 or more", *wait)
		}
		return nil
	})
}

// explainBusy adds what to do to the error about publishers at work.
func explainBusy(err error) error {
	if errors.Is(err, gcroot.ErrBusy) {
		return hintError{err, "run it again when they have ended, or with a longer --wait"}
	}
	return err
}

func newRepoRemove() *cobra.Command {
	var f repoRemoveFlags
	c := &cobra.Command{
		Use:   "remove STORE NAME...",
		Short: "Remove published indexes; gc removes their chunks after the grace",
		Long: `remove removes indexes and their boot profiles, and retires their gc roots. NAME is a name of an index as 'cairn repo
list' prints it. Clients that are reading the image go on: gc removes the chunks that no other index has, and the
deltas to the image, when its --grace has passed. remove waits until no publisher is at work.

A name stands for every index that was published under it. If the index there was replaced by one that is not listed,
the file stays.`,
		Example: `  cairn repo remove /srv/images/default.castr v1.caibx`,
		Args:    checkArgs(cobra.MinimumNArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return runRepoRemove(c.Context(), c.OutOrStdout(), f, args[1:])
		},
	}
	f.addFlags(c)
	addWait(c, &f.wait)
	return c
}

// repoRemoveResult is the output of repo remove --json.
type repoRemoveResult struct {
	Store   locate.Location `json:"store"`
	Removed []string        `json:"removed"`
}

func runRepoRemove(ctx context.Context, stdout io.Writer, f repoRemoveFlags, names []string) error {
	if err := f.checkStore(); err != nil {
		return err
	}
	records, err := f.openRecordsToWrite()
	if err != nil {
		return err
	}
	defer records.Close()
	shelf := f.indexes(records)
	shelf.Elsewhere = true // the names are the user's choice
	items, orphans, err := shelf.Items(ctx)
	if err != nil {
		return err
	}
	items = append(items, orphans...)
	for _, name := range names {
		if !slices.ContainsFunc(items, func(i release.Item) bool { return i.Name == name }) {
			return hintError{fmt.Errorf("%s has no published index %q: %w", f.store, name, store.ErrNotFound),
				fmt.Sprintf("'cairn repo list %s' lists the names", f.store)}
		}
	}
	r := repoRemoveResult{Store: f.store, Removed: []string{}}
	items = slices.DeleteFunc(items, func(i release.Item) bool { return !slices.Contains(names, i.Name) })
	removed, err := shelf.Remove(ctx, items, f.wait)
	for _, item := range removed {
		r.Removed = append(r.Removed, item.Name)
	}
	if err != nil {
		return explainBusy(fmt.Errorf("removing indexes of %s: %w", f.store, usageIfUnsupported(err)))
	}
	if len(r.Removed) == 0 {
		return refusedError{fmt.Sprintf("%s: %s was published again in the meantime, and stays", f.store, strings.Join(names, ", ")), ""}
	}
	if f.json {
		return writeJSON(stdout, r)
	}
	logf("removed %s; 'cairn repo gc %s' removes their chunks after the grace", strings.Join(r.Removed, ", "), f.store)
	return nil
}
