package apply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"
	"time"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/internal/bitset"
	"cairn/store"
)

const (
	// maxJoined is the largest request of a Maker, unless a single payload is larger.
	maxJoined = 128 << 10
	// maxJoinedGap is the largest gap between two payloads of such a request. Its bytes are dropped.
	maxJoinedGap = 4 << 10
)

// makerBackoff is the time without requests after consecutive failed requests.
var makerBackoff = store.Backoff{First: 5 * time.Second, Max: 5 * time.Minute}

// errSilent is the cause of the end of a request without an answer.
var errSilent = fmt.Errorf("%w: no answer in time", store.ErrUnavailable)

// MakerOptions of a Maker. The zero value of a field selects its default.
type MakerOptions struct {
	// Admit calls request when a request to the server may be sent, and returns its error. request
	// returns the bytes of the chunks that it brings. If ctx ends before, Admit returns its error. Nil
	// admits all at once.
	Admit func(ctx context.Context, request func() (bytes int, err error)) error
	// Silence is the time without a byte of an answer after which a request fails. 0 is no limit.
	Silence time.Duration
	// GaveUp is called once when the Maker makes no more chunks, with the reason. It must not call the
	// Maker. May be nil.
	GaveUp func(err error)
}

// Maker makes single chunks from a delta, in any order. Each chunk is verified. A Maker requests only the
// payloads of wanted chunks. Those that wait for admission at the same time and lie together in the file
// are one request. After a failed request it makes no chunks for a while. It gives up if the file is not
// what its head says, or most chunks fail. Safe for concurrent use.
type Maker struct {
	index    *blob.Index
	table    *blob.Table
	file     *File
	old      io.ReaderAt
	decoders *Decoders
	options  MakerOptions
	unusable *bitset.Set // rows that are not held, or have failed

	mu       sync.Mutex // guards the fields below
	queue    map[int]*payload
	outcomes outcomes  // of chunks
	failures int       // consecutive failed requests
	until    time.Time // no request is sent before
	gaveUp   bool
}

// payload is the payload of a row that is requested, or is to be.
type payload struct {
	row   delta.Row
	leave context.CancelFunc // ends the wait for admission, if another request brings the payload
	done  chan struct{}      // closed when data or err is set
	data  []byte
	err   error
}

// NewMaker returns a Maker of the chunks of x's image whose ranges of the old image are held. The file must
// not be a stream. old reads the old image.
func NewMaker(
	x *blob.Index, f *File, held func(r delta.Range) bool, old io.ReaderAt, d *Decoders, o MakerOptions,
) *Maker {
	m := &Maker{
		index: x, table: blob.NewTable(x), file: f, old: old, decoders: d, options: o,
		unusable: bitset.New(f.Len()), queue: map[int]*payload{},
	}
	for n, row := range f.All() {
		// The format does not prove what a chunk takes in the store. A payload never has more bytes than its chunk.
		if row.Kind != delta.Frame || row.Size > x.At(row.Chunk).Size || !holdsAll(row.Ranges, held) {
			m.unusable.Add(n)
		}
	}
	return m
}

// Len returns the number of chunks that can be made.
func (m *Maker) Len() int { return m.file.Len() - m.unusable.Count() }

// Memory returns about how many bytes of memory the Maker takes, without its Decoders and requests.
func (m *Maker) Memory() int64 {
	const perChunk = 16 // of the table
	return m.file.Memory() + int64(cap(m.file.ahead)) + perChunk*int64(m.index.Len())
}

// MayMake reports whether Make may succeed. It does not block.
func (m *Maker) MayMake(d blob.Digest, size int64) bool {
	return m.findRow(d, size) >= 0 && m.mayRequest()
}

// findRow returns the number of the usable row of a chunk, or -1.
func (m *Maker) findRow(d blob.Digest, size int64) int {
	chunk := m.table.Find(d)
	if chunk < 0 || m.index.At(chunk).Size != size {
		return -1
	}
	n := sort.Search(m.file.Len(), func(n int) bool { return m.file.Row(n).Chunk >= chunk })
	if n == m.file.Len() || m.file.Row(n).Chunk != chunk || m.unusable.Has(n) {
		return -1
	}
	return n
}

func (m *Maker) mayRequest() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.gaveUp && !time.Now().Before(m.until)
}

// Make fills dst with a chunk, and reports whether it did.
func (m *Maker) Make(ctx context.Context, d blob.Digest, dst []byte) bool {
	n := m.findRow(d, int64(len(dst)))
	if n < 0 || !m.mayRequest() {
		return false
	}
	row := m.file.Row(n)
	data, err := m.readPayload(ctx, n, row)
	if err != nil {
		return false
	}
	err = m.decoders.decode(ctx, dst, row, data, m.old)
	if err == nil && m.index.Algorithm().Sum(dst) != d {
		err = fmt.Errorf("chunk %v: %w: other bytes came of it", d, errFailed)
	}
	if ctx.Err() == nil {
		m.countOutcome(n, err)
	}
	return err == nil
}

