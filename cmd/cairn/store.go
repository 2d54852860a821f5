package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/locate"
	"cairn/store/supply"
	"cairn/store/web"
)

func newStore() *cobra.Command {
	c := &cobra.Command{
		Use:   "store",
		Short: "Verify, repair, measure, copy and fill stores",
		Args:  requireCommand,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newStoreVerify(), newStoreStat(), newStoreCopy(), newStoreAdd())
	return c
}

// wholeStores holds the flags of commands that read whole stores.
type wholeStores struct {
	access
	fetches   int
	rateLimit int64
	digest    *blob.Algorithm // nil: detected
}

func (f *wholeStores) addFlags(c *cobra.Command) {
	c.Flags().IntVar(&f.fetches, "fetches", 32, "number of `chunks` to request from a store at the same time")
	c.Flags().Var(limitFlag(&f.rateLimit), "rate-limit", "read at most this many `bytes` per second")
	digest := new(blob.Algorithm)
	c.Flags().Var(digestFlag(digest), "digest", "`name` of the digest algorithm: sha512-256 or sha256 (default: detected)")
	c.Flags().Lookup("digest").DefValue = ""
	f.addPatience(c)
	f.access.addFlags(c)
	checkRange(c, "fetches", &f.fetches, 1024)
	addCheck(c, func([]string) error {
		if c.Flags().Changed("digest") {
			f.digest = digest
		}
		return nil
	})
}

// workers returns how many chunks of a store are read and hashed at the same time. Workers of a remote store mostly wait
// for answers, so there are at least as many of them as requests in flight.
func (f *wholeStores) workers(at locate.Location, jobs int) int {
	if at.Remote() {
		return max(f.fetches, jobs)
	}
	return jobs
}

// openReader opens a store to read, and to list if it can be listed.
func (f *wholeStores) openReader(at locate.Location) (store.Reader, error) {
	return f.access.openReader(at, f.rateLimit)
}

// openReader opens a store to read, and to list if it can be listed. It limits the rate to so many bytes a second; 0 is
// no limit.
func (f *access) openReader(at locate.Location, rateLimit int64) (store.Reader, error) {
	a, err := f.openAccess()
	if err != nil {
		return nil, err
	}
	r, err := a.Open(at)
	if err != nil {
		return nil, absentHint(fmt.Errorf("opening store %s: %w", at, err), "check the store's location")
	}
	if rateLimit > 0 {
		r = supply.NewRate(rateLimit).Limit(r)
	}
	if at.Remote() {
		r = store.Retry(r, a.Retry)
	}
	return r, nil
}

// openReaders opens stores with the same content. It leaves out those that cannot be opened, unless none can.
func (f *wholeStores) openReaders(group []locate.Location) (readers []store.Reader, err error) {
	for _, at := range group {
		r, failed := f.openReader(at)
		if failed != nil {
			err = failed
			if len(group) > 1 {
				warnLeftOut(failed)
			}
			continue
		}
		readers = append(readers, r)
	}
	if len(readers) == 0 {
		return nil, err
	}
	return readers, nil
}

// openBucket opens a store or directory to write. mode is that of new local files; 0 is the default.
func (f *wholeStores) openBucket(at locate.Location, mode fs.FileMode) (store.Bucket, error) {
	a, err := f.openAccess()
	if err != nil {
		return nil, err
	}
	a.Local.Mode = mode
	b, err := a.OpenBucket(at)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", at, usageIfUnsupported(err))
	}
	return b, nil
}

// openDeltas opens the directory of the deltas of a store to read. It is nil if there is none.
func (f *wholeStores) openDeltas(at locate.Location) (store.Reader, locate.Location, error) {
	return f.openBeside(at, release.DeltaDir, f.rateLimit)
}

// openBeside opens a directory beside a store to read, with the rate of openReader. It is nil if there is none.
func (f *access) openBeside(
	of locate.Location, dirOf func(locate.Location) (locate.Location, error), rateLimit int64,
) (store.Reader, locate.Location, error) {
	dir, err := dirOf(of)
	if err != nil {
		return nil, dir, nil //nolint:nilerr // nothing can lie beside this store
	}
	r, err := f.openReader(dir, rateLimit)
	if errors.Is(err, store.ErrNotFound) {
		return nil, dir, nil
	}
	return r, dir, err
}

// noteUnreadable prints a note instead of an error about deltas that a server does not let this program read. Such
// a server may deny files that do not exist.
func noteUnreadable(dir locate.Location, err error) error {
	if !isAny(err, store.ErrDenied, web.ErrNoAbsence) {
		return err
	}
	logf("note: if there are deltas in %s, they cannot be read: %v", dir, err)
	return nil
}

// forEachStore runs do for each store of a group, and returns the errors of all.
func forEachStore(ctx context.Context, group []locate.Location, do func(locate.Location) error) (err error) {
	for _, at := range group {
		if err = errors.Join(err, do(at)); ctx.Err() != nil {
			break
		}
	}
	return err
}

// checkIndexes refuses a second index from stdin. The first n arguments are stores.
func checkIndexes(c *cobra.Command, n int) {
	checkStdioUse(c, func(u *stdioUsers, args []string) {
		for _, location := range args[n:] {
			u.addReader("INDEX "+location, location)
		}
	})
}

// findings is a list of at most keep.MostFindings findings for a result.
type findings []keep.Finding

func (l *findings) add(f keep.Finding) {
	if len(*l) < keep.MostFindings {
		*l = append(*l, f)
	}
}

// logOtherObjects prints a note about objects in a store that are not its chunks.
func logOtherObjects(kind string, o keep.Others) {
	if o.Objects == 0 {
		return
	}
	names := strings.Join(o.First, " ")
	if o.Objects > int64(len(o.First)) {
		names += " and more"
	}
	logf("note: objects that are %s: %d (%s): %s", kind, o.Objects, plaintext.Size(o.Bytes), names)
}
