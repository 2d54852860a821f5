package supply

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cairn/store"
)

// fallback asks its members in order until one supplies a chunk, also when one has other bytes. An outcome is
// store.ErrNotFound only when every one of them proved absence; otherwise it holds the errors of the members that
// failed. A member that failed is asked last for a while, which gets longer each time; then a single request tries it
// again, and when that is answered it has its place back.
//
// When a network's answer takes much longer than usual, a second request is sent, to the next member or else to the
// same one, and the first answer counts. One in twenty requests may be sent twice in vain, and any request to a member
// that does not answer at all while there is another.
type fallback struct {
	members []*member
	spare   spare
}

// Get implements store.Getter. The wants that one member does not supply are asked of the next one together.
func (f *fallback) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	absent, failed := make([]error, len(wants)), make([]error, len(wants))
	left, order := numbers(len(wants)), f.order(time.Now())
	for n, m := range order {
		if len(left) == 0 || ctx.Err() != nil {
			break
		}
		left = getSome(ctx, asked{f, m, order[min(n+1, len(order)-1)]}, wants, left, func(i int, err error) (next bool) {
			switch {
			case err == nil:
				done(i, nil)
				return false
			case errors.Is(err, store.ErrNotFound):
				absent[i] = join(absent[i], err)
			default:
				failed[i] = join(failed[i], err)
			}
			return true
		})
	}
	for _, i := range left {
		switch {
		case ctx.Err() != nil:
			done(i, ctx.Err())
		case failed[i] != nil:
			done(i, failed[i])
		case absent[i] != nil:
			done(i, absent[i])
		default:
			done(i, fmt.Errorf("chunk %v: no store to ask: %w", wants[i].Digest, store.ErrNotFound))
		}
	}
}

// join is errors.Join on one line.
func join(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}

// order returns the members in the order in which they are asked: those that failed lately come last.
func (f *fallback) order(now time.Time) []*member {
	if len(f.members) < 2 {
		return f.members
	}
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

// asked is a member in its turn. When an answer is late a second request goes to second, which may be the same.
type asked struct {
	f         *fallback
	m, second *member
}

// Get implements store.Getter.
func (a asked) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	if a.m.local && len(wants) > 1 {
		a.m.from.Get(ctx, wants, func(i int, err error) {
			a.m.judge(ctx, err)
			done(i, err)
		})
		return
	}
	store.Each(len(wants), a.m.link.Most(), func(i int) { done(i, a.get(ctx, wants[i])) })
}

// get gets a chunk from m, and when the answer is late from the second too.
func (a asked) get(ctx context.Context, w store.Want) error {
	if a.m.once {
		return a.m.get(ctx, w)
	}
	leave, err := a.m.link.enter(ctx)
	if err != nil {
		return err
	}
	a.f.spare.earn()
	r := newRace(ctx)
	defer r.end()
	r.run(func(ctx context.Context) entrant { return entrant{w.Dst, a.m.getInside(ctx, w, leave), true} })
	late := time.NewTimer(a.m.link.late())
	defer late.Stop()
	select {
	case first := <-r.finish:
		return first.err
	case <-late.C:
	}
	if silent := a.second != a.m && a.m.link.silent(); !silent && !a.f.spare.spend() {
		return (<-r.finish).err
	}
	r.run(func(ctx context.Context) entrant {
		own := store.Want{Digest: w.Digest, Dst: make([]byte, len(w.Dst))}
		return entrant{data: own.Dst, err: a.second.get(ctx, own)}
	})
	return a.winner(r, w.Dst)
}

// winner puts the first good answer of two into dst. If both fail it returns m's error: the second is asked as a member
// of its own later.
func (a asked) winner(r *race, dst []byte) error {
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
			a.f.spare.refund()
			if a.second != a.m {
				a.m.overtaken()
			}
		}
		return nil
	}
	return failed
}

// race is one chunk that is requested up to two times.
type race struct {
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
	finish  chan entrant
}

type entrant struct {
	data  []byte
	err   error
	first bool // the first request
}

func newRace(ctx context.Context) *race {
	ctx, cancel := context.WithCancel(ctx)
	return &race{ctx: ctx, cancel: cancel, finish: make(chan entrant, 2)}
}

func (r *race) run(request func(context.Context) entrant) {
	r.running.Go(func() { r.finish <- request(r.ctx) })
}

// end returns when no request of the race is under way any more: its memory is the caller's then.
func (r *race) end() {
	r.cancel()
	r.running.Wait()
}

// spare counts how many requests may be sent twice in vain: one in twenty, and a few to begin with.
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
