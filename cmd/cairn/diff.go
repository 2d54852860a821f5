package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cairn/internal/plaintext"
	"cairn/seed"
	"cairn/seed/learn"
	"cairn/store/locate"
)

type diffFlags struct {
	stores
	drawFlags
	indexes []locate.Location // OLD, NEW
	json    bool

	estimate bool // the delta, if there is none from OLD
}

func newDiff() *cobra.Command {
	var f diffFlags
	c := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Print what an update from index OLD to index NEW downloads",
		Long: `diff prints how many bytes of the image of NEW are in chunks that the image of OLD has too, how many are zeros or
repeats, and how many are new. With -s it also asks the store for the size of the new chunks, which a machine that
holds OLD would download, and for a delta beside the store, with which it would download less.

If there is no delta from OLD, --estimate encodes at most 32 of the new chunks, and says what a delta would save. It
reads these chunks from the store, and those of OLD at their places.`,
		Example: `  cairn diff v1.caibx v2.caibx -s https://images.example.com/default.castr
  cairn diff v1.caibx v2.caibx -s default.castr --estimate`,
		Args: checkArgs(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, _ []string) error { return runDiff(c.Context(), c.OutOrStdout(), f) },
	}
	f.stores.addFlags(c)
	indexArgs(c, &f.indexes, 0)
	f.addPatience(c)
	c.Flags().Lookup("store").Usage = "`location` of a store, to print the size of the download too; repeatable"
	c.Flags().BoolVar(&f.estimate, "estimate", false, "if there is no delta from OLD, estimate one from a sample of the chunks; needs -s")
	addCheck(c, func([]string) error {
		if f.estimate && len(f.groups) == 0 {
			return errors.New("--estimate: name the store of both images with -s")
		}
		return nil
	})
	c.Flags().Lookup("cache").Hidden = true
	c.Flags().Lookup("cache-limit").Hidden = true
	f.drawFlags.addFlags(c, "the new image")
	addJSON(c, &f.json)
	checkStdioUse(c, func(u *stdioUsers, _ []string) {
		u.addLocation("OLD", f.indexes[0])
		u.addLocation("NEW", f.indexes[1])
		f.addPrinters(u, f.json)
	})
	return c
}

// diffResult is the output of diff --json.
type diffResult struct {
	Old           locate.Location `json:"old"`
	New           locate.Location `json:"new"`
	Size          int64           `json:"size"`         // of the new image
	Shared        int64           `json:"shared_bytes"` // of it, in chunks of the old image
	Zero          int64           `json:"zero_bytes"`
	Repeated      int64           `json:"repeated_bytes"` // in chunks that occur earlier in the new image
	NewBytes      int64           `json:"new_bytes"`
	NewChunks     int             `json:"new_chunks"`
	DownloadBytes *int64          `json:"download_bytes,omitempty"` // of the new chunks, as stored
	Downloads     *int64          `json:"downloads,omitempty"`      // requests for them
	Delta         *diffDelta      `json:"delta,omitempty"`
	Unlike        string          `json:"unlike,omitempty"` // why the two cannot share chunks
}

func runDiff(ctx context.Context, stdout io.Writer, f diffFlags) error {
	if err := checkOutput(f.html); err != nil {
		return err
	}
	indexes, err := readIndexes(ctx, f.indexes, f.access)
	if err != nil {
		return err
	}
	oldAt, newAt, old, x := f.indexes[0], f.indexes[1], indexes[0], indexes[1]
	if old.Algorithm() != x.Algorithm() {
		err := fmt.Errorf("comparing %s with %s: %v and %v digests cannot be compared", oldAt, newAt, old.Algorithm(), x.Algorithm())
		return hintError{err, "make both with one --digest; as a seed the old image is scanned, and helps all the same"}
	}
	plan := seed.NewPlan(x, seed.Seed{Index: old})
	t := plan.Totals()
	d := diffResult{
		Old: oldAt, New: newAt, Unlike: learn.Unlike(old, x), Size: x.Size(), Shared: t.Seeds[0], Zero: t.Zero, Repeated: t.Copy,
		NewBytes: t.Fetch, NewChunks: t.Fetches,
	}
	drawn := picture{
		title: fmt.Sprintf("from %s to %s", oldAt, newAt), index: x, seeds: []string{oldAt.String()}, step: plan.At,
	}
	if len(f.groups) > 0 {
		if err := f.addDownload(ctx, plan, &drawn, &d); err != nil {
			return err
		}
	}
	if d.Unlike != "" {
		logf("warning: %s %s: so the two share hardly a chunk. As a seed the old image is scanned, and helps all the same", oldAt, d.Unlike)
	}
	switch err := f.writePage(ctx, drawn); {
	case err != nil || f.quiet:
		return err
	case f.json:
		return writeJSON(stdout, d)
	}
	return printDiff(stdout, d)
}

func printDiff(w io.Writer, d diffResult) error {
	printLine(w, "from %s to %s (%s)", d.Old, d.New, plaintext.Size(d.Size))
	rows := [][]string{
		{"  shared", plaintext.Size(d.Shared), plaintext.Percent(d.Shared, d.Size)},
		{"  zeros", plaintext.Size(d.Zero), plaintext.Percent(d.Zero, d.Size)},
		{"  repeats", plaintext.Size(d.Repeated), plaintext.Percent(d.Repeated, d.Size)},
		{"  new", plaintext.Size(d.NewBytes), plaintext.Percent(d.NewBytes, d.Size), plaintext.Count(int64(d.NewChunks), "chunk")},
	}
	if d.DownloadBytes != nil {
		rows = append(rows,
			[]string{"  download", plaintext.Size(*d.DownloadBytes), "", countRequests(*d.Downloads)}, d.Delta.row())
	}
	return plaintext.WriteTable(w, rows)
}
