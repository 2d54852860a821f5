package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/internal/imagemap"
	"cairn/seed"
	"cairn/store/supply"
)

// picture describes a page that shows an image by the sources of its bytes.
type picture struct {
	title   string
	index   *blob.Index
	seeds   []string
	step    func(i int) seed.Step // the source of chunk i
	stored  []int64               // by number of the chunk, its size in the store; nil if unknown
	inDelta func(i int) int64     // size of chunk i in the delta; nil if no chunk is made from a delta
}

// quote asks the stores what it costs to fetch chunks, and draws their sizes.
func (p *picture) quote(ctx context.Context, stores *supply.Supply) (*supply.Quote, error) {
	var wanted []blob.Digest
	for i, c := range p.index.All() {
		if p.step(i).Kind == seed.Fetch {
			wanted = append(wanted, c.Digest)
		}
	}
	q, err := stores.Quote(ctx, wanted)
	if err != nil {
		return nil, err
	}
	p.stored = make([]int64, p.index.Len())
	for i, c := range p.index.All() {
		if p.step(i).Kind == seed.Fetch {
			p.stored[i] = q.Size(c.Digest)
		}
	}
	return q, nil
}

// digestsOf returns the digests of lists of chunks.
func digestsOf(x *blob.Index, calls [][]int) [][]blob.Digest {
	digests := make([][]blob.Digest, len(calls))
	for n, call := range calls {
		for _, i := range call {
			digests[n] = append(digests[n], x.At(i).Digest)
		}
	}
	return digests
}

// eachChunk yields the chunks of the page. It is an iter.Seq.
func (p *picture) eachChunk(yield func(imagemap.Chunk) bool) {
	for i, c := range p.index.All() {
		step := p.step(i)
		chunk := imagemap.Chunk{Size: c.Size, Kind: step.Kind, Seed: int(step.Seed)}
		switch {
		case step.Kind == seed.Fetch && p.stored != nil:
			chunk.Stored = p.stored[i]
		case step.Kind == seed.Delta:
			chunk.Stored = p.inDelta(i)
		}
		if !yield(chunk) {
			return
		}
	}
}

// drawFlags holds the flags that set where a picture goes.
type drawFlags struct {
	html  string
	quiet bool
}

func (f *drawFlags) addFlags(c *cobra.Command, image string) {
	c.Flags().StringVar(&f.html, "html", "",
		"write a page to this `file` that shows "+image+", each block coloured by the source of its bytes; - is stdout, with --quiet")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "print no result on stdout")
	addCheck(c, func([]string) error {
		if json, err := c.Flags().GetBool("json"); err == nil && json && f.quiet {
			return errors.New("--quiet and --json: want one of them")
		}
		return nil
	})
	allowDash(c, "html")
}

// addPrinters adds the outputs that are written to stdout.
func (f *drawFlags) addPrinters(u *stdioUsers, json bool) {
	u.addWriter("the page of --html", f.html)
	u.addPrinter("--json", json)
	u.addPrinter("the result (--quiet leaves it out)", !json && !f.quiet)
}

// writePage writes the page of --html.
func (f *drawFlags) writePage(ctx context.Context, p picture) error {
	if f.html == "" {
		return nil
	}
	var page bytes.Buffer
	err := imagemap.Render(&page, imagemap.Page{Title: p.title, Size: p.index.Size(), Seeds: p.seeds, Chunks: p.eachChunk})
	if err == nil {
		err = writeOutput(ctx, f.html, page.Bytes())
	}
	if err != nil {
		return fmt.Errorf("drawing %s: %w", f.html, err)
	}
	return nil
}
