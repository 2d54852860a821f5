package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/store/locate"
)

func newInfo() *cobra.Command {
	var asJSON, chunks bool
	var f access
	var index []locate.Location // one
	c := &cobra.Command{
		Use:   "info INDEX",
		Short: "What an index says: size, chunks, digest, parameters, zero bytes",
		Example: `  cairn info v2.caibx
  cairn info https://images.example.com/v2.caibx --json`,
		Args: arguments(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			x, err := readAnyIndex(c.Context(), index[0], f)
			if err != nil {
				return err
			}
			d := describe(index[0].String(), x, chunks)
			d.Kind = release.KindOf(index[0], x)
			if asJSON {
				return writeJSON(c.OutOrStdout(), d)
			}
			return printInfo(c.OutOrStdout(), d)
		},
	}
	f.add(c)
	indexArgs(c, &index, 0, 1)
	c.Flags().BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	c.Flags().BoolVar(&chunks, "chunks", false, "list the chunks: offset, size, digest")
	return c
}

// description is what info --json prints.
type description struct {
	Index       string       `json:"index"`
	Kind        release.Kind `json:"kind"`
	Digest      string       `json:"index_digest"`
	Size        int64        `json:"size"`
	Chunks      int          `json:"chunks"`
	Distinct    int          `json:"distinct"`
	UniqueBytes int64        `json:"distinct_bytes"`
	ZeroBytes   int64        `json:"zero_bytes"`
	Algorithm   string       `json:"digest"`
	Min         int64        `json:"chunk_min"`
	Avg         int64        `json:"chunk_avg"`
	Max         int64        `json:"chunk_max"`
	List        []chunkLine  `json:"list,omitempty"`
}

type chunkLine struct {
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	Digest string `json:"digest"`
	Zero   bool   `json:"zero,omitempty"`
}

func describe(name string, x *blob.Index, list bool) description {
	p := x.Params()
	d := description{Index: name, Digest: x.Digest().String(), Size: x.Size(), Chunks: x.Len(),
		Algorithm: x.Algorithm().String(), Min: p.Min, Avg: p.Avg, Max: p.Max}
	table := blob.NewTable(x)
	for i, c := range x.All() {
		zero := x.IsZero(i)
		if zero {
			d.ZeroBytes += c.Size
		}
		if table.Find(c.Digest) == i {
			d.Distinct++
			d.UniqueBytes += c.Size
		}
		if list {
			d.List = append(d.List, chunkLine{c.Offset, c.Size, c.Digest.String(), zero})
		}
	}
	return d
}

func printInfo(w io.Writer, d description) error {
	rows := [][]string{
		{"index", d.Index},
		{"index digest", d.Digest},
		{"size", fmt.Sprintf("%d (%s)", d.Size, size(d.Size))},
		{"chunks", fmt.Sprintf("%d, of them %d different (%s)", d.Chunks, d.Distinct, size(d.UniqueBytes))},
		{"zero bytes", fmt.Sprintf("%d (%s)", d.ZeroBytes, plaintext.Percent(d.ZeroBytes, d.Size))},
		{"digest", d.Algorithm},
		{"chunk sizes", fmt.Sprintf("min %d, avg %d, max %d", d.Min, d.Avg, d.Max)},
	}
	if d.Kind != release.Image {
		rows = slices.Insert(rows, 1, []string{"kind", string(d.Kind)})
	}
	if err := table(w, rows); err != nil || len(d.List) == 0 {
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
	return table(w, rows)
}
