package deltadir

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"cairn/blob"
	"cairn/store"
)

// Source is where the bytes of an image come from: a file, a store, or a file and for the chunks that
// differ there, a store.
type Source struct {
	File   io.ReaderAt // may be nil
	Store  store.Getter
	Remote bool // the store is reached over a network: each chunk is fetched once, into a temporary file
}

// Image is an image that is read through its index, so that its bytes are verified. It keeps some chunks
// in memory. Safe for concurrent use.
type Image struct {
	Index *blob.Index
	from  Source
	ctx   context.Context // of the job, because io.ReaderAt takes none
	first *blob.Table     // finds the first of equal chunks

	loading sync.Mutex // held while chunks are fetched into the spool
	spool   *spool     // has chunks at their offsets in the image; nil if from is not remote
	spooled []bool     // by number of the chunk
	wanted  []bool     // chunks that will be read; those that follow a missing one are fetched with it

	mu     sync.Mutex // guards the fields below
	cached map[int]*list.Element
	recent *list.List // of cachedChunk, the last used one first
	bytes  int        // of cached chunks
	limit  int        // of bytes
}

type cachedChunk struct {
	number int
	data   []byte
}

const (
	cacheSize = 64 << 20
	// runSize limits the bytes that are read or fetched together.
	runSize = 4 << 20
)

// OpenImage returns the image of an index. Its reads fail when ctx ends. Close must be called.
func OpenImage(ctx context.Context, x *blob.Index, from Source) (*Image, error) {
	m := &Image{Index: x, from: from, ctx: ctx, first: blob.NewTable(x), cached: map[int]*list.Element{}, recent: list.New(), limit: cacheSize}
	if from.Remote {
		s, err := newSpool()
		if err != nil {
			return nil, err
		}
		m.spool, m.spooled = s, make([]bool, x.Len())
	}
	return m, nil
}

// Close releases the image's temporary file.
func (m *Image) Close() {
	if m.spool != nil {
		m.spool.close()
	}
}

