package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/seed"
	"cairn/store/supply"
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
			m := f.remembering(c)
			m.frozen = true
			return runPlan(c.Context(), c.OutOrStdout(), f, m, drawing, standard(args[1], stdout))
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

func runPlan(ctx context.Context, stdout io.Writer, f planFlags, m memory, drawing drawFlags, location string) error {
	begun, index := time.Now(), f.index[0]
	if err := checkOutput(drawing.html); err != nil {
		return err
	}
	x, err := readImageIndex(ctx, index, f.access)
	if err != nil {
		return err
	}
	result := assembled{Index: index, Digest: x.Digest().String(), Target: location}
	drawn, err := f.preview(ctx, m, x, &result)
	if err != nil {
		return fmt.Errorf("planning %s onto %s: %w", index, shownTarget(location), err)
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
	fmt.Fprintf(stdout, "%s onto %s: %s\n", result.Index, shownTarget(location), size(x.Size()))
	return tellSources(stdout, result, "to download")
}

// preview does what assemble does, up to the point where something would change.
func (f *planFlags) preview(ctx context.Context, m memory, x *blob.Index, result *assembled) (p picture, err error) {
	before, inPlace, err := openBefore(result.Target, x.Size())
	stream := errors.Is(err, errStream)
	if err != nil && !stream {
		return p, err
	}
	var target io.ReaderAt
	if before != nil {
		defer before.Close()
		if equal, err := holds(ctx, before, x, f.jobs); equal || inPlace || err != nil {
			target = before
		}
	}
	from, err := openStores(f.stores, result.Index, x.Algorithm(), 0)
	if err != nil {
		return p, err
	}
	defer from.Close()
	seeds := openSeeds(f.seeds)
	defer closeSeeds(seeds)
	plan, _, err := f.plan(ctx, m, x, seeds, result.Target, before, inPlace)
	if err != nil {
		return p, err
	}
	if err := refusePlannedArchive(ctx, from, plan, target); err != nil {
		return p, err
	}
	bar := newProgress(f.progress, "planning "+result.Index.String(), x.Size())
	o := assemble.Options{Memory: f.memory, Stream: stream, Progress: func(s assemble.Stats) { bar.show(s.Done, share(s), s) }}
	stats, sources, err := assemble.Preview(ctx, plan, target, o)
	bar.end()
	if err != nil {
		return p, err
	}
	result.Stats, result.SeedNames, result.Downloads = stats, seedNames(plan), stats.Fetches
	p = picture{
		title: result.Index.String() + " onto " + shownTarget(result.Target), index: x, seeds: result.SeedNames, fetched: fetched(sources),
		source: func(i int) seed.Step { return sources[i] },
	}
	p.stored, err = storedSizes(ctx, from, x, p.fetched)
	result.DownloadedBytes = sum(p.stored)
	return p, err
}

func sum(sizes []int64) (total int64) {
	for _, n := range sizes {
		total += n
	}
	return total
}

// errStream says that an image would be written to a target as a stream.
var errStream = errors.New("a stream")

// openBefore opens what a target's name holds so far, if anything, and says whether the image would be
// written in its place. A stream holds nothing, which is errStream.
func openBefore(location string, need int64) (before *blockdev.File, inPlace bool, err error) {
	if isStream(location) {
		return nil, false, errStream
	}
	if err := refuseCharacter(location, need); err != nil {
		return nil, false, err
	}
	at, err := disk.Resolve(location)
	if err != nil {
		return nil, false, err
	}
	if err = blockdev.RefuseStray(at.Path, nil); err == nil {
		before, err = blockdev.OpenRead(at.Path, at.Section)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	inPlace = before.IsDevice() || at.Partition != nil
	if inPlace && before.Size() < need {
		before.Close()
		return nil, true, &blockdev.RefusedError{Path: location, Check: blockdev.CheckTooSmall, Hint: "choose a larger partition",
			Why: fmt.Sprintf("it holds %d bytes and %d are needed", before.Size(), need)}
	}
	return before, inPlace, nil
}

// fetched lists the chunks that come from the store, by number.
func fetched(sources []seed.Step) []int {
	var numbers []int
	for i, from := range sources {
		if from.Kind == seed.Fetch {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

// storedSizes asks the stores how many bytes each of the chunks with these numbers takes there.
func storedSizes(ctx context.Context, from *supply.Supply, x *blob.Index, numbers []int) ([]int64, error) {
	digests := make([]blob.Digest, len(numbers))
	for at, i := range numbers {
		digests[at] = x.At(i).Digest
	}
	return from.Sizes(ctx, digests)
}
