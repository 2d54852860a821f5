package main

import (
	"context"
	"fmt"
	"io"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/store/keep"
	"cairn/store/locate"
)

func newStoreStat() *cobra.Command {
	var f reading
	var o common
	var stores [][]locate.Location // one group
	var indexes []locate.Location
	c := &cobra.Command{
		Use:   "stat LOCATION [INDEX...]",
		Short: "What a store holds, and what of it belongs to which index",
		Long: `stat lists a store and counts its chunks. With indexes it tells for each how many bytes the store keeps for it,
how many for it alone (what would become free without it), and how many of its chunks are not there; and what
belongs to none of them. A web server cannot be listed: it is asked for each chunk of the indexes.`,
		Example: `  cairn store stat /srv/images/default.castr
  cairn store stat s3://images/default.castr v1.caibx v2.caibx --json`,
		Args: arguments(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			return eachStore(c.Context(), stores[0], func(at locate.Location) error {
				return wordMisuse(c, runStoreStat(c.Context(), c.OutOrStdout(), f, o, at, indexes))
			})
		},
	}
	o.add(c)
	f.add(c)
	storeArgs(c, &stores, 1)
	indexArgs(c, &indexes, 1, 0)
	for _, idle := range []string{"rate-limit", "digest", "jobs"} { // nothing is read or hashed
		c.Flags().Lookup(idle).Hidden = true
	}
	checkIndexes(c, 1)
	return c
}

// storeStat is what store stat --json prints.
type storeStat struct {
	Store locate.Location `json:"store"`
	keep.StatReport
	Indexes []namedStat `json:"indexes,omitempty"`
}

type namedStat struct {
	Index locate.Location `json:"index"`
	keep.IndexStat
}

func runStoreStat(ctx context.Context, stdout io.Writer, f reading, o common, at locate.Location, names []locate.Location) error {
	indexes, err := f.readIndexes(ctx, names)
	if err != nil {
		return err
	}
	r, err := f.openStore(at)
	if err != nil {
		return err
	}
	p := newProgress(o.progress, "counting "+at.String(), -1)
	report, err := keep.Stat(ctx, r, keep.StatOptions{Indexes: indexes, Workers: f.fetches,
		Show: func(n int64) { p.show(0, chunks(n), n) }})
	p.end()
	if err != nil {
		return err
	}
	s := storeStat{Store: at, StatReport: report}
	for i, x := range report.Indexes {
		s.Indexes = append(s.Indexes, namedStat{names[i], x})
	}
	if o.json {
		return writeJSON(stdout, s)
	}
	return printStoreStat(stdout, s)
}

func printStoreStat(w io.Writer, s storeStat) error {
	rows := [][]string{
		{"store", s.Store.String()},
		{"chunks", fmt.Sprintf("%s, %s stored", humanize.Comma(s.Chunks), size(s.Bytes))},
	}
	if !s.Listed {
		rows[1][1] += " (of the indexes; the store cannot be listed)"
	}
	if s.Plain > 0 {
		rows = append(rows, []string{"not compressed", humanize.Comma(s.Plain)})
	}
	if s.Empty > 0 {
		rows = append(rows, []string{"empty", humanize.Comma(s.Empty)})
	}
	if len(s.Indexes) > 0 {
		rows = append(rows, []string{"images", fmt.Sprintf("%s, of different chunks %s, stored in %s", size(s.ImageBytes), size(s.DistinctBytes), size(s.Bytes-s.Unreferenced.Bytes))})
	}
	if len(s.Indexes) > 0 && s.Listed {
		rows = append(rows, []string{"in no index", fmt.Sprintf("%s, %s stored", chunks(s.Unreferenced.Chunks), size(s.Unreferenced.Bytes))})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	tellOthers("called like chunks, in wrong directories", s.Misnamed)
	tellOthers("no chunks", s.Foreign)
	return printIndexStats(w, s.Indexes)
}

func printIndexStats(w io.Writer, indexes []namedStat) error {
	if len(indexes) == 0 {
		return nil
	}
	rows := [][]string{nil, {"index", "image", "different", "stored", "alone", "missing"}}
	for _, x := range indexes {
		rows = append(rows, []string{x.Index.String(), size(x.ImageBytes), size(x.DistinctBytes), size(x.Stored.Bytes), size(x.Exclusive.Bytes), humanize.Comma(x.Missing)})
	}
	return table(w, rows)
}
