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
	// defaultMemory is the memory for whole packs in bytes.
	defaultMemory = 32 << 20
	// refuseFor is the time for which a pack is not requested after it was absent, or most of its chunks were corrupt.
	refuseFor = time.Minute
	// leastCorrupt is the number of corrupt chunks after which a pack is refused if most of its chunks were corrupt.
	leastCorrupt = 16
)

// Options of a Dir. The zero value of a field selects its default.
type Options struct {
	// Admit calls request when a request may be sent, and returns its error. request returns the bytes of the chunks
	// that it brings. If ctx ends before, Admit returns its error. Nil admits all at once.
	Admit func(ctx context.Context, request func() (bytes int, err error)) error
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
		o.Memory = defaultMemory
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

// readTwice is readSpan, and reads corrupt chunks a second time.
func (d *Dir) readTwice(ctx context.Context, s span, r *receiver) error {
	err := d.readSpan(ctx, s, r)
	if err != nil || len(r.corrupt) == 0 {
		return err
	}
	d.whole.forget(s.pack)
	s.wants, r.left, r.corrupt = r.corrupt, r.corrupt, nil
	return d.readSpan(ctx, s, r)
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
func (d *Dir) readSpan(ctx context.Context, s span, r *receiver) error {
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
	ctx context.Context, p Pack, off, n int64, r *receiver, use func(store.Part, io.Reader) error,
) error {
	return d.options.Admit(ctx, func() (int, error) {
		before := r.bytes
		err := store.StreamRange(ctx, d.from, p.Name(), off, n, func(part store.Part, in io.Reader) error {
			if part.Size >= 0 && part.Size != p.Size {
				return fmt.Errorf("%w: it has %d bytes, not %d", ErrInvalid, part.Size, p.Size)
			}
			return use(part, in)
		})
		return r.bytes - before, err
	})
}

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
