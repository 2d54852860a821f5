package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/internal/imagemap"
	"cairn/seed"
	"cairn/store/supply"
)

// picture is a map of an image by where its bytes come from, to be drawn as a page.
type picture struct {
	title  string
	index  *blob.Index
	seeds  []string
	from   func(i int) seed.Step // where chunk i comes from
	stored []int64               // the sizes in the store of the chunks to download, in order; nil when not known
}

// askSizes asks the stores for the sizes of the chunks to download, and returns their sum.
func (p *picture) askSizes(ctx context.Context, stores *supply.Supply) (total int64, err error) {
	var wanted []blob.Digest
	for i, c := range p.index.All() {
		if p.from(i).Kind == seed.Fetch {
			wanted = append(wanted, c.Digest)
		}
	}
	p.stored, err = stores.Sizes(ctx, wanted)
	for _, n := range p.stored {
		total += n
	}
	return total, err
}

// drawFlags say where a picture goes.
type drawFlags struct {
	html  string
	quiet bool
}

func (f *drawFlags) add(c *cobra.Command, what string) {
	c.Flags().StringVar(&f.html, "html", "",
		"draw a map of "+what+" to that `file`, each block coloured by where its bytes come from; - is stdout, with --quiet")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print no result on stdout")
	check(c, func([]string) error {
		if json, err := c.Flags().GetBool("json"); err == nil && json && f.quiet {
			return errors.New("--quiet and --json: want one of them")
		}
		return nil
	})
	takeDash(c, "html")
}

// writesStdout lists what goes to stdout.
func (f *drawFlags) writesStdout(u *users, json bool) {
	u.writes("the page of --html", f.html)
	u.prints("--json", json)
	u.prints("the result (--quiet leaves it out)", !json && !f.quiet)
}

// draw draws a picture, if that is wanted.
func (f *drawFlags) draw(ctx context.Context, p picture) error {
	if f.html == "" {
		return nil
	}
	var page bytes.Buffer
	err := imagemap.Render(&page, imagemap.Page{
		Title: p.title, Size: p.index.Size(), Seeds: p.seeds, Chunks: p.chunks(),
	})
	if err == nil {
		err = writeWhole(ctx, f.html, page.Bytes())
	}
	if err != nil {
		return fmt.Errorf("drawing %s: %w", f.html, err)
	}
	return nil
}

func (p picture) chunks() iter.Seq[imagemap.Chunk] {
	return func(yield func(imagemap.Chunk) bool) {
		stored := p.stored
		for i, c := range p.index.All() {
			from := p.from(i)
			chunk := imagemap.Chunk{Size: c.Size, Kind: from.Kind, Seed: int(from.Seed)}
			if from.Kind == seed.Fetch && len(stored) > 0 {
				chunk.Stored, stored = stored[0], stored[1:]
			}
			if !yield(chunk) {
				return
			}
		}
	}
}
