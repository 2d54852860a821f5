package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/locate"
	"cairn/store/supply"
)

func newStore() *cobra.Command {
	c := &cobra.Command{
		Use:   "store",
		Short: "Look after a store: check and repair it, count what is in it, copy it",
		Args:  onlyCommands,
		RunE:  func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newStoreVerify(), newStoreStat(), newStoreCopy())
	return c
}

// reading are the flags of commands that read whole stores.
type reading struct {
	fetches   int
	rateLimit int64
	digest    blob.Algorithm
	given     bool   // the digest was
	stores    stores // how to get into them, and how long to wait for them; its other fields are not used
}

func (f *reading) add(c *cobra.Command) {
	c.Flags().IntVar(&f.fetches, "fetches", 32, "how many `chunks` to ask a store for at once")
	c.Flags().Var(amount(&f.rateLimit), "rate-limit", "read at most that many `bytes` a second")
	c.Flags().Var(digestFlag{&f.digest}, "digest", "`name` of the hash: sha512-256 or sha256 (default: found out)")
	c.Flags().Lookup("digest").DefValue = ""
	f.stores.addPatience(c)
	f.stores.access.add(c)
	checkRange(c, "fetches", &f.fetches, 1024)
	check(c, func([]string) error {
		f.given = c.Flags().Changed("digest")
		return nil
	})
}

// algorithm is that of the digests, or nil when nobody has said it.
func (f *reading) algorithm() *blob.Algorithm {
	if f.given {
		return &f.digest
	}
	return nil
}

// workers returns how many chunks are read and hashed at once. Those of a remote store wait for answers most of the time,
// so there they are as many as the requests in flight.
func (f *reading) workers(at locate.Location, jobs int) int {
	if at.Remote() {
		return max(f.fetches, jobs)
	}
	return jobs
}

// openStore opens a store to read, and to list if it can be listed.
func (f *reading) openStore(at locate.Location) (store.Reader, error) {
	a, err := f.stores.open()
	if err != nil {
		return nil, err
	}
	r, err := a.Open(at)
	if err != nil {
		return nil, absentHint(fmt.Errorf("opening store %s: %w", at, err), "check the store's location")
	}
	limited := r
	if f.rateLimit > 0 {
		limited = supply.NewRate(f.rateLimit).Limit(limited)
	}
	if at.Remote() {
		limited = store.Retry(limited, a.Retry)
	}
	return limited, nil
}

// openGroup opens stores that stand in for each other. One that is not there is left out, unless none is.
func (f *reading) openGroup(group []locate.Location) (readers []store.Reader, err error) {
	for _, at := range group {
		r, failed := f.openStore(at)
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

// openBucket opens a store to write.
func (f *reading) openBucket(at locate.Location, mode fs.FileMode) (store.Bucket, error) {
	a, err := f.stores.open()
	if err != nil {
		return nil, err
	}
	a.Local.Mode = mode
	b, err := a.OpenBucket(at)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", at, unwritable(err))
	}
	return b, nil
}

// readIndexes reads many indexes.
func (f *reading) readIndexes(ctx context.Context, locations []locate.Location) ([]*blob.Index, error) {
	var indexes []*blob.Index
	for _, at := range locations {
		x, err := readIndex(ctx, at, f.stores.access)
		if err != nil {
			return nil, err
		}
		indexes = append(indexes, x)
	}
	return indexes, nil
}

// eachStore does something to each of the stores that stand in for each other. The failures of all count.
func eachStore(ctx context.Context, group []locate.Location, do func(locate.Location) error) (err error) {
	for _, at := range group {
		if err = errors.Join(err, do(at)); ctx.Err() != nil {
			break
		}
	}
	return err
}

// wordMisuse makes a mistake in usage of the error of a store that cannot be listed or written as the command needs.
func wordMisuse(c *cobra.Command, err error) error {
	switch {
	case errors.Is(err, keep.ErrCannotList):
		return usageError{c, fmt.Errorf("%w: name indexes", err)}
	case is[unwritableError](err):
		return usageError{c, err}
	}
	return err
}

// checkIndexes refuses a second index from stdin, where the first n arguments are stores.
func checkIndexes(c *cobra.Command, n int) {
	checkStdio(c, func(u *users, args []string) {
		for _, location := range args[n:] {
			u.reads("INDEX "+location, location)
		}
	})
}

// tellOthers mentions objects that are no chunks.
func tellOthers(what string, o keep.Others) {
	if o.Objects == 0 {
		return
	}
	names := ""
	for _, name := range o.First {
		names += " " + name
	}
	if o.Objects > int64(len(o.First)) {
		names += " and more"
	}
	say("note: objects that are %s: %d (%s):%s", what, o.Objects, size(o.Bytes), names)
}
