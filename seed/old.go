package seed

import (
	"fmt"
	"io"

	"cairn/blob"
)

// OldImage is an image that the seeds hold, as a whole or in part. Its bytes are those that the seeds
// hold at the presumed places: nothing is verified. It is immutable.
type OldImage struct{ plan *Plan }

// NewOldImage returns the image of x, as seeds hold it.
func NewOldImage(x *blob.Index, seeds ...Seed) *OldImage { return &OldImage{NewPlan(x, seeds...)} }

// Memory returns about how many bytes of memory the image takes, without the indexes of the seeds.
func (o *OldImage) Memory() int64 {
	const row, step, tablePerChunk = 40, 8, 16
	n := int64(o.plan.Index.Len()) * (row + step + tablePerChunk)
	for _, s := range o.plan.Seeds {
		n += tablePerChunk * int64(s.Index.Len())
	}
	return n
}

// Holds reports whether n bytes of the image from offset off on can be read.
func (o *OldImage) Holds(off, n int64) bool {
	x := o.plan.Index
	if n < 1 || off < 0 || off > x.Size()-n {
		return false
	}
	for i := x.Find(off); i < x.Len() && x.At(i).Offset < off+n; i++ {
		if o.source(i).Kind == Fetch {
			return false
		}
	}
	return true
}

// source returns the step of the chunk's bytes, which is none of kind Copy.
func (o *OldImage) source(i int) Step {
	s := o.plan.At(i)
	if s.Kind == Copy {
		return o.plan.At(int(s.From))
	}
	return s
}

// ReadAt implements io.ReaderAt. It fails at the first byte that is not held.
func (o *OldImage) ReadAt(p []byte, off int64) (n int, err error) {
	x := o.plan.Index
	if off < 0 {
		return 0, fmt.Errorf("reading the old image at %d", off)
	}
	for i := x.Find(off); n < len(p); {
		if i >= x.Len() {
			return n, io.EOF
		}
		c, step := x.At(i), o.source(i)
		skip := off + int64(n) - c.Offset
		if step.Kind != Local {
			k := int(min(int64(len(p)-n), c.Size-skip))
			if step.Kind != Zero {
				return n, fmt.Errorf("no seed holds byte %d of the old image", off+int64(n))
			}
			clear(p[n:][:k])
			n += k
			i++
			continue
		}
		// The chunks that follow in the same seed are part of the same read.
		place, end := o.plan.Place(step), c.End()
		for i++; i < x.Len() && end < off+int64(len(p)); i++ {
			next := o.source(i)
			if next.Kind != Local || o.plan.Place(next) != (Place{place.Seed, place.Offset + end - c.Offset}) {
				break
			}
			end = x.At(i).End()
		}
		k := int(min(int64(len(p)-n), end-c.Offset-skip))
		m, err := o.plan.Seeds[place.Seed].Data.ReadAt(p[n:][:k], place.Offset+skip)
		n += m
		if m < k {
			return n, err
		}
	}
	return n, nil
}
