package main

import (
	"context"
	"fmt"
	"io"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/delta/deltadir"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/keep"
	"cairn/store/locate"
	"cairn/store/pack"
)

type storeStatFlags struct {
	common
	wholeStores
	stores  [][]locate.Location // one group
	indexes []locate.Location
}

func newStoreStat() *cobra.Command {
	var f storeStatFlags
	c := &cobra.Command{
		Use:   "stat LOCATION [INDEX...]",
		Short: "Count the chunks of a store, and of each index in it",
		Long: `stat lists a store and counts its chunks. With indexes, it prints for each index how many bytes the store holds of
its chunks, how many of these belong to no other index (removing it would free them), and how many of its chunks are
missing. It also prints the bytes that belong to no index, and counts the deltas of the store. A web server cannot be
listed: stat asks it for each chunk of the indexes, and counts the deltas to their images.`,
		Example: `  cairn store stat /srv/images/default.castr
  cairn store stat s3://images/default.castr v1.caibx v2.caibx --json`,
		Args: checkArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			return forEachStore(c.Context(), f.stores[0], func(at locate.Location) error {
				return runStoreStat(c.Context(), c.OutOrStdout(), f, at)
			})
		},
	}
	f.common.addFlags(c)
	f.wholeStores.addFlags(c)
	storeArgs(c, &f.stores, 1)
	indexArgs(c, &f.indexes, 1)
	for _, unused := range []string{"rate-limit", "digest", "jobs"} { // stat reads and hashes no chunk
		c.Flags().Lookup(unused).Hidden = true
	}
	checkIndexes(c, 1)
	return c
}

// storeStatResult is the output of store stat --json.
type storeStatResult struct {
	Store locate.Location `json:"store"`
	keep.StatReport
	Packs   keep.Others     `json:"packs,omitzero"`  // beside the store
	Deltas  deltadir.Amount `json:"deltas,omitzero"` // beside the store
	Indexes []namedStat     `json:"indexes,omitempty"`
}

type namedStat struct {
	Index locate.Location `json:"index"`
	keep.IndexStat
}

func runStoreStat(ctx context.Context, stdout io.Writer, f storeStatFlags, at locate.Location) error {
	indexes, err := readIndexes(ctx, f.indexes, f.access)
	if err != nil {
		return err
	}
	reader, err := f.openReader(at)
	if err != nil {
		return err
	}
	packed, packs, err := f.countPacks(ctx, at, indexes)
	if err != nil {
		return err
	}
	p := newProgress(f.progress, "counting "+at.String(), "", -1)
	report, err := keep.Stat(ctx, reader, keep.StatOptions{Indexes: keep.Each(indexes), Packed: packed, Workers: f.fetches,
		Show: func(n int64) { p.show(0, plaintext.Count(n, "chunk"), n) }})
	p.end()
	if err != nil {
		return err
	}
	r := storeStatResult{Store: at, StatReport: report, Packs: packs}
	deltas, dir, err := f.openDeltas(at)
	if err == nil && deltas != nil {
		defer store.Close(deltas)
		r.Deltas, err = deltadir.Count(ctx, deltas, indexes)
	}
	if err := noteUnreadable(dir, err); err != nil {
		return err
	}
	for i, x := range report.Indexes {
		r.Indexes = append(r.Indexes, namedStat{f.indexes[i], x})
	}
	if f.json {
		return writeJSON(stdout, r)
	}
	return printStoreStat(stdout, r)
}

// countPacks counts the packs beside a store, and returns a function that finds the chunks of the indexes in them. Where
// packs cannot be listed, the maps are believed.
func (f *storeStatFlags) countPacks(ctx context.Context, at locate.Location, indexes []*blob.Index) (
	packed func(d blob.Digest) (stored int64, ok bool), all keep.Others, err error,
) {
	find, err := f.findPacked(ctx, f.indexes, indexes)
	if err != nil {
		return nil, all, err
	}
	var there map[pack.Pack]bool
	dir, err := f.openPackDir(at)
	if err == nil && dir != nil {
		defer store.Close(dir)
		if there, all, err = keep.ListPacks(ctx, dir); isAny(err, store.ErrNotFound, store.ErrDenied, keep.ErrCannotList) {
			there, err = nil, nil
		}
	}
	if find == nil || err != nil {
		return nil, all, err
	}
	return func(d blob.Digest) (stored int64, ok bool) {
		at, ok := find(d)
		return at.Size, ok && (there == nil || there[at.Pack])
	}, all, nil
}

func printStoreStat(w io.Writer, r storeStatResult) error {
	rows := [][]string{
		{"store", r.Store.String()},
		{"chunks", fmt.Sprintf("%s, %s stored", humanize.Comma(r.Chunks), plaintext.Size(r.Bytes))},
	}
	if !r.Listed {
		rows[1][1] += " (of the indexes; the store cannot be listed)"
	}
	if r.Plain > 0 {
		rows = append(rows, []string{"not compressed", humanize.Comma(r.Plain)})
	}
	if r.Empty > 0 {
		rows = append(rows, []string{"empty", humanize.Comma(r.Empty)})
	}
	if len(r.Indexes) > 0 {
		rows = append(rows, []string{"images", fmt.Sprintf("%s, of different chunks %s, stored in %s",
			plaintext.Size(r.ImageBytes), plaintext.Size(r.DistinctBytes), plaintext.Size(r.Bytes-r.Unreferenced.Bytes))})
	}
	if len(r.Indexes) > 0 && r.Listed {
		rows = append(rows, []string{"in no index", fmt.Sprintf("%s, %s stored",
			plaintext.Count(r.Unreferenced.Chunks, "chunk"), plaintext.Size(r.Unreferenced.Bytes))})
	}
	if r.Packs.Objects > 0 {
		rows = append(rows, []string{"packs", fmt.Sprintf("%s, %s", humanize.Comma(r.Packs.Objects), plaintext.Size(r.Packs.Bytes))})
	}
	if r.Deltas.Deltas > 0 {
		rows = append(rows, []string{"deltas", fmt.Sprintf("%s, %s", humanize.Comma(r.Deltas.Deltas), plaintext.Size(r.Deltas.Bytes))})
	}
	if err := plaintext.WriteTable(w, rows); err != nil {
		return err
	}
	logOtherObjects("called like chunks, in wrong directories", r.Misnamed)
	logOtherObjects("no chunks", r.Foreign)
	if len(r.Indexes) == 0 {
		return nil
	}
	rows = [][]string{nil, {"index", "image", "different", "stored", "alone", "missing"}}
	for _, x := range r.Indexes {
		rows = append(rows, []string{x.Index.String(), plaintext.Size(x.ImageBytes), plaintext.Size(x.DistinctBytes),
			plaintext.Size(x.Stored.Bytes), plaintext.Size(x.Exclusive.Bytes), humanize.Comma(x.Missing)})
	}
	return plaintext.WriteTable(w, rows)
}
