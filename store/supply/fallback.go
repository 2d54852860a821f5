package supply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
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
// Requests are hedged: when a remote answer takes much longer than usual, a second request goes to
// the next member, or to the same one if it is the last. The first answer counts. At most one in
// twenty requests is hedged without use. Requests to a member that answers nothing at all do not
// count while there is another.
type fallback struct {
	members []*member
	hedges  hedgeBudget
	packs   atomic.Pointer[packs] // nil without maps
}

// Get implements store.Getter. It requests wants in packs together, and the others as getLoose does.
func (f *fallback) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	p, left := f.packs.Load(), allIndexes(len(wants))
	if p == nil {
		f.getLoose(ctx, wants, left, done)
		return
	}
	var packed, loose []int
	for i, w := range wants {
		if _, ok := p.find(w.Digest); ok {
			packed = append(packed, i)
		} else {
			loose = append(loose, i)
		}
	}
	var group sync.WaitGroup
	if len(packed) > 0 && len(loose) > 0 {
		group.Go(func() { f.getLoose(ctx, wants, loose, done) })
	} else if len(loose) > 0 {
		f.getLoose(ctx, wants, loose, done)
	}
	if len(packed) > 0 {
		f.getPacked(ctx, p, wants, packed, done)
	}
	group.Wait()
}

// getLoose gets the wants with the given indexes. It requests all together from a local member. Over a network
// each want is requested by itself, since a member's health may change while requests are queued.
func (f *fallback) getLoose(ctx context.Context, wants []store.Want, left []int, done func(i int, err error)) {
	tried := make([]memberErrors, len(wants))
	var asked []*member
	for _, m := range f.members {
		if !m.local || m.isFailing() || len(left) < 2 {
			break
		}
		asked = append(asked, m)
		left = getIndexed(ctx, m.from, wants, left, func(i int, err error) (next bool) {
			m.updateHealth(ctx, err)
			if err == nil {
				done(i, nil)
				return false
			}
			tried[i].addError(err)
			return true
		})
	}
	store.Each(len(left), f.maxRequests(), func(n int) {
		i := left[n]
		done(i, f.getOne(ctx, wants[i], asked, tried[i]))
	})
}

// maxRequests returns the largest in-flight limit that any of the links may choose.
func (f *fallback) maxRequests() (n int) {
	for _, m := range f.members {
		n = max(n, m.link.Most())
	}
	return n
}

// getOne requests a chunk from all members except the asked ones.
func (f *fallback) getOne(ctx context.Context, w store.Want, asked []*member, tried memberErrors) error {
	order := slices.DeleteFunc(f.askOrder(time.Now()), func(m *member) bool { return slices.Contains(asked, m) })
	for n, m := range order {
		err := f.getHedged(ctx, m, order[min(n+1, len(order)-1)], w)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			break
		}
		tried.addError(err)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case tried.failed != nil:
		return tried.failed
	case tried.absent != nil:
		return tried.absent
	}
	return fmt.Errorf("chunk %v: no store is left to request it from: %w", w.Digest, store.ErrNotFound)
}

// memberErrors holds the errors of the members that did not supply a chunk.
type memberErrors struct{ absent, failed error }

func (o *memberErrors) addError(err error) {
	if errors.Is(err, store.ErrNotFound) {
		o.absent = joinErrors(o.absent, err)
	} else {
		o.failed = joinErrors(o.failed, err)
	}
}

// joinErrors is errors.Join on one line.
func joinErrors(a, b error) error {
	if a == nil {
		return b
	}
	return fmt.Errorf("%w; %w", a, b)
}

// askOrder returns the members in the order of their requests: unhealthy members come last.
func (f *fallback) askOrder(now time.Time) []*member {
	order, last := make([]*member, 0, len(f.members)), []*member(nil)
	for _, m := range f.members {
		if m.healthyOrProbe(now) {
			order = append(order, m)
		} else {
			last = append(last, m)
		}
	}
	return append(order, last...)
}

// getHedged gets a chunk from m. When the answer is late, it sends a second request to second,
// which may be m.
func (f *fallback) getHedged(ctx context.Context, m, second *member, w store.Want) error {
	if m.noHedge {
		return m.get(ctx, w)
	}
	release, err := m.link.acquire(ctx)
	if err != nil {
		return err
	}
	f.hedges.addRequest()
	r := newRace(ctx)
	defer r.cancelAndWait()
	r.start(func(ctx context.Context) answer { return answer{w.Dst, m.getAdmitted(ctx, w, release), true} })
	watch := m.pauses.Watch()
	defer watch.End()
	late := time.NewTimer(m.link.lateAfter())
	defer late.Stop()
	for waiting := true; waiting; {
		select {
		case first := <-r.answers:
			return first.err
		case <-late.C:
			if waiting = watch.WasStopped(); waiting {
				late.Reset(m.link.lateAfter())
			}
		}
	}
	if silent := second != m && m.link.isSilent(); !silent && !f.hedges.trySpend() {
		return (<-r.answers).err
	}
	r.start(func(ctx context.Context) answer {
		own := store.Want{Digest: w.Digest, Dst: make([]byte, len(w.Dst))}
		return answer{data: own.Dst, err: second.get(ctx, own)}
	})
	return f.awaitWinner(r, m, second, w.Dst)
}

// awaitWinner copies the first good answer of two into dst. If both fail it returns m's error,
// because getOne requests the chunk from second later.
func (f *fallback) awaitWinner(r *race, m, second *member, dst []byte) error {
	var failed error
	for range 2 {
		a := <-r.answers
		if a.err != nil {
			if a.first {
				failed = a.err
			}
			continue
		}
		r.cancelAndWait()
		if !a.first {
			copy(dst, a.data)
			f.hedges.refund()
			if second != m {
				m.noteOvertaken()
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
	answers chan answer
}

type answer struct {
	data  []byte
	err   error
	first bool // of the first request
}

func newRace(ctx context.Context) *race {
	ctx, cancel := context.WithCancel(ctx)
	return &race{ctx: ctx, cancel: cancel, answers: make(chan answer, 2)}
}

func (r *race) start(request func(context.Context) answer) {
	r.running.Go(func() { r.answers <- request(r.ctx) })
}

// cancelAndWait cancels the requests of the race and blocks until they have ended. Then the caller
// may reuse their memory.
func (r *race) cancelAndWait() {
	r.cancel()
	r.running.Wait()
}

// hedgeBudget limits the requests that are hedged without use to one in twenty, and a few at the
// start.
type hedgeBudget struct {
	mu      sync.Mutex // guards the fields below
	earned  int
	started bool
}

const (
	requestsPerHedge = 20 // requests for each second request
	maxSavedHedges   = 8  // limit of second requests that can be saved up
)

func (s *hedgeBudget) addRequest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started {
		s.started, s.earned = true, maxSavedHedges*requestsPerHedge/2
	}
	s.earned = min(s.earned+1, maxSavedHedges*requestsPerHedge)
}

func (s *hedgeBudget) trySpend() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.earned < requestsPerHedge {
		return false
	}
	s.earned -= requestsPerHedge
	return true
}

// refund returns the cost of a second request that was useful.
func (s *hedgeBudget) refund() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.earned += requestsPerHedge
}
