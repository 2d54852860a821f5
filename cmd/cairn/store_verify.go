package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"cairn/store"
	"cairn/store/keep"
	"cairn/store/locate"
)

type storeVerifyFlags struct {
	common
	reading
	stores  [][]locate.Location // one group
	indexes []locate.Location
	state   string
	restart bool
	repair  [][]locate.Location
	remove  bool
}

func newStoreVerify() *cobra.Command {
	var f storeVerifyFlags
	quiet := true
	c := &cobra.Command{
		Use:   "verify LOCATION [INDEX...]",
		Short: "Read and hash every chunk of a store again; repair it from others",
		Long: `verify reads every chunk of a store, or only those of the indexes, and compares it with the digest that it is
named by. What is damaged, empty or misnamed is listed on stdout; objects that are no chunks are mentioned. Exit
status 3 says that something is damaged or missing now, 6 that all that was damaged is removed, 0 that the store is
whole, also when it was repaired.

--repair replaces damaged, empty and missing chunks by those of another store, which are hashed before.
--remove-damaged takes away what could not be repaired, so that the next make stores those chunks anew: a damaged
chunk is of no use to readers, and makes writers believe that it is there. Nothing else is ever removed. Until
the next make or --repair the store lacks those chunks (exit status 6).

A verify that was interrupted is gone on with: how far it came is kept in --state, and forgotten at its end. It
begins anew for another store, other indexes or another --repair, --remove-damaged or --digest, and with --restart.
Chunks that were written since, before the place it came to, are not looked at.`,
		Example: `  cairn store verify /srv/images/default.castr
  cairn store verify /srv/images/default.castr --repair https://mirror.example.com/default.castr
  cairn store verify s3://images/default.castr v2.caibx`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			quiet = !c.Flags().Changed("state")
			return eachStore(c.Context(), f.stores[0], func(at locate.Location) error {
				return wordMisuse(c, runStoreVerify(c.Context(), c.OutOrStdout(), f, quiet, at))
			})
		},
	}
	f.common.add(c)
	f.reading.add(c)
	storeArgs(c, &f.stores, 1)
	indexArgs(c, &f.indexes, 1, 0)
	flags := c.Flags()
	flags.StringVar(&f.state, "state", defaultState, "`directory` that remembers how far it came; \"\" for none")
	flags.BoolVar(&f.restart, "restart", false, "begin anew, wherever an earlier run was interrupted")
	flags.Var(groupsFlag(&f.repair), "repair", "`location` of a store to repair from; repeatable, tried in order")
	flags.BoolVar(&f.remove, "remove-damaged", false, "remove damaged and empty chunks that are not repaired")
	checkIndexes(c, 1)
	return c
}

// storeVerified is what store verify --json prints.
type storeVerified struct {
	Store locate.Location `json:"store"`
	keep.VerifyReport
	Findings []keep.Finding `json:"findings"` // the first of them
	Seconds  float64        `json:"seconds"`  // of this run
}

func runStoreVerify(ctx context.Context, stdout io.Writer, f storeVerifyFlags, quiet bool, at locate.Location) error {
	indexes, err := f.readIndexes(ctx, f.indexes)
	if err != nil {
		return err
	}
	r, err := f.openStore(at)
	if err != nil {
		return err
	}
	o := keep.VerifyOptions{Algorithm: f.algorithm(), Indexes: indexes, Workers: f.workers(at, f.jobs), Remove: f.remove}
	if err := f.openRepair(at, &o); err != nil {
		return err
	}
	kept := f.checkpoint(at, o)
	if f.restart {
		kept.Remove()
	}
	result := storeVerified{Store: at, Findings: []keep.Finding{}}
	err = f.verify(ctx, stdout, r, o, kept, quiet, &result)
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return unwritableError{err}
	case err != nil:
		return fmt.Errorf("verifying %s: %w", result.Store, err)
	}
	kept.Remove()
	if f.json {
		err = writeJSON(stdout, result)
	} else {
		tellOthers("no chunks", result.Foreign)
		tellVerified(result)
	}
	return errors.Join(err, result.failure())
}

// openRepair opens what to repair from, and the store again if it is to be changed.
func (f *storeVerifyFlags) openRepair(at locate.Location, o *keep.VerifyOptions) error {
	for _, group := range f.repair {
		readers, err := f.openGroup(group)
		if err != nil {
			return err
		}
		o.Repair = append(o.Repair, readers...)
	}
	if !f.remove && len(f.repair) == 0 {
		return nil
	}
	b, err := f.openBucket(at, 0) // it was there to be read
	o.Bucket = b
	return err
}

func (f *storeVerifyFlags) verify(ctx context.Context, stdout io.Writer, r store.Reader, o keep.VerifyOptions, kept keep.Checkpoint, quiet bool, result *storeVerified) (err error) {
	o.Found = func(found keep.Finding) {
		if len(result.Findings) < keep.MostFindings {
			result.Findings = append(result.Findings, found)
		}
		if !f.json {
			printFinding(stdout, found)
		}
	}
	if o.After = kept.Load(); o.After != nil {
		say("going on behind %s, as an earlier run left it: %s", o.After.Digest, chunks(o.After.Report.Chunks, "verified"))
	}
	o.Done = func(m keep.Mark) error {
		if err := kept.Save(m); err != nil && !quiet {
			say("warning: cannot remember how far the store is verified: %v", err)
			quiet = true
		}
		return nil
	}
	p := newProgress(f.progress, "verifying "+result.Store.String(), -1)
	o.Show = func(r keep.VerifyReport) { p.show(r.Bytes, chunks(r.Chunks), r) }
	result.VerifyReport, err = keep.Verify(ctx, r, o)
	p.end()
	result.Seconds = p.took().Seconds()
	return err
}

func printFinding(w io.Writer, t keep.Finding) {
	line := fmt.Sprintf("%-8s  %s", t.Kind, t.Name)
	if t.Fate != keep.Left {
		line += "  " + string(t.Fate)
	}
	fmt.Fprintln(w, line)
}

func tellVerified(r storeVerified) {
	say("verified %s (%s stored) in %s: %d damaged, %d empty, %d missing, %d repaired, %d removed",
		chunks(r.Chunks), size(r.Bytes), r.Store, r.Damaged, r.Empty, r.Missing, r.Repaired, r.Removed)
}

// failure says what is not right in the end.
func (r storeVerified) failure() error {
	switch {
	case r.Bad() > r.Removed:
		err := damagedError{fmt.Sprintf("%s is not whole: %s damaged, empty or missing", r.Store, chunks(r.Bad()-r.Removed))}
		return hintError{err, "--repair STORE replaces what another store holds whole; --remove-damaged lets make store the rest anew"}
	case r.Unknown > 0:
		return hintError{fmt.Errorf("%s in %s compressed in a way that cannot be read", chunks(r.Unknown), r.Store), "name the indexes that they belong to"}
	case r.Removed > 0:
		return mendedError{fmt.Sprintf("%s was mended: what was damaged is removed, and it lacks %s", r.Store, chunks(r.Removed))}
	}
	return nil
}

// checkpoint keeps how far a verify with these options comes.
func (f *storeVerifyFlags) checkpoint(at locate.Location, o keep.VerifyOptions) keep.Checkpoint {
	var stores []string
	for _, l := range append([]locate.Location{at}, slices.Concat(f.repair...)...) {
		stores = append(stores, fmt.Sprintf("%x", l.Sum())) // a location may hold a password
	}
	return keep.NewCheckpoint(f.state, o, stores...)
}
