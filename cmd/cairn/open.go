package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/store"
	"cairn/store/locate"
)

// readIndex reads an index, and notes on the terminal if it may be of a directory tree.
func readIndex(ctx context.Context, at locate.Location, a access) (*blob.Index, error) {
	x, err := readAnyIndex(ctx, at, a)
	if err == nil {
		noteKind(at, x)
	}
	return x, err
}

func readAnyIndex(ctx context.Context, at locate.Location, a access) (*blob.Index, error) {
	x, err := release.Open(ctx, a.releases(), at)
	return x, hintIndex(err)
}

// hintIndex adds a hint to the error about an index that is not there.
func hintIndex(err error) error { return absentHint(err, "check the index's location") }

// releases is the access to what is published.
func (f *access) releases() release.Access {
	return release.Access{Locate: f.open, Stdin: func(ctx context.Context) io.Reader { return cancellable(ctx, os.Stdin) }}
}

// file opens the directory that a file lies in, and returns the file's name there.
func (a access) file(at locate.Location) (store.Reader, string, error) {
	open, err := a.open()
	if err != nil {
		return nil, "", err
	}
	return open.File(at)
}

// closeReader ends what a reader may have running, such as an ssh. There is nothing to lose by then.
func closeReader(r store.Reader) {
	if c, ok := r.(io.Closer); ok {
		_ = c.Close()
	}
}

// cancellable reads from r until the context ends. A read that is under way then is left alone.
func cancellable(ctx context.Context, r io.Reader) io.Reader {
	pr, pw := io.Pipe()
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{pw}, r, make([]byte, 1<<20))
		pw.CloseWithError(err)
	}()
	context.AfterFunc(ctx, func() { pr.CloseWithError(ctx.Err()) })
	return pr
}

// patient writes to w. When the context has ended it does not wait for a reader: a write under way then is left alone,
// with its bytes. A reader that is gone (EPIPE) is reported to gone, and if that is nil, ignored.
type patient struct {
	ctx  context.Context
	w    io.Writer
	gone func()
}

// optional returns the writer for output that a job does not need: a reader that is gone does not end the job.
func optional(w io.Writer) io.Writer {
	if p, ok := w.(patient); ok {
		p.gone = nil
		return p
	}
	return w
}

func (p patient) Write(b []byte) (int, error) {
	n, err := p.write(b)
	switch {
	case !errors.Is(err, syscall.EPIPE):
	case p.gone == nil:
		return len(b), nil
	default:
		p.gone()
	}
	return n, err
}

func (p patient) write(b []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := p.w.Write(b)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return r.n, r.err
	case <-p.ctx.Done():
	}
	select {
	case r := <-done: // what is told in the end, when somebody reads it
		return r.n, r.err
	case <-time.After(time.Second):
		return 0, p.ctx.Err()
	}
}

// source is where chunks come from, and how much came over from the stores.
type source struct {
	chunks  store.Getter // a field, since embedding it would hide that it may be a store.ManyGetter
	fetches int          // how many it may be asked for at once
	counter store.Counter
	stores  []*store.Chunks // each of them, in order
	policy  store.Policy    // of asking again
	closers []func()
	gates   []*store.Gate // of those that are remote
}

// close ends what the stores have running.
func (s *source) close() {
	for _, end := range s.closers {
		end()
	}
}

// How many chunks are asked for at once where no flag says so. The gates before remote stores let through as
// many of them as are useful.
const (
	fetchesLocal  = 32
	fetchesRemote = 256
)

// of returns the stores of an index: those named, or the default one beside the index.
func (f *stores) of(index locate.Location) ([][]locate.Location, error) {
	if len(f.groups) > 0 {
		return f.groups, nil
	}
	beside, err := index.DefaultStore()
	return [][]locate.Location{{beside}}, err
}

// warnLeftOut says that a store of a group cannot be opened, if others stand in for it.
func warnLeftOut(group []locate.Location, err error) {
	if len(group) > 1 {
		say("warning: going on without one of the stores: %v", err)
	}
}

// openStores opens the stores of an index. No more than budget bytes are read from them, unless it is 0.
func openStores(f stores, index locate.Location, a blob.Algorithm, budget int64) (*source, error) {
	groups, err := f.of(index)
	if err != nil {
		return nil, err
	}
	access, err := f.open()
	if err != nil {
		return nil, err
	}
	access.Web.Connections, access.S3.Connections = fetchesRemote, fetchesRemote // gates say how many are used
	s := &source{fetches: cmp.Or(f.fetches, fetchesLocal), policy: access.Retry}
	var sources []store.Source
	limit := f.limiter(budget)
	for _, group := range groups {
		opened := len(sources)
		for _, at := range group {
			r, failed := access.Open(at)
			if failed != nil {
				err = absentHint(fmt.Errorf("opening store %s: %w", at, failed), "name the store with -s LOCATION")
				warnLeftOut(group, err)
				continue
			}
			s.closers = append(s.closers, func() { closeReader(r) })
			from := s.add(store.Meter(limit(r), &s.counter), a, f.gate(at))
			from.Once = budget > 0 // nobody knows how much came of a request that is cancelled
			sources = append(sources, from)
		}
		if len(sources) == opened {
			s.close()
			return nil, err
		}
	}
	switch gate := sources[0].Gate; {
	case gate == nil && len(sources) == 1:
		s.chunks = sources[0].Getter
	default:
		s.chunks = store.RetryGets(store.Fallback(sources...), s.policy)
	}
	if f.cache != "" {
		if err := s.addCache(f.cache, f.cacheLimit, a); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// add makes one more store of a reader.
func (s *source) add(r store.Reader, a blob.Algorithm, gate *store.Gate) store.Source {
	chunks := store.NewChunks(r, a)
	s.stores = append(s.stores, chunks)
	if gate != nil {
		s.fetches = max(s.fetches, gate.Most())
		s.gates = append(s.gates, gate)
	}
	return store.Source{Getter: chunks, Gate: gate}
}

// gate is what limits the requests to a store, or nil for one on this machine.
func (f *stores) gate(at locate.Location) *store.Gate {
	switch {
	case !at.Remote():
		return nil
	case f.fetches > 0:
		return store.NewFixedGate(f.fetches)
	}
	return store.NewGate(fetchesRemote)
}

// limiter returns what holds the readers of all stores within the limits that they share.
func (f *stores) limiter(budget int64) func(store.Reader) store.Reader {
	pace, purse := store.NewPace(f.rateLimit), store.NewBudget(budget)
	return func(r store.Reader) store.Reader {
		if f.rateLimit > 0 {
			r = pace.Limit(r)
		}
		if budget > 0 {
			r = purse.Limit(r)
		}
		return r
	}
}

// openImage opens the file, device or partition that a location means, for reading.
func openImage(location string) (*blockdev.File, error) {
	at, err := disk.Resolve(location)
	if err != nil {
		return nil, err
	}
	return blockdev.OpenRead(at.Path, at.Section)
}
