// Package imagemap renders the sources of an image's bytes as one self-contained HTML file: a map of the image, the
// totals and the largest downloads. It does not know indexes and stores. The caller gives the size and the source of
// each chunk.
package imagemap

import (
	"fmt"
	"io"
	"iter"

	"cairn/seed"
)

// Chunk is one chunk of an image, with its source.
type Chunk struct {
	Size   int64 // bytes, at least 1
	Kind   seed.Kind
	Seed   int   // index in Page.Seeds; only for seed.Local
	Stored int64 // bytes in the store or the delta, or 0 if unknown; only for seed.Fetch and seed.Delta
}

// Page is the input of Render. Its texts may hold any bytes: Render removes unprintable characters and limits the
// length.
type Page struct {
	Title  string          // names the plan or the comparison
	Size   int64           // bytes of the image
	Seeds  []string        // names; if there are more than four, the fourth and later ones share a colour
	Chunks iter.Seq[Chunk] // all chunks of the image in order
}

// MaxSize is the limit of a page in bytes, for any input.
const MaxSize = 500 << 10

// Render writes p as one HTML file of less than MaxSize bytes. If a chunk is invalid, or the sizes of the chunks do
// not add up to the image's, it returns an error before it writes anything. All other errors are from w. It iterates
// over the chunks once, and its memory does not grow with their number.
func Render(w io.Writer, p Page) error {
	s, err := surveyPage(p)
	if err != nil {
		return fmt.Errorf("drawing the map of %q: %w", p.Title, err)
	}
	return writePage(w, newPageView(p, s))
}
