package pack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"cairn/blob"
	"cairn/internal/transfer"
	"cairn/store"
	"cairn/store/chunkfile"
)

const (
	// maxRequests limits the requests that a Get sends at once, if no Admit does.
	maxRequests = 32
	// DefaultMemory is the memory of a Dir for whole packs in bytes.
	DefaultMemory = 32 << 20
	// refuseFor is the time for which a pack is not requested after it was absent, or most of its chunks were corrupt.
	refuseFor = time.Minute
	// leastCorrupt is the number of corrupt chunks after which a pack is refused if most of its chunks were corrupt.
	leastCorrupt = 16
	// maxAttempts is the number of requests for a span, of which all but the last brought some chunks and failed.
	maxAttempts = 3
)

// errSilent is the cause of the end of a request without an answer.
var errSilent = fmt.Errorf("%w: no answer in time", store.ErrUnavailable)

// Options of a Dir. The zero value of a field selects its default.
type Options struct {
	// Admit calls request when a request may be sent, and returns its error. request returns the bytes of the chunks
	// that it brings, or those that it receives if these are more. If ctx ends before, Admit returns its error. Nil
	// admits all at once.
	Admit func(ctx context.Context, request func() (bytes int, err error)) error
	// Silence returns the time without a byte of an answer after which a request fails as store.ErrUnavailable; 0 is no
	// limit. Nil never limits it.
	Silence func() time.Duration
	// Memory is the limit of the memory for whole packs, from a server without ranges, in bytes. A larger pack is
	// downloaded up to the last wanted chunk, in each Get.
	Memory int64
}

// Dir reads chunks from a directory of packs. It requests ranges of packs, each for many chunks. A server may send the
// whole pack instead: then it stays in memory, and serves other chunks of it. Safe for concurrent use.
type Dir struct {
	from    store.Reader
	sum     blob.Algorithm
	options Options
	decoder *chunkfile.Decoder
	whole   wholePacks

	mu      sync.Mutex // guards the fields below
	ranges  support
	probing chan struct{} // closed when the probe has ended; nil without a probe
	packs   map[blob.Digest]*health
}

// support is what is known of a server: whether it sends ranges.
type support int

const (
	unknown support = iota
	supported
	missing
)

// NewDir returns a Dir that reads chunks with algorithm's digests from the packs in a directory.
func NewDir(from store.Reader, a blob.Algorithm, o Options) *Dir {
	if o.Admit == nil {
		o.Admit = func(_ context.Context, request func() (int, error)) error { _, err := request(); return err }
	}
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	return &Dir{
		from: from, sum: a, options: o, decoder: chunkfile.NewDecoder(), packs: map[blob.Digest]*health{},
		whole: newWholePacks(o.Memory),
	}
}

// Get gets the wants as store.Getter does. find says where their chunks lie. A chunk that find does not find, or whose
// pack is absent, is store.ErrNotFound. A corrupt chunk is requested twice, since the transfer may have damaged it.
func (d *Dir) Get(ctx context.Context, find Finder, wants []store.Want, done func(i int, err error)) {
	var found []located
	for i, w := range wants {
		at, ok := find(w.Digest)
		if !ok {
			done(i, fmt.Errorf("chunk %v is in no pack: %w", w.Digest, store.ErrNotFound))
			continue
		}
		found = append(found, located{i, at})
	}
	spans := joinSpans(found)
	store.Each(len(spans), maxRequests, func(n int) {
		d.getSpan(ctx, spans[n], wants, done)
	})
}

// ReadFile appends the file of a chunk at a place to dst. It is not verified. Errors are those of store.Reader.Read.
func (d *Dir) ReadFile(ctx context.Context, at Place, dst []byte) ([]byte, error) {
	r := &fileSink{at: at, dst: dst}
	err := d.healthOf(at.Pack).refusal(time.Now())
	if err == nil {
		err = d.readSpan(ctx, span{at.Pack, []located{{at: at}}}, r)
	}
	if err != nil {
		return nil, err
	}
	return r.dst, nil
}

