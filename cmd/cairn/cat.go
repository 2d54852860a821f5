package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"cairn/blob/assemble"
	"cairn/blob/deploy"
	"cairn/internal/confine"
	"cairn/internal/openfile"
	"cairn/seed"
	"cairn/store/locate"
)

type catFlags struct {
	stores
	index          locate.Location
	offset, length int64
}

func newCat() *cobra.Command {
	f := catFlags{length: -1}
	c := &cobra.Command{
		Use:   "cat INDEX",
		Short: "Write an image to stdout",
		Long: `cat writes the image of INDEX (a path, a URL, or - for stdin), or a part of it, to stdout. Each chunk is verified
before its bytes are written. A block device on stdout is checked and claimed first. 'cairn assemble INDEX -' also
makes the image's first bytes invalid until the rest is written.`,
		Example: `  cairn cat v2.caibx --offset 1MiB --length 4096 | hexdump -C`,
		Args:    checkArgs(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, _ []string) error { return runCat(c.Context(), c.OutOrStdout(), f) },
	}
	f.addFlags(c)
	f.confinement.addFlags(c)
	indexArg(c, &f.index)
	f.addPatience(c)
	c.Flags().Var(bytesFlag(&f.offset), "offset", "begin at this number of `bytes` (default: 0)")
	c.Flags().Var(bytesFlag(&f.length), "length", "write this number of `bytes` (default: to the end)")
	return c
}

// catMemory limits the bytes that cat reads ahead, and those that it keeps of repeated chunks.
const catMemory = 64 << 20

func runCat(ctx context.Context, stdout io.Writer, f catFlags) error {
	end, _, err := f.confineCalls(false, nil, append(f.stores.locations(f.index), f.index)...)
	if err != nil {
		return err
	}
	defer end()
	x, err := readIndex(ctx, f.index, f.access)
	if err != nil {
		return err
	}
	if f.offset > x.Size() || f.length > x.Size()-f.offset {
		return fmt.Errorf("reading %s: --offset %d --length %d reach beyond the image's %d bytes", f.index, f.offset, max(f.length, 0), x.Size())
	}
	part := assemble.Sink{Offset: f.offset, Size: f.length}
	if f.length < 0 {
		part.Size = x.Size() - f.offset
	}
	from, err := f.open(f.index, x.Algorithm(), 0)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := openfile.RefuseClosed(openfile.Stdout, os.Stdout); err != nil {
		return err
	}
	claim := deploy.Options{LockWait: defaultLockWait, Notes: new(planFlags).logDeployNote}
	w, finish, err := claim.ClaimSequence(ctx, stdout, os.Stdout, part.Size)
	if err != nil {
		return err
	}
	part.Writer = w
	if err := f.confineFiles(confine.Policy{Write: makeDirs(0o755, f.cache)}); err != nil {
		return finish(err)
	}
	_, err = assemble.Stream(ctx, seed.NewPlan(x), from, part, assemble.Options{Memory: catMemory, Far: from.Far()})
	if err = finish(err); err != nil {
		return streamError{fmt.Errorf("reading the image of %s: %w", f.index, err)}
	}
	return nil
}
