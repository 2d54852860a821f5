package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cairn/blob"
)

// Source is a store as one of several.
type Source struct {
	Getter Getter
	// Gate limits how many requests are under way, and says that the store is reached over a network, so
	// that an answer may be slow. Nil for a store on this machine.
	Gate *Gate
	// Once says that no second request is sent for a slow answer.
	Once bool
}

// Fallback asks the sources in order until one supplies the chunk, also when one has other bytes. It is
// ErrNotFound only when every one of them proved absence; otherwise the error holds those of the sources that
// failed. A source that failed is asked last for a while, which gets longer each time; then a single request
// tries it again, and when that is answered it has its place back.
//
// When a network's answer takes much longer than usual, a second request is sent, to the next source or else
// to the same one, and the first answer counts. One in twenty requests may be sent twice in vain, and any request
// to a source that does not answer at all while there is another.
func Fallback(sources ...Source) Getter {
	f := &fallback{}
	for _, s := range sources {
		f.members = append(f.members, &member{Source: s})
	}
	return f
}

type fallback struct {
	members []*member
	spare   spare
}

func (f *fallback) Get(ctx context.Context, d blob.Digest, dst []byte) error {
	var absent, failed error
	order := f.order(time.Now())
	for i, m := range order {
		err := f.ask(ctx, m, order[min(i+1, len(order)-1)], d, dst)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, ErrNotFound) {
			absent = join(absent, err)
		} else {
			failed = join(failed, err)
		}
	}
	switch {
	case failed != nil:
		return failed
	case absent != nil:
		return absent
	}
	return fmt.Errorf("chunk %v: no store to ask: %w", d, ErrNotFound)
}

// join is errors.Join on one line.
func join(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}

// order is the members as they are to be asked: those that failed lately come last.
func (f *fallback) order(now time.Time) []*member {
	if len(f.members) < 2 {
		return f.members
	}
	order, last := make([]*member, 0, len(f.members)), []*member(nil)
	for _, m := range f.members {
		if m.well(now) {
			order = append(order, m)
		} else {
			last = append(last, m)
		}
	}
	return append(order, last...)
}

// ask gets a chunk from m, and when m takes long from the second too, which may be m.
func (f *fallback) ask(ctx context.Context, m, second *member, d blob.Digest, dst []byte) error {
	leave, err := m.enter(ctx)
	if err != nil {
		return err
	}
	if m.Gate == nil || m.Once {
		return m.get(ctx, leave, d, dst)
	}
	f.spare.earn()
	r := newRace(ctx)
	defer r.end()
	r.run(func(ctx context.Context) entrant { return entrant{dst, m.get(ctx, leave, d, dst), true} })
	patience := time.NewTimer(m.patience())
	defer patience.Stop()
	select {
	case first := <-r.finish:
		return first.err
	case <-patience.C:
	}
	if silent := second != m && m.silent(); !silent && !f.spare.spend() {
		return (<-r.finish).err
	}
	r.run(func(ctx context.Context) entrant { return second.enterAndGet(ctx, d, len(dst)) })
	return f.winner(r, m, second, dst)
}

// winner puts the first good answer of two into dst. When there is none, what m said counts: another source's word
// on its own bytes is no word on m's, and it is asked in its turn.
func (f *fallback) winner(r *race, m, second *member, dst []byte) error {
	var failed error
	for range 2 {
		e := <-r.finish
		if e.err != nil {
			if e.first {
				failed = e.err
			}
			continue
		}
		r.end()
		if !e.first {
			copy(dst, e.data)
			f.spare.refund()
			if second != m {
				m.late()
			}
		}
		return nil
	}
	return failed
}

// race is one chunk on its way by up to two ways.
type race struct {
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	finish  chan entrant
}

type entrant struct {
	data  []byte
	err   error
	first bool // the one that the caller asked
}

func newRace(ctx context.Context) *race {
	ctx, cancel := context.WithCancel(ctx)
	return &race{ctx: ctx, cancel: cancel, finish: make(chan entrant, 2)}
}

func (r *race) run(way func(context.Context) entrant) {
	r.running.Go(func() { r.finish <- way(r.ctx) })
}

// end returns when nothing of the race is under way any more: its memory is the caller's then.
func (r *race) end() {
	r.cancel()
	r.running.Wait()
}

// spare is how many requests may be sent twice in vain: one in twenty, and a few to begin with.
type spare struct {
	mu      sync.Mutex // guards what follows
	earned  int
	started bool
}

const (
	spareFor  = 20 // requests that earn one
	spareMost = 8  // that can be saved up
)

func (s *spare) earn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		s.started, s.earned = true, spareMost*spareFor/2
	}
	s.earned = min(s.earned+1, spareMost*spareFor)
}

func (s *spare) spend() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.earned < spareFor {
		return false
	}
	s.earned -= spareFor
	return true
}

// refund gives back what was spent, as the second request was of use.
func (s *spare) refund() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.earned += spareFor
}