// ReadAt implements io.ReaderAt. It returns only verified bytes.
func (m *Image) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) && off < m.Index.Size() {
		lo := m.Index.Find(off)
		last := min(off+min(int64(len(p)-n), runSize), m.Index.Size()) - 1
		chunks, err := m.readChunks(lo, m.Index.Find(last)+1)
		if err != nil {
			return n, err
		}
		for i, data := range chunks {
			c := m.Index.At(lo + i)
			skip, rest := off-c.Offset, min(c.End()-off, int64(len(p)-n))
			if data == nil {
				clear(p[n : n+int(rest)])
			} else {
				copy(p[n:], data[skip:skip+rest])
			}
			n, off = n+int(rest), off+rest
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readChunks returns the chunks from lo up to hi. A chunk of zeros is nil.
func (m *Image) readChunks(lo, hi int) ([][]byte, error) {
	chunks := make([][]byte, hi-lo)
	var missing []int
	for i := lo; i < hi; i++ {
		if m.Index.IsZero(i) {
			continue
		}
		if chunks[i-lo] = m.findCached(i); chunks[i-lo] == nil {
			chunks[i-lo] = make([]byte, m.Index.At(i).Size)
			missing = append(missing, i)
		}
	}
	if len(missing) == 0 {
		return chunks, nil
	}
	if err := m.load(missing, func(i int) []byte { return chunks[i-lo] }); err != nil {
		return nil, err
	}
	for _, i := range missing {
		m.addCached(i, chunks[i-lo])
	}
	return chunks, nil
}

func (m *Image) findCached(i int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.cached[i]
	if !ok {
		return nil
	}
	m.recent.MoveToFront(e)
	return e.Value.(cachedChunk).data
}

func (m *Image) addCached(i int, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.cached[i]; ok {
		return
	}
	m.cached[i] = m.recent.PushFront(cachedChunk{i, data})
	for m.bytes += len(data); m.bytes > m.limit; {
		oldest := m.recent.Remove(m.recent.Back()).(cachedChunk)
		delete(m.cached, oldest.number)
		m.bytes -= len(oldest.data)
	}
}

// load fills the memory of chunks.
func (m *Image) load(numbers []int, memory func(i int) []byte) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	var wants []store.Want
	for _, i := range numbers {
		has, err := m.readFile(i, memory(i))
		if err != nil {
			return err
		}
		if !has {
			wants = append(wants, store.Want{Digest: m.Index.At(i).Digest, Dst: memory(i)})
		}
	}
	switch {
	case len(wants) == 0:
		return nil
	case m.spool == nil:
		return store.GetAll(m.ctx, m.from.Store, wants, nil)
	}
	return m.loadSpooled(wants)
}

// readFile reads a chunk from the file, and reports whether it is there.
func (m *Image) readFile(i int, dst []byte) (bool, error) {
	if m.from.File == nil {
		return false, nil
	}
	c := m.Index.At(i)
	if n, err := m.from.File.ReadAt(dst, c.Offset); n < len(dst) && !errors.Is(err, io.EOF) {
		return false, err
	}
	if m.Index.Algorithm().Sum(dst) == c.Digest {
		return true, nil
	}
	if m.from.Store == nil {
		return false, &OtherBytesError{c.Offset}
	}
	return false, nil
}

// OtherBytesError reports that a file is not the image of an index.
type OtherBytesError struct{ Offset int64 }

func (e *OtherBytesError) Error() string {
	return fmt.Sprintf("it has other bytes than its index says, at %d", e.Offset)
}

// loadSpooled fills the wants from the spool, after it fetched the chunks that the spool lacks.
func (m *Image) loadSpooled(wants []store.Want) error {
	m.loading.Lock()
	defer m.loading.Unlock()
	for _, w := range wants {
		if !m.spooled[m.first.Find(w.Digest)] {
			if err := m.fetch(wants); err != nil {
				return err
			}
			break
		}
	}
	for _, w := range wants {
		if err := m.spool.readAt(w.Dst, m.Index.At(m.first.Find(w.Digest)).Offset); err != nil {
			return err
		}
	}
	return nil
}

// fetch writes the chunks of wants into the spool, and some of the wanted ones that follow.
func (m *Image) fetch(wants []store.Want) error {
	var numbers []int
	var missing []store.Want
	var bytes int64
	add := func(i int) {
		if m.spooled[i] {
			return
		}
		c := m.Index.At(i)
		m.spooled[i] = true // or the job fails
		numbers, bytes = append(numbers, i), bytes+c.Size
		missing = append(missing, store.Want{Digest: c.Digest, Dst: make([]byte, c.Size)})
	}
	last := 0
	for _, w := range wants {
		last = m.first.Find(w.Digest)
		add(last)
	}
	for i := last; i < len(m.wanted) && bytes < runSize; i++ {
		if m.wanted[i] {
			add(i)
		}
	}
	if err := store.GetAll(m.ctx, m.from.Store, missing, nil); err != nil {
		return err
	}
	for n, i := range numbers {
		if err := m.spool.writeAt(missing[n].Dst, m.Index.At(i).Offset); err != nil {
			return err
		}
	}
	return nil
}

// expect says which chunks will be read, each once and in order: those that old lacks.
func (m *Image) expect(old *blob.Index) {
	m.mu.Lock()
	m.limit = runSize
	m.mu.Unlock()
	if m.spool == nil {
		return
	}
	m.wanted = make([]bool, m.Index.Len())
	for i := range lackingChunks(old, m.Index) {
		m.wanted[i] = true
	}
}

// lackingChunks yields the distinct chunks of x that are not zeros, and that old lacks.
func lackingChunks(old, x *blob.Index) iter.Seq2[int, blob.Chunk] {
	return func(yield func(int, blob.Chunk) bool) {
		table, first := blob.NewTable(old), blob.NewTable(x)
		for i, c := range x.All() {
			if !x.IsZero(i) && table.Find(c.Digest) < 0 && first.Find(c.Digest) == i && !yield(i, c) {
				return
			}
		}
	}
}

// LackingBytes returns the bytes of the chunks of x that old lacks.
func LackingBytes(old, x *blob.Index) (n int64) {
	for _, c := range lackingChunks(old, x) {
		n += c.Size
	}
	return n
}
