package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cairn/blob/deploy"
	"cairn/internal/plaintext"
	"cairn/seed"
	"cairn/store/locate"
)

type diffFlags struct {
	stores
	drawFlags
	indexes []locate.Location // OLD and NEW
	json    bool
}

func newDiff() *cobra.Command {
	var f diffFlags
	c := &cobra.Command{
		Use:     "diff OLD NEW",
		Short:   "What an update from index OLD to index NEW costs",
		Example: `  cairn diff v1.caibx v2.caibx -s https://images.example.com/default.castr`,
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, _ []string) error {
			return runDiff(c.Context(), c.OutOrStdout(), f)
		},
	}
	f.stores.add(c)
	indexArgs(c, &f.indexes, 0, 2)
	f.addPatience(c)
	c.Flags().Lookup("store").Usage = "`location` of a store, to tell the size of the download too; repeatable"
	c.Flags().Lookup("cache").Hidden = true
	f.drawFlags.add(c, "the new image")
	c.Flags().BoolVar(&f.json, "json", false, "print the result as one JSON object")
	checkStdio(c, func(u *users, _ []string) {
		u.readsAt("OLD", f.indexes[0])
		u.readsAt("NEW", f.indexes[1])
		f.writesStdout(u, f.json)
	})
	return c
}

// difference is what diff --json prints.
type difference struct {
	Old           locate.Location `json:"old"`
	New           locate.Location `json:"new"`
	Size          int64           `json:"size"`         // of the new image
	Shared        int64           `json:"shared_bytes"` // of it, in chunks that the old one has
	Zero          int64           `json:"zero_bytes"`
	Repeated      int64           `json:"repeated_bytes"` // in chunks that come earlier in the new one
	NewBytes      int64           `json:"new_bytes"`
	NewChunks     int             `json:"new_chunks"`
	DownloadBytes *int64          `json:"download_bytes,omitempty"` // of the new chunks, as stored
	Unlike        string          `json:"unlike,omitempty"`         // why the two can share nothing, whatever they hold
}

func runDiff(ctx context.Context, stdout io.Writer, f diffFlags) error {
	if err := checkOutput(f.html); err != nil {
		return err
	}
	oldAt, newAt := f.indexes[0], f.indexes[1]
	old, err := readIndex(ctx, oldAt, f.access)
	if err != nil {
		return err
	}
	x, err := readIndex(ctx, newAt, f.access)
	if err != nil {
		return err
	}
	if old.Algorithm() != x.Algorithm() {
		err := fmt.Errorf("comparing %s with %s: %v and %v digests cannot be compared", oldAt, newAt, old.Algorithm(), x.Algorithm())
		return hintError{err, "make both with one --digest; as a seed the old image is scanned, and helps all the same"}
	}
	plan := seed.NewPlan(x, seed.Seed{Index: old})
	t := plan.Totals()
	d := difference{
		Old: oldAt, New: newAt, Unlike: deploy.Unlike(old, x), Size: x.Size(), Shared: t.Seeds[0], Zero: t.Zero, Repeated: t.Copy,
		NewBytes: t.Fetch, NewChunks: t.Fetches,
	}
	drawn := picture{
		title: fmt.Sprintf("from %s to %s", oldAt, newAt), index: x, seeds: []string{oldAt.String()}, from: plan.At,
	}
	if len(f.groups) > 0 {
		from, err := openStores(f.stores, newAt, x.Algorithm(), 0)
		if err != nil {
			return err
		}
		n, err := drawn.askSizes(ctx, from)
		if err != nil {
			return fmt.Errorf("asking the store for sizes: %w", err)
		}
		d.DownloadBytes = &n
	}
	if d.Unlike != "" {
		say("warning: %s %s: so the two share hardly a chunk. As a seed the old image is scanned, and helps all the same", oldAt, d.Unlike)
	}
	switch err := f.draw(ctx, drawn); {
	case err != nil || f.quiet:
		return err
	case f.json:
		return writeJSON(stdout, d)
	}
	return printDifference(stdout, d)
}

func printDifference(w io.Writer, d difference) error {
	fmt.Fprintf(w, "from %s to %s (%s)\n", d.Old, d.New, size(d.Size))
	rows := [][]string{
		{"  shared", size(d.Shared), plaintext.Percent(d.Shared, d.Size)},
		{"  zeros", size(d.Zero), plaintext.Percent(d.Zero, d.Size)},
		{"  repeats", size(d.Repeated), plaintext.Percent(d.Repeated, d.Size)},
		{"  new", size(d.NewBytes), plaintext.Percent(d.NewBytes, d.Size), chunks(int64(d.NewChunks))},
	}
	if d.DownloadBytes != nil {
		rows = append(rows, []string{"  download", size(*d.DownloadBytes)})
	}
	return table(w, rows)
}
