package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"cairn/blob/assemble"
	"cairn/blob/deploy"
	"cairn/internal/blockdev"
	"cairn/internal/openfile"
	"cairn/seed"
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
		Use:   "cat INDEX",
		Short: "Write an image to stdout",
		Long: `cat writes the image of INDEX (a path, a URL, or - for stdin), or a part of it, to stdout, each byte after its chunk was
hashed. A block device there is checked and claimed before; 'cairn assemble INDEX -' also writes its head last.`,
		Example: `  cairn cat v2.caibx --offset 1MiB --length 4096 | hexdump -C`,
		Args:    arguments(cobra.ExactArgs(1)),
		RunE:    func(c *cobra.Command, _ []string) error { return runCat(c.Context(), c.OutOrStdout(), f) },
	}
	f.add(c)
	indexArgs(c, &f.index, 0, 1)
	f.addPatience(c)
	c.Flags().Var(bytesFlag{value: &f.offset}, "offset", "begin at that many `bytes` (default: 0)")
	length := c.Flags().VarPF(bytesFlag{value: &f.length}, "length", "", "write that many `bytes` (default: to the end)")
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
	part := assemble.Sink{Offset: f.offset, Size: f.length}
	if f.length < 0 {
		part.Size = x.Size() - f.offset
	}
	from, err := openStores(f.stores, index, x.Algorithm(), 0)
	if err != nil {
		return err
	}
	defer from.Close()
	out, finish, err := catOutput(ctx, stdout, part.Size)
	if err != nil {
		return err
	}
	part.Writer = out
	o := assemble.Options{Memory: catMemory, Far: from.Far()}
	_, err = assemble.Stream(ctx, seed.NewPlan(x), from, part, o)
	if err = finish(err); err != nil {
		return streamError{fmt.Errorf("reading the image of %s: %w", index, err)}
	}
	return nil
}

// catMemory is how many bytes are fetched ahead, and kept for their repeats.
const catMemory = 64 << 20

// catOutput is stdout, and what ends its use. A block device there is claimed.
func catOutput(ctx context.Context, stdout io.Writer, size int64) (io.Writer, func(error) error, error) {
	info, err := os.Stdout.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !blockdev.IsBlockDevice(info) {
		return catStream(stdout, info)
	}
	o := deploy.Options{LockWait: defaultLockWait, Notes: new(planFlags).tell}
	t, passed, err := o.ClaimOpened(ctx, openfile.Node(os.Stdout, info), os.Stdout, size)
	if err != nil {
		return nil, nil, err
	}
	return io.NewOffsetWriter(t, 0), func(err error) error {
		if err == nil {
			err = errors.Join(t.Sync(), passed())
		}
		return errors.Join(err, t.Close())
	}, nil
}

// catStream is stdout where that is no block device. A file keeps what it has behind the last byte, as with cat(1).
func catStream(to io.Writer, info fs.FileInfo) (io.Writer, func(error) error, error) {
	err := openfile.RefuseClosed(stdout, os.Stdout)
	if err == nil && info.Mode().IsRegular() {
		err = blockdev.RefuseStray(openfile.Node(os.Stdout, info), nil)
	}
	if err != nil {
		return nil, nil, err
	}
	out, err := openfile.NewOutput(to, os.Stdout)
	if err != nil {
		return nil, nil, err
	}
	out.KeepRest = true
	return out, func(err error) error {
		if err != nil {
			return err
		}
		return out.Close()
	}, nil
}
