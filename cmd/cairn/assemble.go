package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/seed"
)

type assembleFlags struct {
	common
	stores
	seeds []string
}

func (f *assembleFlags) add(c *cobra.Command) {
	f.common.add(c)
	f.stores.add(c)
	c.Flags().StringArrayVar(&f.seeds, "seed", nil,
		"`PATH[=INDEX]` that may hold wanted chunks: a file, device, DISK#NAME, PARTLABEL=NAME or PARTUUID=UUID; without INDEX it is scanned; repeatable")
}

func newAssemble() *cobra.Command {
	var f assembleFlags
	c := &cobra.Command{
		Use:     "assemble INDEX TARGET",
		Aliases: []string{"extract"},
		Short:   "Put an image onto a partition or file, downloading only what is not here",
		Long: `assemble puts the image of INDEX (a path, a URL, or -) onto TARGET: a block device, DISK#NAME (a partition of a
disk or disk image by its GPT name), PARTLABEL=NAME, PARTUUID=UUID, or a file.

What is in place stays, what a seed holds is read there, the rest is fetched from the stores. Every byte is
hashed before it is written. A device is written in place, exclusively, and never while it is in use; its
first bytes are made invalid first and written last, so that a half-written slot is not taken for a whole
one. A file appears under its name when it is whole and on the medium. Run it again after an interruption:
what is there already is not fetched again.`,
		Example: `  cairn assemble https://images.example.com/v2.caibx PARTLABEL=root-b --seed PARTLABEL=root-a
  cairn assemble v2.caibx disk.img#root-b --seed disk.img#root-a=v1.caibx -s /srv/images/default.castr
  cairn assemble v2.caibx root.squashfs`,
		Args: arguments(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return runAssemble(c.Context(), c.OutOrStdout(), f, args[0], args[1])
		},
	}
	f.add(c)
	return c
}

// assembled is what assemble --json and plan --json print.
type assembled struct {
	Index  string `json:"index"`
	Target string `json:"target"`
	assemble.Stats
	SeedNames       []string `json:"seeds"`            // in the order of seed_bytes
	Downloads       int64    `json:"downloads"`        // chunks read from the stores
	DownloadedBytes int64    `json:"downloaded_bytes"` // their size there
	Seconds         float64  `json:"seconds"`
}

func runAssemble(ctx context.Context, stdout io.Writer, f assembleFlags, index, location string) error {
	x, err := readIndex(ctx, index)
	if err != nil {
		return err
	}
	begun := time.Now()
	result := assembled{Index: index, Target: location}
	err = f.assemble(ctx, x, &result)
	if err != nil {
		return fmt.Errorf("assembling %s onto %s: %w", index, location, err)
	}
	result.Seconds = time.Since(begun).Seconds()
	if f.json {
		return writeJSON(stdout, result)
	}
	took := rounded(time.Since(begun))
	if result.InPlace == result.Size {
		say("%s holds the image of %s (%s) already, nothing was written, in %s", location, index, size(result.Size), took)
		return nil
	}
	say("assembled %s of %s onto %s in %s", size(result.Size), index, location, took)
	return tellSources(stderr, result, "downloaded")
}

// assemble claims the target, learns what the seeds hold, and does the work.
func (f *assembleFlags) assemble(ctx context.Context, x *blob.Index, result *assembled) error {
	t, err := openTarget(ctx, result.Target, x, f.jobs)
	if err != nil {
		return err
	}
	if t.equal {
		result.Stats = assemble.Stats{Size: x.Size(), Done: x.Size(), InPlace: x.Size()}
		return nil
	}
	defer t.close()
	plan, closeSeeds, err := f.plan(ctx, x, t, result.Target)
	if err != nil {
		return err
	}
	defer closeSeeds()
	from, err := openStores(f.stores, result.Index, x.Algorithm())
	if err != nil {
		return err
	}
	defer from.close()
	p := newProgress(f.progress, "assembling "+result.Index, x.Size())
	o := assemble.Options{New: t.isNew, Fetches: f.fetches, Progress: func(s assemble.Stats) { p.show(s.Done, share(s), s) }}
	result.Stats, err = assemble.Run(ctx, plan, from, t, o)
	p.end()
	if err != nil {
		return err
	}
	result.SeedNames = seedNames(plan)
	result.Downloads, result.DownloadedBytes = from.counter.Objects.Load(), from.counter.Bytes.Load()
	return t.commit()
}

// plan opens the seeds and plans with them.
func (f *assembleFlags) plan(ctx context.Context, x *blob.Index, t *target, location string) (*seed.Plan, func(), error) {
	opened, closeSeeds, err := openSeeds(f.seeds)
	if err != nil {
		return nil, nil, err
	}
	err = t.refuseOverlap(opened, location)
	var seeds []seed.Seed
	if err == nil {
		seeds, err = learn(ctx, opened, f.seeds, x, f.common)
	}
	if err != nil {
		closeSeeds()
		return nil, nil, err
	}
	if t.old != nil {
		seeds = append(seeds, *t.old)
	}
	return seed.NewPlan(x, seeds...), closeSeeds, nil
}

func seedNames(p *seed.Plan) []string {
	names := []string{}
	for _, s := range p.Seeds {
		names = append(names, s.Name)
	}
	return names
}

// share says for the progress bar where the bytes come from.
func share(s assemble.Stats) string {
	var seeds int64
	for _, n := range s.Seeds {
		seeds += n
	}
	return fmt.Sprintf("in place %s, seeds %s, store %s", size(s.InPlace), size(seeds), size(s.Fetched))
}

// tellSources lists where the image's bytes come from.
func tellSources(w io.Writer, r assembled, got string) error {
	rows := [][]string{{"  in place", size(r.InPlace), percent(r.InPlace, r.Size)}}
	for i, name := range r.SeedNames {
		rows = append(rows, []string{"  from " + name, size(r.Seeds[i]), percent(r.Seeds[i], r.Size)})
	}
	if r.Copied > 0 {
		rows = append(rows, []string{"  repeats", size(r.Copied), percent(r.Copied, r.Size)})
	}
	fetched := fmt.Sprintf("%s, %s %s", chunks(r.Fetches), size(r.DownloadedBytes), got)
	rows = append(rows,
		[]string{"  zeros", size(r.Zero), percent(r.Zero, r.Size)},
		[]string{"  from the store", size(r.Fetched), percent(r.Fetched, r.Size), fetched})
	if r.SeedMiss > 0 {
		rows = append(rows, []string{"  (seeds did not hold " + chunks(r.SeedMiss) + " that their indexes say they do)"})
	}
	return table(w, rows)
}