// countOutcome counts a decoded chunk. A row that fails is not used again.
func (m *Maker) countOutcome(row int, err error) {
	if err != nil {
		m.unusable.Add(row)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.outcomes.add(err) {
		m.giveUp(err)
	}
}

// giveUp ends the making of chunks. The caller holds mu.
func (m *Maker) giveUp(err error) {
	if m.gaveUp {
		return
	}
	m.gaveUp = true
	if m.options.GaveUp != nil {
		m.options.GaveUp(err)
	}
}

// readPayload returns the payload of row n.
func (m *Maker) readPayload(ctx context.Context, n int, row delta.Row) ([]byte, error) {
	if row.Offset+row.Size <= m.file.readEnd() {
		return m.file.ahead[row.Offset-m.file.HeadSize():][:row.Size], nil
	}
	wait, leave := context.WithCancel(ctx)
	defer leave()
	p, first := m.enqueue(n, row, leave)
	if first {
		err := m.admit(wait, func() (int, error) { return m.request(ctx, n) })
		m.cancelQueued(n, p, err)
	}
	select {
	case <-p.done:
		return p.data, p.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *Maker) admit(ctx context.Context, request func() (int, error)) error {
	if m.options.Admit != nil {
		return m.options.Admit(ctx, request)
	}
	_, err := request()
	return err
}

// enqueue returns the queued payload of row n. first reports whether the caller must request it.
func (m *Maker) enqueue(n int, row delta.Row, leave context.CancelFunc) (p *payload, first bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p = m.queue[n]; p != nil {
		return p, false
	}
	p = &payload{row: row, leave: leave, done: make(chan struct{})}
	m.queue[n] = p
	return p, true
}

// cancelQueued fails a payload that no request has taken, because the wait for admission ended.
func (m *Maker) cancelQueued(n int, p *payload, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.queue[n] == p {
		delete(m.queue, n)
		p.err = err
		close(p.done)
	}
}

// request requests the payload of row n, and those queued that lie beside it, unless another request has
// taken it. It returns the bytes of their chunks.
func (m *Maker) request(ctx context.Context, n int) (bytes int, err error) {
	batch := m.takeBatch(n)
	if len(batch) == 0 {
		return 0, context.Canceled
	}
	for _, p := range batch {
		bytes += int(m.index.At(p.row.Chunk).Size)
	}
	return bytes, m.readBatch(ctx, batch)
}

// takeBatch takes the payload of row n from the queue, and those beside it, in the order of the file.
func (m *Maker) takeBatch(n int) (batch []*payload) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.queue[n] == nil {
		return nil
	}
	first := m.queue[n].row
	start, end := first.Offset, first.Offset+first.Size
	lo, hi := n, n+1
	for i := n - 1; i >= 0; i-- {
		row := m.file.Row(i)
		if start-(row.Offset+row.Size) > maxJoinedGap || end-row.Offset > maxJoined {
			break
		}
		if m.queue[i] != nil {
			lo, start = i, row.Offset
		}
	}
	for i := n + 1; i < m.file.Len(); i++ {
		row := m.file.Row(i)
		if row.Offset-end > maxJoinedGap || row.Offset+row.Size-start > maxJoined {
			break
		}
		if m.queue[i] != nil {
			hi, end = i+1, row.Offset+row.Size
		}
	}
	for i := lo; i < hi; i++ {
		if p := m.queue[i]; p != nil {
			delete(m.queue, i)
			if i != n {
				p.leave()
			}
			batch = append(batch, p)
		}
	}
	return batch
}

// readBatch reads payloads, which are in the order of the file, with one request. A payload is handed out when
// its last byte has come.
func (m *Maker) readBatch(ctx context.Context, batch []*payload) error {
	requestCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	heard := func() {}
	if m.options.Silence > 0 {
		silence := time.AfterFunc(m.options.Silence, func() { cancel(errSilent) })
		defer silence.Stop()
		heard = func() { silence.Reset(m.options.Silence) }
	}
	start, last := batch[0].row.Offset, batch[len(batch)-1].row
	data := make([]byte, last.Offset+last.Size-start)
	read := func(part store.Part, in io.Reader) error {
		if err := m.file.checkPart(part, start); err != nil {
			return err
		}
		for filled := 0; filled < len(data); {
			n, err := in.Read(data[filled:])
			heard()
			filled += n
			for len(batch) > 0 && batch[0].row.Offset+batch[0].row.Size <= start+int64(filled) {
				p := batch[0]
				p.data = data[p.row.Offset-start:][:p.row.Size]
				close(p.done)
				batch = batch[1:]
			}
			if err != nil && filled < len(data) {
				return explain(fmt.Errorf("%w: it ends early", delta.ErrInvalid), err)
			}
		}
		return nil
	}
	err := store.StreamRange(requestCtx, m.file.reader, m.file.name, start, int64(len(data)), read)
	if len(batch) == 0 {
		err = nil
	} else if cause := context.Cause(requestCtx); errors.Is(cause, errSilent) {
		err = cause
	}
	if ctx.Err() == nil {
		m.noteRequest(err)
	}
	for _, p := range batch {
		p.err = err
		close(p.done)
	}
	return err
}

// noteRequest records the outcome of a request. A server that is unavailable is asked again after a while.
func (m *Maker) noteRequest(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil:
		m.failures = 0
	case errors.Is(err, store.ErrUnavailable):
		m.failures++
		m.until = time.Now().Add(makerBackoff.Longest(m.failures))
	default:
		m.giveUp(err)
	}
}
