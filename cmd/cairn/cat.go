package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/deploy"
	"cairn/internal/confine"
	"cairn/internal/openfile"
	"cairn/seed/known"
	"cairn/store/locate"
	"cairn/store/supply"
)

type catFlags struct {
	stores
	seedFlags
	trustFlags
	index          locate.Location
	offset, length int64
}

func newCat() *cobra.Command {
	f := catFlags{length: -1}
	c := &cobra.Command{
		Use:   "cat INDEX",
		Short: "Write an image to stdout",
		Long: `cat writes the image of INDEX (a path, a URL, or - for stdin), or a part of it, to stdout. Each chunk is verified
before its bytes are written. Chunks that a seed holds are not downloaded. A block device on stdout is checked and
claimed first. 'cairn assemble INDEX -' also makes the image's first bytes invalid until the rest is written.`,
		Example: `  cairn cat v2.caibx --offset 1MiB --length 4096 | hexdump -C
  cairn cat https://images.example.com/v2.caibx --seed @root > v2.img`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error { return runCat(c.Context(), c.OutOrStdout(), f) },
	}
	f.stores.addFlags(c)
	f.confinement.addFlags(c)
	f.seedFlags.addFlags(c)
	indexArg(c, &f.index)
	f.addPatience(c)
	c.Flags().Var(bytesFlag(&f.offset), "offset", "begin at this number of `bytes` (default: 0)")
	c.Flags().Var(bytesFlag(&f.length), "length", "write this number of `bytes` (default: to the end)")
	checkStdioUse(c, func(u *stdioUsers, _ []string) {
		u.addLocation("INDEX", f.index)
		f.addReaders(u)
	})
	f.trustFlags.addTo(c)
	return c
}

// catMemory limits the bytes that cat reads ahead, and those that it keeps of repeated chunks.
const catMemory = 64 << 20

func runCat(ctx context.Context, stdout io.Writer, f catFlags) error {
	end, _, err := f.confineCalls(false, nil, slices.Concat(f.stores.locations(f.index), f.seedFlags.locations(), []locate.Location{f.index})...)
	if err != nil {
		return err
	}
	defer end()
	x, err := f.openIndex(ctx, &f.index, f.access, readIndex)
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
	from, err := f.open(ctx, f.index, x, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := openfile.RefuseClosed(openfile.Stdout, os.Stdout); err != nil {
		return err
	}
	o := f.deployOptions(ctx, from)
	to, err := o.ClaimSequence(ctx, stdout, os.Stdout, part.Size)
	if err != nil {
		return err
	}
	part.Writer = to.Writer
	if err = to.Finish(f.writePart(ctx, x, from, part, to, o)); err != nil {
		return streamError{fmt.Errorf("reading the image of %s: %w", f.index, err)}
	}
	return nil
}

// deployOptions returns the options for the plan of the part.
func (f *catFlags) deployOptions(ctx context.Context, from *supply.Supply) deploy.Options {
	return deploy.Options{
		LockWait: defaultLockWait, Seeds: f.seeds, Releases: f.releaseAccess(), State: known.Dir(f.state), Memory: catMemory,
		Far: from.Far(), Deltas: f.deltas(ctx, from), Workers: runtime.GOMAXPROCS(0), Notes: f.logDeployNote,
	}
}

// writePart writes a part of the image from the seeds and the stores.
func (f *catFlags) writePart(ctx context.Context, x *blob.Index, from *supply.Supply, part assemble.Sink, to *deploy.Sequence, o deploy.Options) error {
	plan, err := deploy.NewSequencePlan(ctx, x, part, to, o)
	if err != nil {
		return err
	}
	defer plan.Close()
	if err := f.confineFiles(confine.Policy{Write: makeDirs(0o755, f.cache)}); err != nil {
		return err
	}
	return plan.Stream(ctx, from, part)
}