// getSpan gets the wants of a span.
func (d *Dir) getSpan(ctx context.Context, s span, wants []store.Want, done func(i int, err error)) {
	health := d.healthOf(s.pack)
	r := &receiver{decoder: d.decoder, sum: d.sum, wants: wants, left: s.wants, done: func(i int) { done(i, nil) }}
	err := health.refusal(time.Now())
	if err == nil {
		err = d.readTwice(ctx, s, r)
		bad := len(r.corrupt)
		if isInvalid(err) {
			bad += len(r.left)
		}
		health.addOutcomes(len(s.wants), bad, err)
	}
	for _, w := range r.corrupt {
		done(w.i, d.corruptError(s.pack, wants[w.i], r.failed))
	}
	for _, w := range r.left {
		done(w.i, d.describeError(s.pack, wants[w.i], err))
	}
}

// readTwice reads the wants of s, and those with wrong bytes a second time.
func (d *Dir) readTwice(ctx context.Context, s span, r *receiver) error {
	err := d.readOn(ctx, s, r)
	if err != nil || len(r.corrupt) == 0 {
		return err
	}
	d.whole.forget(s.pack)
	r.left, r.corrupt = r.corrupt, nil
	return d.readOn(ctx, s, r)
}

// readOn reads the wants that r has left. When a request fails after it brought some of them, the rest is requested.
func (d *Dir) readOn(ctx context.Context, s span, r *receiver) error {
	for attempt := 1; ; attempt++ {
		s.wants = r.left
		err := d.readSpan(ctx, s, r)
		progress := len(r.left) < len(s.wants)
		if !errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil || !progress || len(r.left) == 0 || attempt == maxAttempts {
			return err
		}
	}
}

// Has reports whether the directory has a pack, and learns whether the server sends ranges. A failure is
// store.ErrUnavailable or another error of a request.
func (d *Dir) Has(ctx context.Context, p Pack) (bool, error) {
	has := false
	err := store.StreamRange(ctx, d.from, p.Name(), 0, headSize, func(part store.Part, in io.Reader) error {
		head := make([]byte, headSize)
		if _, err := io.ReadFull(in, head); err != nil {
			return noEOF(err)
		}
		if has = string(head[:len(magic)]) == magic && (part.Size < 0 || part.Size == p.Size); has {
			d.setSupport(part.Whole)
		}
		return nil
	})
	if isInvalid(err) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDenied) {
		return false, nil
	}
	return has, err
}

// Cost returns how many requests calls of Get take for chunks at these places, and how many bytes they download.
func (d *Dir) Cost(calls [][]Place) (requests, bytes int64) {
	whole := d.support() == missing
	kept := map[Pack]bool{}
	for _, places := range calls {
		wants := make([]located, len(places))
		for i, at := range places {
			wants[i].at = at
		}
		for _, s := range joinSpans(wants) {
			switch size := s.size(); {
			case whole && kept[s.pack]:
				continue
			case whole && s.pack.Size <= d.options.Memory:
				kept[s.pack] = true
				bytes += s.pack.Size
			case whole:
				bytes += s.offset() + size
			default:
				bytes += size
			}
			requests++
		}
	}
	return requests, bytes
}

func (d *Dir) support() support {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ranges
}

// isInvalid reports whether an error says that the object is not the pack.
func isInvalid(err error) bool { return errors.Is(err, ErrInvalid) || errors.Is(err, store.ErrRange) }

func (d *Dir) corruptError(p Pack, w store.Want, err error) error {
	return &store.CorruptError{Name: fmt.Sprintf("chunk %v in %v/%s", w.Digest, d.from, p.Name()), Err: err}
}

// describeError converts the error of a request to one that store.Getter documents.
func (d *Dir) describeError(p Pack, w store.Want, err error) error {
	if isInvalid(err) {
		return d.corruptError(p, w, err)
	}
	return fmt.Errorf("chunk %v in a pack: %w", w.Digest, err)
}

// readSpan reads the wants of s that r has left.
func (d *Dir) readSpan(ctx context.Context, s span, r sink) error {
	ranges, endProbe, err := d.awaitProbe(ctx)
	if err != nil {
		return err
	}
	defer endProbe()
	if ranges == missing {
		return d.readWhole(ctx, s, r)
	}
	err = d.request(ctx, s.pack, s.offset(), s.size(), r, func(part store.Part, in io.Reader) error {
		lacking := part.Whole && (s.offset() > 0 || s.size() < s.pack.Size)
		if !part.Whole || lacking {
			d.setSupport(lacking)
			endProbe()
		}
		if !lacking || s.pack.Size > d.options.Memory {
			return r.receive(fileReader(in, part.Offset))
		}
		return d.keepWhole(ctx, s, r, in)
	})
	if errors.Is(err, transfer.ErrPart) { // its ranges are of no use
		d.setSupport(true)
		err = errNotKept
	}
	if errors.Is(err, errNotKept) {
		endProbe()
		return d.readWhole(ctx, s, r)
	}
	return err
}

