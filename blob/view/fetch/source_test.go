package fetch

import (
	"errors"
	"testing"
	"time"

	"cairn/store"
)

// newTestSource returns a source with an in-flight limit, and a client. Their Cache does not work.
func newTestSource(t *testing.T, slots int) (*Source, *Client) {
	t.Helper()
	image := random(1, 10)
	s := newSource(&Cache{}, newChunkStore(t, image), SourceOptions{Fetches: slots})
	return s, NewClient(s, index(t, image), ClientOptions{Observer: &observer{}})
}

// TestOrder checks that entries leave the queue by priority, and in order within one. A promoted entry follows the
// queued demand fetches.
func TestOrder(t *testing.T) {
	s, c := newTestSource(t, 4)
	var entries []*Entry
	for i, p := range []Priority{Fill, ReadAhead, Demand, Neighbour, ReadAhead, Profile, Demand} {
		e := newEntry(c.wantOf(i), p)
		s.enqueue(e)
		entries = append(entries, e)
	}
	s.promoteToDemand(entries[3])
	for _, want := range []int{2, 6, 3, 1, 4, 5, 0} {
		e := s.nextEntry()
		if e != entries[want] {
			t.Fatalf("the next entry is %d, want %d", e.chunk, want)
		}
		s.dequeue(e)
		if s.isQueued(e) {
			t.Errorf("entry %d is still queued", e.chunk)
		}
	}
	if s.nextEntry() != nil {
		t.Error("the queue is not empty")
	}
}

// TestMayPrefetch checks that a quarter of the slots is reserved for demand fetches, that the link limits the bytes
// in flight, and that an unavailable store gets one probe per backoff.
func TestMayPrefetch(t *testing.T) {
	now := time.Now()
	for name, test := range map[string]struct {
		set   func(s *Source)
		want  bool
		later time.Duration
	}{
		"idle":              {func(*Source) {}, true, 0},
		"some":              {func(s *Source) { s.inFlight, s.bytes = 2, assumedBudget-chunkSize }, true, 0},
		"slots for demands": {func(s *Source) { s.inFlight = 3 }, false, 0},
		"link is full":      {func(s *Source) { s.inFlight, s.bytes = 1, assumedBudget }, false, 0},
		"backoff":           {func(s *Source) { s.outage.failures, s.outage.until = 1, now.Add(time.Second) }, false, time.Second},
		"probe":             {func(s *Source) { s.outage.failures, s.outage.until = 1, now }, true, 0},
		"probe in flight": {func(s *Source) {
			s.outage.failures, s.outage.until, s.inFlight = 1, now, 1
		}, false, 0},
	} {
		s, _ := newTestSource(t, 4)
		test.set(s)
		ok, later := s.mayPrefetch(chunkSize, queueDelay, now)
		want := time.Time{}
		if test.later > 0 {
			want = now.Add(test.later)
		}
		if ok != test.want || !later.Equal(want) {
			t.Errorf("%s: mayPrefetch = %v, %v, want %v, %v", name, ok, later, test.want, want)
		}
	}
}

// TestOutage checks that consecutive failures extend the backoff, and that a successful fetch ends the outage and
// wakes the waiters.
func TestOutage(t *testing.T) {
	o := outage{over: make(chan struct{})}
	now := time.Now()
	o.noteFailure(store.ErrNotFound, now)
	if o.endOutage() || o.failures != 0 || !o.until.IsZero() {
		t.Errorf("a missing chunk counts as an outage: %+v", o)
	}
	for n := 1; n < 20; n++ {
		o.noteFailure(store.ErrUnavailable, now)
		most := backoff.Longest(n)
		if wait := o.until.Sub(now); wait < most/2 || wait > most {
			t.Errorf("the backoff after %d failures is %v, want %v to %v", n, wait, most/2, most)
		}
	}
	if !o.mayLog(now) || o.mayLog(now.Add(logInterval-1)) || !o.mayLog(now.Add(logInterval)) {
		t.Error("mayLog does not allow one message per logInterval")
	}
	over := o.over
	if !o.endOutage() || o.failures != 0 || !o.until.IsZero() || o.endOutage() {
		t.Errorf("the outage has not ended: %+v", o)
	}
	select {
	case <-over:
	default:
		t.Error("the waiters are not woken")
	}
	o.noteSlow()
	o.noteSlow()
	if o.failures != 1 || !o.until.IsZero() {
		t.Errorf("a slow fetch counts as %d failures, with a backoff until %v", o.failures, o.until)
	}
	if o.endOutage() {
		t.Error("an outage that was not logged counts as logged")
	}
}

// TestLogDecidesNothing checks that logging an outage does not affect prefetches.
func TestLogDecidesNothing(t *testing.T) {
	image := random(1, 10)
	r := newOwnReader(t, image, newChunkStore(t, image), Options{})
	e := newEntry(r.wantOf(0), Demand)
	e.at = r.source
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	r.cache.logWait(e, errors.New("x"), slowFetch)
	o := &r.source.outage
	if ok, _ := r.source.mayPrefetch(1, queueDelay, time.Now()); !ok || o.failures != 0 || !o.until.IsZero() || o.loggedAt.IsZero() {
		t.Errorf("the outage after logWait: %+v", o)
	}
}
