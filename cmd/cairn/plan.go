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
	"cairn/seed"
)

func newPlan() *cobra.Command {
	var f planFlags
	var drawing drawFlags
	c := &cobra.Command{
		Use:   "plan INDEX TARGET",
		Short: "What assemble would do: bytes in place, from each seed, zero, to download; writes nothing",
		Long: `plan reads what assemble would read, hashes it, and tells exactly where each byte would come from and how much
would be downloaded. It writes nothing, and needs no claim on the target.`,
		Example: `  cairn plan v2.caibx PARTLABEL=root-b --seed PARTLABEL=root-a
  cairn plan v2.caibx disk.img#root-b --seed disk.img#root-a --html plan.html`,
		Args: arguments(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return runPlan(c.Context(), c.OutOrStdout(), f, drawing, openfile.Standard(args[1], stdout))
		},
	}
	f.add(c)
	drawing.add(c, "the image")
	checkStdio(c, func(u *users, _ []string) {
		f.readsStdin(u)
		drawing.writesStdout(u, f.json)
	})
	return c
}

func runPlan(ctx context.Context, stdout io.Writer, f planFlags, drawing drawFlags, location string) error {
	begun, index := time.Now(), f.index[0]
	if err := checkOutput(drawing.html); err != nil {
		return err
	}
	x, err := readImageIndex(ctx, index, f.access)
	if err != nil {
		return err
	}
	result := assembled{Index: index, Digest: x.Digest().String(), Target: location}
	drawn, err := f.preview(ctx, x, &result)
	if err != nil {
		return fmt.Errorf("planning %s onto %s: %w", index, deploy.ShowTarget(location), err)
	}
	if err := drawing.draw(ctx, drawn); err != nil {
		return err
	}
	result.Seconds = time.Since(begun).Seconds()
	if f.json {
		return writeJSON(stdout, result)
	}
	if drawing.quiet {
		return nil
	}
	fmt.Fprintf(stdout, "%s onto %s: %s\n", result.Index, deploy.ShowTarget(location), size(x.Size()))
	return tellSources(stdout, result, "to download")
}

// preview does what assemble does, up to the point where something would change.
func (f *planFlags) preview(ctx context.Context, x *blob.Index, result *assembled) (p picture, err error) {
	o := f.options(result.Index)
	o.ReadOnly = true
	t, err := deploy.Look(ctx, result.Target, x, o)
	if err != nil {
		return p, err
	}
	defer t.Close()
	from, err := openStores(f.stores, result.Index, x.Algorithm(), 0)
	if err != nil {
		return p, err
	}
	defer from.Close()
	plan, err := deploy.NewPlan(ctx, x, t, o)
	if err != nil {
		return p, err
	}
	defer plan.Close()
	bar := newProgress(f.progress, "planning "+result.Index.String(), x.Size())
	stats, steps, err := plan.Preview(ctx, from.GetUncached, bar.showSources)
	bar.end()
	if err != nil {
		return p, err
	}
	result.Stats, result.SeedNames, result.Downloads = stats, plan.SeedNames(), stats.Fetches
	p = picture{
		title: result.Index.String() + " onto " + deploy.ShowTarget(result.Target), index: x, seeds: result.SeedNames,
		from: func(i int) seed.Step { return steps[i] },
	}
	result.DownloadedBytes, err = p.askSizes(ctx, from)
	return p, err
}
