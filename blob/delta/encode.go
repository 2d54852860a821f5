package delta

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/store/chunkfile"
)

// Image is an image with its index.
type Image struct {
	Index *blob.Index
	Data  io.ReaderAt
}

// Options are the settings of Make.
type Options struct {
	Workers int // number of concurrent workers, at least 1; more than 6 are not used
	// Progress is called with the bytes of the chunks that are encoded, and of all that will be. It is
	// never called concurrently. May be nil.
	Progress func(done, all int64)
	// Sample is the largest number of chunks that are encoded; 0 is all. They are evenly spread. To read
	// less of the old image, matches of a chunk are searched only where chunks of the sample were, by
	// their neighbours.
	Sample int
}

// Made is the content of a delta's file.
type Made struct {
	Head
	Tried    []int // numbers of the chunks that were encoded; Rows lacks those that were left out
	Rows     []Row // without Offset
	Payloads int64 // bytes
}

// Make encodes the chunks that to has and from lacks, or a sample of them. It writes their payloads to w,
// in the order of the rows. A chunk is left out if its payload would not be smaller than its file in a
// store. Every payload is decoded and compared. The result does not depend on the number of workers.
func Make(ctx context.Context, from, to Image, w io.Writer, o Options) (*Made, error) {
	if from.Index.Algorithm() != to.Index.Algorithm() {
		return nil, errors.New("making a delta: the indexes have different digest algorithms")
	}
	m := &maker{from: from, to: to, places: findPlaces(from.Index, to.Index), out: w,
		sampling: o.Sample > 0, progress: o.Progress,
		made: &Made{Head: Head{to.Index.Algorithm(), from.Index.Digest(), to.Index.Digest(), from.Index.Size()}}}
	m.places.limitWanted(o.Sample)
	m.between, m.made.Tried = m.places.findBetween(), m.places.wanted
	for _, i := range m.places.wanted {
		m.all += to.Index.At(i).Size
	}
	if err := m.run(ctx, min(o.Workers, maxWorkers)); err != nil {
		return nil, fmt.Errorf("making a delta: %w", err)
	}
	return m.made, nil
}

type maker struct {
	from, to Image
	places   *places
	between  []between // by number of the wanted chunk
	anchors  *anchors
	sampling bool
	progress func(done, all int64)

	mu         sync.Mutex // guards the fields below
	out        io.Writer
	made       *Made
	pending    map[int]encoded // by number of the wanted chunk; encoded before an earlier one
	next       int             // the next wanted chunk to write
	references int64           // bytes of the ranges that are written
	done, all  int64
}

// encoded is the result for a wanted chunk. It has no payload if the chunk is left out.
type encoded struct {
	row     Row
	payload []byte
}

// maxWorkers limits memory: a worker takes up to 90 MiB, most of it for its encoder's tables.
const maxWorkers = 6

// aheadPerWorker is the number of chunks by which workers may be ahead of the first one that is not
// encoded.
const aheadPerWorker = 16

