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

// A target's old content is sampled before it is scanned, because a scan reads all of it before the
// first fetch. Content that the samples miss costs only a download.
const (
	maxSamples     = 64
	minSamples     = 8
	sampleBytes    = 16 << 20 // read for all samples, unless minSamples need more
	sampleChunks   = 4        // length of a sample in average chunks; nine in ten samples then hold a whole chunk
	tailShare      = 4        // one sample in tailShare lies behind the bytes that the image overwrites
	minSampleRatio = 4        // a target smaller than minSampleRatio times the samples is scanned without sampling
)

// measureUse reads samples of the first size bytes of r. It returns the length of the prefix of r that
// is worth a scan for the chunks of x. This is 0 if no sample holds a chunk of x.
func measureUse(ctx context.Context, x *blob.Index, r io.ReaderAt, size int64, workers int) (int64, error) {
	window := sampleChunks * x.Params().Avg
	count := max(min(sampleBytes/window, maxSamples), minSamples)
	if size < minSampleRatio*count*window {
		return size, nil
	}
	front := min(size, x.Size()+x.Size()/8) // former releases of the image most likely lie here
	tail := tailPlaces(front, size, count/tailShare)
	places := frontPlaces(x, size, count-int64(len(tail)))
	if len(places) == 0 {
		return 0, nil // x has no data that could be here
	}
	s := samples{r: r, window: window}
	s.at = s.placeSamples(append(places, tail...), size)
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

// frontPlaces returns about count offsets below size, spread evenly over the bytes of x that are not
// zero. An old release has its data at similar offsets, and a sparse one has nothing between them.
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

// tailPlaces returns up to count offsets from front up to size, in a geometric sequence. The rest of a
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

// samples is an io.ReaderAt of parts of r, concatenated.
type samples struct {
	r      io.ReaderAt
	window int64   // length of each part
	at     []int64 // offsets of the parts in r
}

func (s samples) size() int64 { return int64(len(s.at)) * s.window }

// placeSamples returns the places in order. It moves a place out of a hole and behind the sample before
// it, and drops places whose samples would extend past size.
func (s samples) placeSamples(places []int64, size int64) (spread []int64) {
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
