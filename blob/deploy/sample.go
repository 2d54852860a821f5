package deploy

import (
	"context"
	"io"
	"math"
	"slices"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
)

// A target's old content is sampled before it is scanned: a scan reads all of it before anything is fetched. What the
// samples miss costs a download, as they are hints only.
const (
	mostSamples  = 64
	leastSamples = 8
	sampleBytes  = 16 << 20 // that are read in all, unless that is less than leastSamples
	sampleChunks = 4        // a sample is as long as so many average chunks: then nine in ten hold a whole one
	tailSamples  = 4        // one sample in so many is taken behind what the wanted image overwrites
	tooSmall     = 4        // a target is scanned as it is if it has less than so many times the samples' bytes
)

// measureUse reads samples of the first size bytes of r, and returns how many of them, from the start on, are worth a
// scan for the chunks of x; 0 when no sample holds a chunk of x.
func measureUse(ctx context.Context, x *blob.Index, r io.ReaderAt, size int64, workers int) (int64, error) {
	window := sampleChunks * x.Params().Avg
	count := max(min(sampleBytes/window, mostSamples), leastSamples)
	if size < tooSmall*count*window {
		return size, nil
	}
	front := min(size, x.Size()+x.Size()/8) // where former releases of the image lie, most likely
	tail := tailPlaces(front, size, count/tailSamples)
	places := frontPlaces(x, size, count-int64(len(tail)))
	if len(places) == 0 {
		return 0, nil // x has no data that could be here
	}
	s := samples{r: r, window: window}
	s.at = s.spread(append(places, tail...), size)
	o := scan.Like(x)
	o.Workers = workers
	found, _, err := scan.Image(ctx, chunker.FromReaderAt(s, s.size()), o)
	if err != nil {
		return 0, err
	}
	last, wanted := int64(-1), blob.NewTable(x)
	for i, c := range found.All() {
		if !found.IsZero(i) && wanted.Find(c.Digest) >= 0 {
			last = s.at[c.Offset/window]
		}
	}
	switch next, _ := slices.BinarySearch(tail, last+1); {
	case last < 0:
		return 0, nil
	case last < front:
		return front, nil
	case next < len(tail):
		return tail[next], nil
	}
	return size, nil
}

// frontPlaces returns count offsets below size, spread evenly over the bytes of x that are not zero. An old release has
// its data about there; a sparse one has nothing in between.
func frontPlaces(x *blob.Index, size, count int64) (places []int64) {
	counts := func(i int, c blob.Chunk) bool { return c.Offset < size && !x.IsZero(i) }
	var data int64
	for i, c := range x.All() {
		if counts(i, c) {
			data += c.Size
		}
	}
	step := data/count + 1
	next := step / 2
	for i, c := range x.All() {
		if !counts(i, c) {
			continue
		}
		for ; next < c.Size; next += step {
			places = append(places, c.Offset+next)
		}
		next -= c.Size
	}
	return places
}

// tailPlaces returns up to count offsets from front up to size, each as many times the one before: what is left of a
// longer release ends near front rather than far behind it.
func tailPlaces(front, size, count int64) (places []int64) {
	if front == 0 {
		return nil
	}
	ratio := math.Pow(float64(size)/float64(front), 1/float64(count))
	for at := float64(front); int64(at) < size && int64(len(places)) < count; at *= ratio {
		places = append(places, int64(at))
	}
	return places
}

// samples are parts of r, one behind the other.
type samples struct {
	r      io.ReaderAt
	window int64   // the length of each
	at     []int64 // where they begin
}

func (s samples) size() int64 { return int64(len(s.at)) * s.window }

// spread returns the places in order, without those whose samples are in a hole, overlap the one before or go beyond size.
func (s samples) spread(places []int64, size int64) (spread []int64) {
	sparse, isSparse := s.r.(chunker.Sparse)
	free := int64(0)
	for _, at := range places {
		if isSparse {
			if start, _, err := sparse.NextData(at); err == nil && start >= at+s.window {
				at = start
			}
		}
		if at = max(at, free); at <= size-s.window {
			spread = append(spread, at)
			free = at + s.window
		}
	}
	return spread
}

// ReadAt implements io.ReaderAt.
func (s samples) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && err == nil {
		number, within := off/s.window, off%s.window
		if number == int64(len(s.at)) {
			return n, io.EOF
		}
		part := p[n:min(int64(len(p)), int64(n)+s.window-within)]
		var k int
		if k, err = s.r.ReadAt(part, s.at[number]+within); k == len(part) {
			err = nil
		}
		n, off = n+k, off+int64(k)
	}
	return n, err
}
