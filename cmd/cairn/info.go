package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/store/locate"
)

func newInfo() *cobra.Command {
	var asJSON, chunks bool
	var f access
	var index locate.Location
	c := &cobra.Command{
		Use:   "info INDEX",
		Short: "Print the size, chunks, digest and parameters of an index",
		Example: `  cairn info v2.caibx
  cairn info https://images.example.com/v2.caibx --json`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			x, err := readAnyIndex(c.Context(), index, f)
			if err != nil {
				return err
			}
			d := release.Describe(index, x, chunks)
			if asJSON {
				return writeJSON(c.OutOrStdout(), d)
			}
			return printInfo(c.OutOrStdout(), d)
		},
	}
	f.addFlags(c)
	indexArg(c, &index)
	addJSON(c, &asJSON)
	c.Flags().BoolVar(&chunks, "chunks", false, "list the chunks: offset, size, digest")
	return c
}

func printInfo(w io.Writer, d release.Description) error {
	rows := [][]string{
		{"index", d.Index},
		{"index digest", d.Digest},
		{"size", fmt.Sprintf("%d (%s)", d.Size, plaintext.Size(d.Size))},
		{"chunks", fmt.Sprintf("%d, of them %d different (%s)", d.Chunks, d.Distinct, plaintext.Size(d.DistinctBytes))},
		{"zero bytes", fmt.Sprintf("%d (%s)", d.ZeroBytes, plaintext.Percent(d.ZeroBytes, d.Size))},
		{"digest", d.Algorithm},
		{"chunk sizes", fmt.Sprintf("min %d, avg %d, max %d", d.Min, d.Avg, d.Max)},
	}
	if d.Kind != release.Image {
		rows = slices.Insert(rows, 1, []string{"kind", string(d.Kind)})
	}
	if err := plaintext.WriteTable(w, rows); err != nil || len(d.List) == 0 {
		return err
	}
	rows = [][]string{nil, {"offset", "size", "digest"}}
	for _, c := range d.List {
		note := ""
		if c.Zero {
			note = "zero"
		}
		rows = append(rows, []string{strconv.FormatInt(c.Offset, 10), strconv.FormatInt(c.Size, 10), c.Digest, note})
	}
	return plaintext.WriteTable(w, rows)
}
