package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/internal/blockdev"
	"cairn/store"
)

func newPlan() *cobra.Command {
	var f assembleFlags
	c := &cobra.Command{
		Use:   "plan INDEX TARGET",
		Short: "What assemble would do: bytes in place, from each seed, zero, to download; writes nothing",
		Long: `plan reads what assemble would read, hashes it, and tells exactly where each byte would come from and how much
would be downloaded. It writes nothing, and needs no claim on the target.`,
		Example: `  cairn plan v2.caibx PARTLABEL=root-b --seed PARTLABEL=root-a`,
		Args:    arguments(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return runPlan(c.Context(), c.OutOrStdout(), f, args[0], args[1])
		},
	}
	f.add(c)
	return c
}

func runPlan(ctx context.Context, stdout io.Writer, f assembleFlags, index, location string) error {
	x, err := readIndex(ctx, index)
	if err != nil {
		return err
	}
	result := assembled{Index: index, Target: location}
	if err := f.preview(ctx, x, &result); err != nil {
		return fmt.Errorf("planning %s onto %s: %w", index, location, err)
	}
	if f.json {
		return writeJSON(stdout, result)
	}
	fmt.Fprintf(stdout, "%s onto %s: %s\n", index, location, size(x.Size()))
	return tellSources(stdout, result, "to download")
}

func (f *assembleFlags) preview(ctx context.Context, x *blob.Index, result *assembled) error {
	old, err := openOld(result.Target, x.Size())
	if err != nil {
		return err
	}
	var t target
	var at io.ReaderAt
	if old != nil {
		defer old.Close()
		t.bytes, at = []*blockdev.File{old}, old
	}
	plan, closeSeeds, err := f.plan(ctx, x, &t, result.Target)
	if err != nil {
		return err
	}
	defer closeSeeds()
	p := newProgress(f.progress, "planning "+result.Index, x.Size())
	o := assemble.Options{Progress: func(s assemble.Stats) { p.show(s.Done, share(s), s) }}
	stats, sources, err := assemble.Preview(ctx, plan, at, o)
	p.end()
	if err != nil {
		return err
	}
	result.Stats, result.SeedNames, result.Downloads = stats, seedNames(plan), stats.Fetches
	from, err := openStores(f.stores, result.Index, x.Algorithm())
	if err != nil {
		return err
	}
	defer from.close()
	result.DownloadedBytes, err = from.storedSize(ctx, x, fetched(sources), f.fetches)
	return err
}

// openOld opens what a target holds, or nothing if it is a file that is not there yet.
func openOld(location string, need int64) (*blockdev.File, error) {
	old, err := openImage(location)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && old.IsDevice() && old.Size() < need {
		old.Close()
		err = &blockdev.RefusedError{Path: location, Why: fmt.Sprintf("it holds %d bytes and %d are needed", old.Size(), need),
			Hint: "choose a larger partition"}
	}
	return old, err
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
