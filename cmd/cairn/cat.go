package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cairn/blob/view"
	"cairn/store/locate"
)

type catFlags struct {
	stores
	index          []locate.Location // one
	offset, length int64
}

func newCat() *cobra.Command {
	f := catFlags{length: -1}
	c := &cobra.Command{
		Use:     "cat INDEX",
		Short:   "Write an image to stdout",
		Example: `  cairn cat v2.caibx --offset 1MiB --length 4096 | hexdump -C`,
		Args:    arguments(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, _ []string) error { return runCat(c.Context(), c.OutOrStdout(), f) },
	}
	f.add(c)
	indexArgs(c, &f.index, 0, 1)
	f.addPatience(c)
	c.Flags().Var(bytesFlag{&f.offset}, "offset", "begin at that many `bytes` (default: 0)")
	length := c.Flags().VarPF(bytesFlag{&f.length}, "length", "", "write that many `bytes` (default: to the end)")
	length.DefValue = ""
	return c
}

func runCat(ctx context.Context, stdout io.Writer, f catFlags) error {
	index := f.index[0]
	x, err := readIndex(ctx, index, f.access)
	if err != nil {
		return err
	}
	if f.offset > x.Size() || f.length > x.Size()-f.offset {
		return fmt.Errorf("reading %s: --offset %d --length %d reach beyond the image's %d bytes", index, f.offset, max(f.length, 0), x.Size())
	}
	length := f.length
	if length < 0 {
		length = x.Size() - f.offset
	}
	from, err := openStores(f.stores, index, x.Algorithm(), 0)
	if err != nil {
		return err
	}
	defer from.close()
	cache := view.NewCache(ctx, view.Limits{})
	defer cache.Close()
	if err := view.New(x, cache.Source(from.chunks, from.fetches), view.Options{}).CopyTo(ctx, stdout, f.offset, length); err != nil {
		return fmt.Errorf("reading the image of %s: %w", index, err)
	}
	return nil
}
