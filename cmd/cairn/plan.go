package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/store"
)

func newPlan() *cobra.Command {
	var f planFlags
	c := &cobra.Command{
		Use:   "plan INDEX TARGET",
		Short: "What assemble would do: bytes in place, from each seed, zero, to download; writes nothing",
		Long: `plan reads what assemble would read, hashes it, and tells exactly where each byte would come from and how much
would be downloaded. It writes nothing, and needs no claim on the target.`,
		Example: `  cairn plan v2.caibx PARTLABEL=root-b --seed PARTLABEL=root-a`,
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			m := f.remembering(c)
			m.frozen = true
			return runPlan(c.Context(), c.OutOrStdout(), f, m, args[0], args[1])
		},
	}
	f.add(c)
	return c
}

func runPlan(ctx context.Context, stdout io.Writer, f planFlags, m memory, index, location string) error {
	begun := time.Now()
	x, err := readIndex(ctx, index)
	if err != nil {
		return err
	}
	result := assembled{Index: index, Digest: x.Digest().String(), Target: location}
	if err := f.preview(ctx, m, x, &result); err != nil {
		return fmt.Errorf("planning %s onto %s: %w", index, location, err)
	}
	result.Seconds = time.Since(begun).Seconds()
	if f.json {
		return writeJSON(stdout, result)
	}
	fmt.Fprintf(stdout, "%s onto %s: %s\n", index, location, size(x.Size()))
	return tellSources(stdout, result, "to download")
}

// preview does what assemble does, up to the point where something would change.
func (f *planFlags) preview(ctx context.Context, m memory, x *blob.Index, result *assembled) error {
	before, inPlace, err := openBefore(result.Target, x.Size())
	if err != nil {
		return err
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
		return err
	}
	defer from.close()
	seeds, err := openSeeds(f.seeds)
	if err != nil {
		return err
	}
	defer closeSeeds(seeds)
	plan, _, err := f.plan(ctx, m, x, seeds, result.Target, before, inPlace)
	if err != nil {
		return err
	}
	p := newProgress(f.progress, "planning "+result.Index, x.Size())
	o := assemble.Options{Memory: f.memory, Progress: func(s assemble.Stats) { p.show(s.Done, share(s), s) }}
	stats, sources, err := assemble.Preview(ctx, plan, target, o)
	p.end()
	if err != nil {
		return err
	}
	result.Stats, result.SeedNames, result.Downloads = stats, seedNames(plan), stats.Fetches
	result.DownloadedBytes, err = from.storedSize(ctx, x, fetched(sources), f.fetches)
	return err
}

// openBefore opens what a target's name holds so far, if anything, and says whether the image would be
// written in its place.
func openBefore(location string, need int64) (before *blockdev.File, inPlace bool, err error) {
	at, err := disk.Resolve(location)
	if err != nil {
		return nil, false, err
	}
	before, err = blockdev.OpenRead(at.Path, at.Section)
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
func fetched(sources []assemble.Source) []int {
	var numbers []int
	for i, from := range sources {
		if from.Kind == assemble.Fetched {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

// storedSize asks the stores how many bytes the chunks with these numbers take there.
func (s *source) storedSize(ctx context.Context, x *blob.Index, numbers []int, atOnce int) (int64, error) {
	var total atomic.Int64
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, i := range numbers {
		group.Go(func() error {
			n, err := s.stat(groupCtx, x.At(i).Digest, x.Algorithm())
			total.Add(n)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	return total.Load(), ctx.Err()
}

// stat is the size of a chunk in the first store that has it.
func (s *source) stat(ctx context.Context, d blob.Digest, a blob.Algorithm) (int64, error) {
	var errs []error
	for _, r := range s.readers {
		n, err := store.NewChunks(r, a).Stat(ctx, d)
		if err == nil {
			return n, nil
		}
		errs = append(errs, err)
	}
	return 0, fmt.Errorf("chunk %v: %w", d, errors.Join(errs...))
}
