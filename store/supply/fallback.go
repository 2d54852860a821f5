package supply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"cairn/store"
)

// fallback requests a chunk from its members in order until one supplies it. It also goes on after
// wrong bytes. An outcome is store.ErrNotFound only when every member proved absence; otherwise it
// holds the errors of the failed members.
//
// A failed member is asked last during its backoff, which grows with each failure. Then a single
// request probes it; a successful probe restores its place.
//
// When a remote answer takes much longer than usual, a second request goes to the next member, or
// to the same one if it is the last. The first answer counts. At most one in twenty requests is
// sent twice without use. Requests to a member that answers nothing at all do not count while there
// is another.
type fallback struct {
	members []*member
	spare   spare
}

// Get implements store.Getter. It requests all wants together from a local member. Over a network
// each want is requested by itself, since a member's health may change while requests are queued.
func (f *fallback) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	tried := make([]outcome, len(wants))
	left := numbers(len(wants))
	var asked []*member
	for _, m := range f.members {
		if !m.local || m.failing() || len(left) < 2 {
			break
		}
		asked = append(asked, m)
		left = getSome(ctx, m.from, wants, left, func(i int, err error) (next bool) {
			m.judge(ctx, err)
			if err == nil {
				done(i, nil)
				return false
			}
			tried[i].add(err)
			return true
		})
	}
	store.Each(len(left), f.most(), func(n int) {
		i := left[n]
		done(i, f.getOne(ctx, wants[i], asked, tried[i]))
	})
}

// most returns the largest number of requests that one link ever lets in at once.
func (f *fallback) most() (n int) {
	for _, m := range f.members {
		n = max(n, m.link.Most())
	}
	return n
}

// getOne requests a chunk from all members except the asked ones.
func (f *fallback) getOne(ctx context.Context, w store.Want, asked []*member, tried outcome) error {
	order := slices.DeleteFunc(f.order(time.Now()), func(m *member) bool { return slices.Contains(asked, m) })
	for n, m := range order {
		err := f.ask(ctx, m, order[min(n+1, len(order)-1)], w)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
		tried.add(err)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case tried.failed != nil:
		return tried.failed
	case tried.absent != nil:
		return tried.absent
	}
	return fmt.Errorf("chunk %v: no store to ask: %w", w.Digest, store.ErrNotFound)
}

// outcome holds the errors of the members that did not supply a chunk.
type outcome struct{ absent, failed error }

func (o *outcome) add(err error) {
	if errors.Is(err, store.ErrNotFound) {
		o.absent = join(o.absent, err)
	} else {
		o.failed = join(o.failed, err)
	}
}

// join is errors.Join on one line.
func join(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}

// order returns the members in the order of their requests: unhealthy members come last.
func (f *fallback) order(now time.Time) []*member {
	order, last := make([]*member, 0, len(f.members)), []*member(nil)
	for _, m := range f.members {
		if m.healthy(now) {
			order = append(order, m)
		} else {
			last = append(last, m)
		}
	}
	return append(order, last...)
}

// ask gets a chunk from m. When the answer is late, a second request goes to second, which may be
// m.
func (f *fallback) ask(ctx context.Context, m, second *member, w store.Want) error {
	if m.once {
		return m.get(ctx, w)
	}
	leave, err := m.link.enter(ctx)
	if err != nil {
		return err
	}
	f.spare.earn()
	r := newRace(ctx)
	defer r.end()
	r.run(func(ctx context.Context) entrant { return entrant{w.Dst, m.getInside(ctx, w, leave), true} })
	late := time.NewTimer(m.link.late())
	defer late.Stop()
	select {
	case first := <-r.finish:
		return first.err
	case <-late.C:
	}
	if silent := second != m && m.link.silent(); !silent && !f.spare.spend() {
		return (<-r.finish).err
	}
	r.run(func(ctx context.Context) entrant {
		own := store.Want{Digest: w.Digest, Dst: make([]byte, len(w.Dst))}
		return entrant{data: own.Dst, err: second.get(ctx, own)}
	})
	return f.winner(r, m, second, w.Dst)
}

// winner copies the first good answer of two into dst. If both fail it returns m's error, because
// getOne requests the chunk from second later.
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
				m.overtaken()
			}
		}
		return nil
	}
	return failed
}

// race is one chunk that is requested once or twice.
type race struct {
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	finish  chan entrant
}

type entrant struct {
	data  []byte
	err   error
	first bool // of the first request
}

func newRace(ctx context.Context) *race {
	ctx, cancel := context.WithCancel(ctx)
	return &race{ctx: ctx, cancel: cancel, finish: make(chan entrant, 2)}
}

func (r *race) run(request func(context.Context) entrant) {
	r.running.Go(func() { r.finish <- request(r.ctx) })
}

// end cancels the requests of the race and blocks until they have ended. Then the caller may reuse
// their memory.
func (r *race) end() {
	r.cancel()
	r.running.Wait()
}

// spare limits the requests that are sent twice without use to one in twenty, and a few at the
// start.
type spare struct {
	mu      sync.Mutex // guards the fields below
	earned  int
	started bool
}

const (
	spareFor  = 20 // requests that earn one second request
	spareMost = 8  // the most second requests that can be saved up
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

// refund returns the cost of a second request that was useful.
func (s *spare) refund() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.earned += spareFor
}
