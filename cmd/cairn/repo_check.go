package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/keep"
	"cairn/store/locate"
	"cairn/store/pack"
)

func newRepoCheck() *cobra.Command {
	var f repoFlags
	c := &cobra.Command{
		Use:   "check STORE",
		Short: "Check the gc roots of a store, and that everything published is complete",
		Long: `check reads every gc root of a store, looks for its index, its boot profile, and each of its chunks, and counts
garbage. It reads no chunk: see 'cairn store verify'. It prints each defect on stdout.

Exit status 0 says that everything published is complete, 3 that a gc root, an index or a profile is damaged, and 4
that chunks are missing. Notes are about what a later run mends or removes.`,
		Example: `  cairn repo check /srv/images/default.castr`,
		Args:    checkArgs(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, _ []string) error { return runRepoCheck(c.Context(), c.OutOrStdout(), f) },
	}
	f.addFlags(c)
	return c
}

// repoCheckResult is the output of repo check --json.
type repoCheckResult struct {
	Store    locate.Location `json:"store"`
	Managed  bool            `json:"managed"`
	Indexes  int             `json:"indexes"`
	Findings []repoFinding   `json:"findings"`
	Notes    []repoFinding   `json:"notes"`
	Total    keep.Amount     `json:"total"`
	Garbage  keep.Amount     `json:"unreferenced"` // chunks in no gc root
	Working  int             `json:"announcements"`
	headless []string        // gc roots whose heads cannot be read
}

// repoFinding is a defect, or what a later run mends.
type repoFinding struct {
	Name string `json:"name"`
	Why  string `json:"why"`
	// missing says that the defect is the absence of chunks.
	missing bool
}

func runRepoCheck(ctx context.Context, stdout io.Writer, f repoFlags) error {
	records, err := f.openRecordsToRead()
	if err != nil {
		return err
	}
	defer records.Close()
	l, err := records.List(ctx)
	if err != nil {
		return err
	}
	r := repoCheckResult{Store: f.store, Managed: l.Managed, Findings: []repoFinding{}, Notes: []repoFinding{}, Working: l.Leases + l.Turns}
	var checked []checkedRoot
	packs, err := f.listPacks(ctx)
	if err != nil {
		return err
	}
	report, err := f.stat(ctx, r.checkRoots(ctx, records, l, &checked, packs), packs)
	if err != nil {
		return err
	}
	r.findIncomplete(checked, report.Indexes)
	r.Total, r.Garbage = report.Amount, report.Unreferenced
	if err := f.checkIndexes(ctx, records, l, &r); err != nil {
		return err
	}
	for _, name := range l.Others {
		r.note(name, "is no gc record, and is left alone")
	}
	if f.json {
		return errors.Join(writeJSON(stdout, r), r.failure())
	}
	r.print(stdout)
	return r.failure()
}

func (r *repoCheckResult) note(name, why string) {
	r.Notes = append(r.Notes, repoFinding{Name: name, Why: why})
}

// checkedRoot is a gc root that was read.
type checkedRoot struct {
	name    string // of the index
	index   blob.Digest
	retired bool
}

// findIncomplete finds the indexes whose chunks are missing. An index that was published several times has as many gc
// roots, and is found once.
func (r *repoCheckResult) findIncomplete(checked []checkedRoot, stats []keep.IndexStat) {
	found := map[checkedRoot]bool{}
	for i, root := range checked {
		missing := stats[i].Missing
		switch {
		case missing == 0 || found[root]:
			continue
		case root.retired:
			r.note(root.name, fmt.Sprintf("was removed, and %s of it are gone", plaintext.Count(missing, "chunk")))
		default:
			r.Findings = append(r.Findings, repoFinding{root.name, fmt.Sprintf("%s missing from the store", plaintext.Count(missing, "chunk")), true})
		}
		found[root] = true
	}
}

// checkRoots returns the indexes of the gc roots that can be read, which it appends to checked. Damaged ones are
// findings.
func (r *repoCheckResult) checkRoots(
	ctx context.Context, records *gcroot.Dir, l gcroot.Listing, checked *[]checkedRoot, packs *repoPacks,
) iter.Seq2[*blob.Index, error] {
	return func(yield func(*blob.Index, error) bool) {
		for _, e := range l.Roots {
			root, err := records.Read(ctx, e, false)
			if err == nil {
				packs.current, err = keep.MapOf(root)
			}
			switch {
			case errors.Is(err, gcroot.ErrInvalid):
				found := repoFinding{Name: e.Name, Why: err.Error()}
				if head, err := records.Read(ctx, e, true); err == nil {
					found.Name = head.Name
				} else {
					r.headless = append(r.headless, e.Name)
				}
				r.Findings = append(r.Findings, found)
				continue
			case errors.Is(err, store.ErrNotFound): // gc has removed it since
				continue
			case err != nil:
				yield(nil, err)
				return
			}
			*checked = append(*checked, checkedRoot{root.Name, root.Digest, !e.Retired.IsZero()})
			if !yield(root.Index, nil) {
				return
			}
		}
	}
}

