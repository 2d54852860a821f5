package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/deploy"
	"cairn/internal/openfile"
	"cairn/internal/plaintext"
	"cairn/seed"
)

func newPlan() *cobra.Command {
	var f planFlags
	var drawing drawFlags
	c := &cobra.Command{
		Use:   "plan INDEX TARGET",
		Short: "Print what assemble would copy and download; write nothing",
		Long: `plan reads and hashes the data that assemble would read. It prints how many bytes of the image are in place, how
many come from each seed, and how many would be downloaded. It writes nothing, and does not claim the target.`,
		Example: `  cairn plan v2.caibx PARTLABEL=root-b --seed PARTLABEL=root-a
  cairn plan v2.caibx disk.img#root-b --seed disk.img#root-a --html plan.html`,
		Args: checkArgs(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return runPlan(c.Context(), c.OutOrStdout(), f, drawing, openfile.Standard(args[1], openfile.Stdout))
		},
	}
	f.addFlags(c)
	drawing.addFlags(c, "the image")
	checkStdioUse(c, func(u *stdioUsers, _ []string) {
		f.addReaders(u)
		drawing.addPrinters(u, f.json)
	})
	f.trustFlags.addTo(c)
	return c
}

func runPlan(ctx context.Context, stdout io.Writer, f planFlags, drawing drawFlags, target string) error {
	begun := time.Now()
	if err := checkOutput(drawing.html); err != nil {
		return err
	}
	x, err := f.openIndex(ctx, &f.index, f.access, readImageIndex)
	if err != nil {
		return err
	}
	r := assembleResult{Index: f.index, Digest: x.Digest().String(), Target: target}
	drawn, err := f.previewPlan(ctx, x, target, &r)
	if err != nil {
		return fmt.Errorf("planning %s onto %s: %w", f.index, deploy.ShowTarget(target), err)
	}
	if err := drawing.writePage(ctx, drawn); err != nil {
		return err
	}
	r.Seconds = time.Since(begun).Seconds()
	if f.json {
		return writeJSON(stdout, r)
	}
	if drawing.quiet {
		return nil
	}
	printLine(stdout, "%s onto %s: %s", r.Index, deploy.ShowTarget(target), plaintext.Size(x.Size()))
	return printSources(stdout, r, "to download")
}

// previewPlan does what assemble does up to the first change of the target, and fills in the result.
func (f *planFlags) previewPlan(ctx context.Context, x *blob.Index, target string, r *assembleResult) (p picture, err error) {
	o := f.deployOptions()
	o.ReadOnly = true
	t, err := deploy.Look(ctx, target, x, o)
	if err != nil {
		return p, err
	}
	defer t.Close()
	from, err := f.open(ctx, f.index, x, 0)
	if err != nil {
		return p, err
	}
	defer from.Close()
	o.Far, o.Deltas = from.Far(), f.deltas(ctx, from)
	plan, err := deploy.NewPlan(ctx, x, t, o)
	if err != nil {
		return p, err
	}
	defer plan.Close()
	requests, bytes := from.Downloaded() // for the map of packs and the delta's table
	bar := newProgress(f.progress, "planning "+f.index.String(), "", x.Size())
	stats, steps, err := plan.Preview(ctx, from.GetUncached, bar.showSources)
	bar.end()
	if err != nil {
		return p, err
	}
	r.Stats, r.SeedNames = stats, plan.SeedNames()
	use := plan.DeltaUse()
	if use != nil {
		r.addDelta(use)
	}
	p = picture{
		title: f.index.String() + " onto " + deploy.ShowTarget(target), index: x, seeds: r.SeedNames,
		step: func(i int) seed.Step { return steps[i] }, inDelta: plan.DeltaSize,
	}
	q, err := p.quote(ctx, from)
	if err != nil {
		return p, err
	}
	r.Downloads, r.DownloadedBytes = q.Cost(digestsOf(x, plan.FetchCalls(p.step)))
	if use != nil {
		requests, bytes = requests+int64(use.Requests), bytes+use.Bytes
	}
	r.Downloads += requests
	r.DownloadedBytes += bytes
	return p, nil
}