// request requests n bytes of a pack from offset off on. It refuses an answer of another pack.
func (d *Dir) request(
	ctx context.Context, p Pack, off, n int64, r sink, use func(store.Part, io.Reader) error,
) error {
	return d.options.Admit(ctx, func() (int, error) {
		before, received := r.verified(), 0
		watched, heard, end := d.watchSilence(ctx)
		defer end()
		err := store.StreamRange(watched, d.from, p.Name(), off, n, func(part store.Part, in io.Reader) error {
			heard()
			if part.Size >= 0 && part.Size != p.Size {
				return fmt.Errorf("%w: it has %d bytes, not %d", ErrInvalid, part.Size, p.Size)
			}
			return use(part, readerFunc(func(p []byte) (int, error) {
				n, err := in.Read(p)
				heard()
				received += n
				return n, err
			}))
		})
		if cause := context.Cause(watched); err != nil && errors.Is(cause, errSilent) {
			err = cause
		}
		return max(r.verified()-before, received), err
	})
}

// watchSilence returns a context that ends when heard is not called for as long as a server may be silent.
func (d *Dir) watchSilence(ctx context.Context) (watched context.Context, heard, end func()) {
	limit := time.Duration(0)
	if d.options.Silence != nil {
		limit = d.options.Silence()
	}
	if limit == 0 {
		return ctx, func() {}, func() {}
	}
	watched, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(limit, func() { cancel(errSilent) })
	return watched, func() { timer.Reset(limit) }, func() { timer.Stop(); cancel(nil) }
}

// readerFunc is an io.Reader that calls the function.
type readerFunc func(p []byte) (int, error)

// Read implements io.Reader.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// awaitProbe returns what is known of the server. While that is nothing, one request at a time probes it, and others
// wait until endProbe is called.
func (d *Dir) awaitProbe(ctx context.Context) (ranges support, endProbe func(), err error) {
	for {
		ranges, probing := d.beginProbe()
		if ranges != unknown {
			return ranges, func() {}, nil
		}
		if probing == nil {
			return unknown, sync.OnceFunc(d.endProbe), nil
		}
		select {
		case <-probing:
		case <-ctx.Done():
			return unknown, nil, ctx.Err()
		}
	}
}

// beginProbe begins a probe if it is needed and none is under way. Otherwise it returns the end of the one under way.
func (d *Dir) beginProbe() (ranges support, probing chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ranges == unknown && d.probing == nil {
		d.probing = make(chan struct{})
		return unknown, nil
	}
	return d.ranges, d.probing
}

func (d *Dir) endProbe() {
	d.mu.Lock()
	defer d.mu.Unlock()
	close(d.probing)
	d.probing = nil
}

func (d *Dir) setSupport(lacking bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ranges = supported
	if lacking {
		d.ranges = missing
	}
}

// health is what requests for a pack have met.
type health struct {
	mu             sync.Mutex // guards the fields below
	until          time.Time  // the pack is refused before
	reason         error
	tried, corrupt int // chunks
}

func (d *Dir) healthOf(p Pack) *health {
	d.mu.Lock()
	defer d.mu.Unlock()
	h := d.packs[p.ID]
	if h == nil {
		h = new(health)
		d.packs[p.ID] = h
	}
	return h
}

// refusal returns why the pack is not requested now, or nil.
func (h *health) refusal(now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if now.Before(h.until) {
		return h.reason
	}
	return nil
}

// addOutcomes counts the chunks of a request for the pack, whose error is err.
func (h *health) addOutcomes(tried, corrupt int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tried += tried
	h.corrupt += corrupt
	switch {
	case errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDenied): // S3 may deny what is absent
		h.until, h.reason = time.Now().Add(refuseFor), err
	case h.corrupt >= leastCorrupt && 2*h.corrupt > h.tried:
		h.until, h.reason = time.Now().Add(refuseFor), fmt.Errorf("%w: most of its chunks were corrupt", ErrInvalid)
		h.tried, h.corrupt = 0, 0
	}
}