// checkIndexes looks for each published index and its boot profile.
func (f *repoFlags) checkIndexes(ctx context.Context, records *gcroot.Dir, l gcroot.Listing, r *repoCheckResult) error {
	l.Roots = slices.DeleteFunc(l.Roots, func(e gcroot.Entry) bool { return slices.Contains(r.headless, e.Name) })
	items, err := release.ReadItems(ctx, records, l)
	if err != nil {
		return err
	}
	r.Indexes = len(items)
	shelf := f.indexes(records)
	for _, item := range items {
		state, err := shelf.Find(ctx, item)
		switch {
		case isAny(err, blob.ErrInvalid, gcroot.ErrInvalid):
			r.Findings = append(r.Findings, repoFinding{Name: item.Name, Why: err.Error()})
			continue
		case err != nil:
			r.note(item.Name, fmt.Sprintf("cannot be looked at: %v", err))
			continue
		}
		switch state {
		case release.Absent:
			r.note(item.Name, "is gone, and its chunks stay: publish it again, or end this with 'cairn repo remove' or --keep-last of 'cairn repo gc'")
		case release.Replaced:
			r.note(item.Name, fmt.Sprintf("was replaced by another index, and the chunks of %s stay until --keep-last or --keep-within of 'cairn repo gc' drops them", item.Index))
		case release.Present, release.Stream, release.Beyond:
		}
		if state == release.Present {
			for _, check := range []func(context.Context, *release.Indexes, release.Item) error{f.checkProfile, f.checkMap} {
				if err := check(ctx, shelf, item); err != nil {
					r.Findings = append(r.Findings, repoFinding{Name: item.Name, Why: err.Error()})
				}
			}
		}
	}
	return ctx.Err()
}

// checkProfile returns an error about a damaged boot profile of an index.
func (f *repoFlags) checkProfile(ctx context.Context, shelf *release.Indexes, item release.Item) error {
	at, err := shelf.Locate(item)
	if err != nil {
		return err
	}
	if at, err = release.ProfileOf(at); err != nil {
		return nil //nolint:nilerr // there is none beside such an index
	}
	if _, err = release.OpenProfile(ctx, f.releaseAccess(), at); errors.Is(err, profile.ErrInvalid) {
		return err
	}
	return nil
}

// checkMap returns an error about a damaged map of packs of an index.
func (f *repoFlags) checkMap(ctx context.Context, shelf *release.Indexes, item release.Item) error {
	at, err := shelf.Locate(item)
	if err != nil {
		return err
	}
	file, err := release.MapOf(at, item.Index)
	if err != nil {
		return nil //nolint:nilerr // there is none beside such an index
	}
	x, err := release.Open(ctx, f.releaseAccess(), at)
	if err != nil {
		return err
	}
	if _, err = release.OpenMap(ctx, f.releaseAccess(), file, x); errors.Is(err, pack.ErrInvalid) {
		return err
	}
	return nil
}

func (r *repoCheckResult) print(w io.Writer) {
	for _, found := range r.Findings {
		printLine(w, "%s: %s", found.Name, found.Why)
	}
	for _, n := range r.Notes {
		logf("note: %s %s", n.Name, n.Why)
	}
	logf("checked %s in %s: %s; %s of chunks, %s of them in no index", plaintext.Count(int64(r.Indexes), "published index"),
		r.Store, plaintext.Count(int64(len(r.Findings)), "defect"), plaintext.Size(r.Total.Bytes), plaintext.Size(r.Garbage.Bytes))
	if r.Working > 0 {
		logf("note: %s of publishers or collectors at work, or not yet expired", plaintext.Count(int64(r.Working), "announcement"))
	}
	if !r.Managed {
		logf("note: gc does not manage this store: it may have indexes without a gc root (see 'cairn repo adopt')")
	}
}

// failure returns the error about the findings.
func (r *repoCheckResult) failure() error {
	if len(r.Findings) == 0 {
		return nil
	}
	for _, found := range r.Findings {
		if !found.missing {
			return hintError{damagedError{fmt.Sprintf("%s in the repository of %s", plaintext.Count(int64(len(r.Findings)), "defect"), r.Store)},
				"publish a damaged index again; for a damaged gc root publish or adopt its index again, and then remove the damaged file"}
		}
	}
	return hintError{fmt.Errorf("%s of %s incomplete: %w", plaintext.Count(int64(len(r.Findings)), "index"), r.Store, store.ErrNotFound),
		"'cairn store verify STORE INDEX --repair OTHER' takes the chunks from another store; make stores them again"}
}
