package pack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"cairn/store"
)

var (
	// errNotKept reports that the answer with a whole pack was not read.
	errNotKept = errors.New("the whole pack is not kept")
	// errAbandoned reports that the request that brought a whole pack was cancelled.
	errAbandoned = errors.New("the request for the pack was cancelled")
)

// wholePacks are packs in memory, complete or on their way, from a server that does not send ranges. Each is downloaded
// by one request at a time.
type wholePacks struct {
	limit int64 // of the memory, in bytes

	mu    sync.Mutex // guards the fields below
	used  int64      // bytes of the packs, also of those on their way
	packs []*whole   // the least recently used first
	ended chan struct{}
}

func newWholePacks(limit int64) wholePacks {
	return wholePacks{limit: limit, ended: make(chan struct{})}
}

// whole is a pack in memory or on its way.
type whole struct {
	pack Pack

	mu    sync.Mutex // guards the fields below
	data  []byte     // the first bytes of the file
	ended bool       // no more bytes come
	err   error      // why, if some are missing
	more  chan struct{}
}

// claim returns a pack. owner reports that the caller must download it and call end. While there is no room for the
// pack, claim blocks.
func (w *wholePacks) claim(ctx context.Context, p Pack) (f *whole, owner bool, err error) {
	for {
		f, owner, ended := w.tryClaim(p)
		if f != nil {
			return f, owner, nil
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

func (w *wholePacks) tryClaim(p Pack) (f *whole, owner bool, ended chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at := w.find(p); at >= 0 {
		f := w.packs[at]
		w.packs = append(slices.Delete(w.packs, at, at+1), f)
		return f, false, nil
	}
	for n := 0; n < len(w.packs) && w.used+p.Size > w.limit; {
		if w.packs[n].hasEnded() {
			w.remove(n)
		} else {
			n++
		}
	}
	if w.used+p.Size > w.limit {
		return nil, false, w.ended
	}
	f = &whole{pack: p, more: make(chan struct{})}
	w.packs = append(w.packs, f)
	w.used += p.Size
	return f, true, nil
}

// find returns the position of a pack, or -1. The caller holds mu.
func (w *wholePacks) find(p Pack) int {
	return slices.IndexFunc(w.packs, func(f *whole) bool { return f.pack == p })
}

// remove removes the pack at a position. The caller holds mu.
func (w *wholePacks) remove(at int) {
	w.used -= w.packs[at].pack.Size
	w.packs = slices.Delete(w.packs, at, at+1)
}

// end ends the download of a pack. After an error the pack is not kept.
func (w *wholePacks) end(f *whole, err error) {
	f.setEnd(err)
	w.mu.Lock()
	defer w.mu.Unlock()
	if at := slices.Index(w.packs, f); at >= 0 && err != nil {
		w.remove(at)
	}
	close(w.ended)
	w.ended = make(chan struct{})
}

// forget drops a pack from memory, unless it is on its way.
func (w *wholePacks) forget(p Pack) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at := w.find(p); at >= 0 && w.packs[at].hasEnded() {
		w.remove(at)
	}
}

func (f *whole) hasEnded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ended
}

// setEnd records that no more bytes come, and wakes those who wait for them.
func (f *whole) setEnd(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended, f.err = true, err
	close(f.more)
}

// awaitBytes blocks until the first n bytes of the file are there, and returns the file.
func (f *whole) awaitBytes(ctx context.Context, n int64) ([]byte, error) {
	for {
		f.mu.Lock()
		data, ended, err, more := f.data, f.ended, f.err, f.more
		f.mu.Unlock()
		switch {
		case int64(len(data)) >= n:
			return data, nil
		case ended:
			return nil, err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// readStep is the number of bytes after which those who wait for a whole pack are woken.
const readStep = 64 << 10

// fill reads on from in until the first n bytes of the file are there. Only the owner calls it.
func (f *whole) fill(in io.Reader, n int64) error {
	data := f.data
	for int64(len(data)) < n {
		if len(data) == cap(data) { // memory grows with the bytes that arrive
			data = append(make([]byte, 0, min(f.pack.Size, int64(2*len(data)+readStep))), data...)
		}
		step := min(int64(cap(data)-len(data)), readStep, n-int64(len(data)))
		got, err := io.ReadFull(in, data[len(data):int64(len(data))+step])
		data = data[:len(data)+got]
		f.publish(data)
		if err != nil {
			return noEOF(err)
		}
	}
	return nil
}

// publish shows the bytes that have arrived to those who wait.
func (f *whole) publish(data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data = data
	close(f.more)
	f.more = make(chan struct{})
}

// readWhole reads the wants of s that r has left from the whole pack: from memory, or else from a request for it.
func (d *Dir) readWhole(ctx context.Context, s span, r sink) error {
	if s.pack.Size > d.options.Memory {
		end := s.offset() + s.size()
		return d.request(ctx, s.pack, 0, end, r, func(part store.Part, in io.Reader) error {
			return r.receive(fileReader(in, 0))
		})
	}
	for {
		f, owner, err := d.whole.claim(ctx, s.pack)
		if err != nil {
			return err
		}
		if owner {
			return d.download(ctx, f, r, func(use func(in io.Reader) error) error {
				return d.request(ctx, s.pack, 0, s.pack.Size, r, func(_ store.Part, in io.Reader) error { return use(in) })
			})
		}
		err = r.receive(func(at Place) ([]byte, error) {
			data, err := f.awaitBytes(ctx, at.End())
			if err != nil {
				return nil, err
			}
			return data[at.Offset:at.End()], nil
		})
		if !errors.Is(err, errAbandoned) {
			return err
		}
	}
}

// keepWhole keeps the whole pack, which a server sends in place of a range, and gives r its wants. If another request
// brings the pack, or there is no room for it, keepWhole returns errNotKept. It must not wait for room, because those
// who have it may wait for the end of this request.
func (d *Dir) keepWhole(ctx context.Context, s span, r sink, in io.Reader) error {
	f, owner, _ := d.whole.tryClaim(s.pack)
	if !owner {
		return errNotKept
	}
	return d.download(ctx, f, r, func(use func(in io.Reader) error) error { return use(in) })
}

// download fills f with a pack, which send reads from its start, and gives r its wants as soon as their bytes arrive.
func (d *Dir) download(ctx context.Context, f *whole, r sink, send func(use func(in io.Reader) error) error) error {
	err := send(func(in io.Reader) error {
		if _, err := io.CopyN(io.Discard, in, int64(len(f.data))); err != nil { // those of an earlier answer
			return noEOF(err)
		}
		if err := f.fill(in, headSize); err != nil {
			return err
		}
		if string(f.data[:len(magic)]) != magic {
			return fmt.Errorf("%w: not a pack", ErrInvalid)
		}
		err := r.receive(func(at Place) ([]byte, error) {
			if err := f.fill(in, at.End()); err != nil {
				return nil, err
			}
			return f.data[at.Offset:at.End()], nil
		})
		if err != nil {
			return err
		}
		return f.fill(in, f.pack.Size)
	})
	if err != nil && ctx.Err() != nil {
		d.whole.end(f, errAbandoned)
		return ctx.Err()
	}
	d.whole.end(f, err)
	return err
}
