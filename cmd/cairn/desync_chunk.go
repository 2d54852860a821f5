package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/ingest"
	"cairn/blob/scan"
	"cairn/chunker"
)

type desyncChunkFlags struct {
	digest blob.Algorithm
	params chunker.Params
	start  int64
}

// newDesyncChunk returns the hidden command that prints what 'desync chunk' prints.
func newDesyncChunk() *cobra.Command {
	f := desyncChunkFlags{params: chunker.Default}
	c := &cobra.Command{
		Use:    "desync-chunk FILE",
		Short:  "Print what 'desync chunk' prints",
		Hidden: true,
		Args:   checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return runDesyncChunk(c.Context(), c.OutOrStdout(), f, args[0])
		},
	}
	flags := c.Flags()
	localArg(c, 0, "FILE")
	flags.Var(digestFlag(&f.digest), "digest", "`name` of the digest algorithm")
	flags.Var(funcFlag{"sizes", "", func(text string) (err error) {
		f.params, err = chunker.ParseParams(text)
		return err
	}}, "chunk-size", "chunk `sizes` MIN:AVG:MAX in KiB")
	flags.Int64Var(&f.start, "start", 0, "begin at this offset")
	return c
}

// runDesyncChunk cuts a file from an offset on, and prints the offset, size and digest of each chunk.
func runDesyncChunk(ctx context.Context, stdout io.Writer, f desyncChunkFlags, file string) error {
	src, err := ingest.Open(ctx, file, ingest.Whole)
	if err != nil {
		return fmt.Errorf("opening %s: %w", file, err)
	}
	defer src.Close()
	from := src.Source
	if f.start != 0 {
		r := src.ReaderAt()
		if r == nil || f.start < 0 || f.start > src.Size {
			return usageError{errors.New("--start: want an offset in a file or device")}
		}
		from = chunker.FromReaderAt(io.NewSectionReader(r, f.start, src.Size-f.start), src.Size-f.start)
	}
	x, _, err := scan.Image(ctx, from, scan.Options{Algorithm: f.digest, Params: f.params, Workers: runtime.GOMAXPROCS(0)})
	if err != nil {
		return fmt.Errorf("cutting %s: %w", file, err)
	}
	w := bufio.NewWriter(stdout)
	for _, c := range x.All() {
		fmt.Fprintf(w, "%d\t%d\t%s\n", f.start+c.Offset, c.Size, c.Digest)
	}
	return w.Flush()
}
