// Package imagemap draws where the bytes of an image come from, as one HTML file that needs nothing else: a map
// of the image, the totals and the largest downloads. It knows nothing of indexes and stores: a caller says of
// each chunk how large it is and where it comes from.
package imagemap

import (
	"fmt"
	"io"
	"iter"

	"cairn/seed"
)

// Chunk is the next chunk of an image.
type Chunk struct {
	Size   int64 // bytes, at least 1
	Kind   seed.Kind
	Seed   int   // for seed.Local: which of the page's Seeds
	Stored int64 // for seed.Fetch: bytes that it takes in the store, 0 when that is not known
}

// Page is what Render shows. Its texts may be anything; the page shows what can be printed of them, up to a
// limit.
type Page struct {
	Title  string          // what is planned or compared
	Size   int64           // of the image in bytes
	Seeds  []string        // names; the first few have colours of their own and the rest share one
	Chunks iter.Seq[Chunk] // the whole image in order
}

// MaxSize is the limit of a page in bytes, whatever it shows.
const MaxSize = 500 << 10

// Render writes p as one HTML file of less than MaxSize bytes. Chunks that are not what Chunk says, or do not
// add up to the image, are an error before anything is written; any other error is w's. It ranges over the chunks
// once, and keeps nothing of them.
func Render(w io.Writer, p Page) error {
	s, err := look(p)
	if err != nil {
		return fmt.Errorf("drawing the map of %q: %w", p.Title, err)
	}
	return write(w, show(p, s))
}