func (m *maker) run(ctx context.Context, workers int) (err error) {
	if len(m.places.wanted) == 0 {
		return nil
	}
	if m.anchors, err = newAnchors(ctx, m.from.Data, m.searched(), maxAnchors); err != nil {
		return fmt.Errorf("reading the old image: %w", err)
	}
	m.pending = make(map[int]encoded)
	group, ctx := errgroup.WithContext(ctx)
	work, slots := make(chan int), make(chan struct{}, aheadPerWorker*workers)
	group.Go(func() error {
		defer close(work)
		for n := range m.places.wanted {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			select {
			case work <- n:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		group.Go(func() error {
			e, err := newEncoder(m)
			if err != nil {
				return err
			}
			defer e.decoder.Close()
			for n := range work {
				result, err := e.encodeChunk(n)
				if err != nil {
					return err
				}
				written, err := m.add(n, result)
				if err != nil {
					return err
				}
				for range written {
					<-slots
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// searched returns the ranges of the old image in which matches are searched.
func (m *maker) searched() (list []Range) {
	if !m.sampling {
		return m.places.vanished()
	}
	for n, i := range m.places.wanted {
		c := m.to.Index.At(i)
		list = append(list, m.between[n].ranges(c.Offset, c.Size, m.from.Index.Size())...)
	}
	return joinRanges(list, 0, m.from.Index.Size())
}

// add writes the payloads of a chunk and of those that waited for it. It returns their number.
func (m *maker) add(n int, e encoded) (written int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pending[n] = e
	for {
		e, ok := m.pending[m.next]
		if !ok {
			return written, nil
		}
		delete(m.pending, m.next)
		if err := m.write(e); err != nil {
			return written, err
		}
		m.done += m.to.Index.At(m.places.wanted[m.next]).Size
		m.next++
		written++
		if m.progress != nil {
			m.progress(m.done, m.all)
		}
	}
}

func (m *maker) write(e encoded) error {
	references := m.references + sizeOf(e.row.Ranges)
	if len(e.payload) == 0 || references > MaxReferences*m.from.Index.Size() {
		return nil
	}
	if _, err := m.out.Write(e.payload); err != nil {
		return err
	}
	m.references = references
	m.made.Rows = append(m.made.Rows, e.row)
	m.made.Payloads += e.row.Size
	return nil
}

// encoder encodes chunks. Each worker has one.
type encoder struct {
	*maker
	frames  *frameEncoder
	files   *chunkfile.Encoder
	decoder *Decoder
	window  window

	chunk, reference, check, file []byte
}

func newEncoder(m *maker) (*encoder, error) {
	frames, err := newFrameEncoder()
	if err != nil {
		return nil, err
	}
	files, err := chunkfile.NewEncoder(storeLevel)
	if err != nil {
		return nil, err
	}
	return &encoder{maker: m, frames: frames, files: files, decoder: NewDecoder(),
		window: window{image: m.from.Data, size: m.from.Index.Size()}}, nil
}

const (
	storeLevel = 3 // of make's default, for the size of a chunk's file
	// rowCost is about what a row takes in the table besides its ranges, and rangeCost what a range takes.
	rowCost, rangeCost = 8, 6
	// leastGain is what a row must save to be worth a range of a request.
	leastGain = 200
)

// encodeChunk encodes a wanted chunk. Its reference is the place between its neighbours, and its matches elsewhere. The
// result is empty if its file in a store is about as small.
func (e *encoder) encodeChunk(n int) (result encoded, err error) {
	i := e.places.wanted[n]
	c := e.to.Index.At(i)
	e.chunk = resize(e.chunk, c.Size)
	if _, err := e.to.Data.ReadAt(e.chunk, c.Offset); err != nil && !errors.Is(err, io.EOF) {
		return result, fmt.Errorf("reading the new image: %w", err)
	}
	if e.to.Index.Algorithm().Sum(e.chunk) != c.Digest {
		return result, fmt.Errorf("the new image has other bytes than its index at %d", c.Offset)
	}
	if e.file, err = e.files.Encode(e.file, e.chunk); err != nil {
		return result, err
	}
	stored, oldSize := int64(len(e.file)), e.from.Index.Size()
	near := e.between[n]
	matches := e.anchors.matches(&e.window, e.chunk, near.start(c))
	ranges := addMatches(near.ranges(c.Offset, c.Size, oldSize), matches, oldSize)
	if e.window.err != nil {
		return result, fmt.Errorf("reading the old image: %w", e.window.err)
	}
	if len(ranges) == 0 {
		return result, nil
	}
	payload, err := e.encodeFrame(ranges)
	if err != nil {
		return result, err
	}
	if cost := int64(len(payload)) + rowCost + rangeCost*int64(len(ranges)); cost < stored-leastGain {
		result.row = Row{Chunk: i, Kind: Frame, Size: int64(len(payload)), Stored: stored, Ranges: ranges}
		result.payload = payload
	}
	return result, nil
}

// encodeFrame encodes the chunk with a reference, and checks that it decodes.
func (e *encoder) encodeFrame(ranges []Range) ([]byte, error) {
	var err error
	if e.reference, err = ReadReference(e.reference, e.from.Data, ranges); err != nil {
		return nil, err
	}
	payload, err := e.frames.encode(nil, e.reference, e.chunk)
	if err != nil {
		return nil, err
	}
	e.check = resize(e.check, int64(len(e.chunk)))
	if err := e.decoder.Decode(e.check, e.reference, payload); err != nil {
		return nil, err
	}
	if !slices.Equal(e.check, e.chunk) {
		return nil, errors.New("a payload decodes to other bytes than were encoded")
	}
	return payload, nil
}

// start returns the old offset of a chunk's first byte by its neighbours.
func (b between) start(c blob.Chunk) int64 {
	switch {
	case b.before >= 0:
		return b.before
	case b.after >= 0:
		return b.after - c.Size
	}
	return c.Offset
}

func resize(b []byte, n int64) []byte { return slices.Grow(b[:0], int(n))[:n] }
