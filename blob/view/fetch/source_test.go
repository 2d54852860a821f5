package fetch

import (
	"errors"
	"testing"
	"time"

	"cairn/store"
)

// aSource returns a source with so many slots and a client, both without a Cache that works.
func aSource(t *testing.T, slots int) (*Source, *Client) {
	t.Helper()
	image := random(1, 10)
	s := newSource(&Cache{}, holding(t, image), SourceOptions{Fetches: slots})
	return s, NewClient(s, index(t, image), ClientOptions{Observer: &observer{}})
}

// TestOrder: demand fetches go first, then prefetches by their priority, each in their order; a promoted one comes after
// the demand fetches that are there.
func TestOrder(t *testing.T) {
	s, c := aSource(t, 4)
	var entries []*Entry
	for i, p := range []Priority{Fill, ReadAhead, Demand, Neighbour, ReadAhead, Profile, Demand} {
		e := newEntry(c.want(i), p)
		s.push(e)
		entries = append(entries, e)
	}
	s.promote(entries[3])
	for _, want := range []int{2, 6, 3, 1, 4, 5, 0} {
		e := s.front()
		if e != entries[want] {
			t.Fatalf("the next entry is %d, want %d", e.chunk, want)
		}
		s.remove(e)
		if s.queued(e) {
			t.Errorf("entry %d is still queued", e.chunk)
		}
	}
	if s.front() != nil {
		t.Error("the queue is not empty")
	}
}

// TestMayPrefetch: a quarter of the slots is for demand fetches, the link limits the bytes in flight, and an unavailable
// store is asked once in a while.
func TestMayPrefetch(t *testing.T) {
	now := time.Now()
	for name, test := range map[string]struct {
		set   func(s *Source)
		want  bool
		later time.Duration
	}{
		"idle":              {func(*Source) {}, true, 0},
		"some":              {func(s *Source) { s.flying, s.bytes = 2, assumedBudget-chunkSize }, true, 0},
		"slots for demands": {func(s *Source) { s.flying = 3 }, false, 0},
		"link is full":      {func(s *Source) { s.flying, s.bytes = 1, assumedBudget }, false, 0},
		"backoff":           {func(s *Source) { s.outage.failures, s.outage.until = 1, now.Add(time.Second) }, false, time.Second},
		"probe":             {func(s *Source) { s.outage.failures, s.outage.until = 1, now }, true, 0},
		"probe is under way": {func(s *Source) {
			s.outage.failures, s.outage.until, s.flying = 1, now, 1
		}, false, 0},
	} {
		s, _ := aSource(t, 4)
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

// TestOutage: failures in a row make the backoff longer, an answer ends the outage and wakes all that wait for that.
func TestOutage(t *testing.T) {
	o := outage{over: make(chan struct{})}
	now := time.Now()
	o.noteFailure(store.ErrNotFound, now)
	if o.endOutage() || o.failures != 0 || !o.until.IsZero() {
		t.Errorf("a chunk that is not there is an outage: %+v", o)
	}
	for n := 1; n < 20; n++ {
		o.noteFailure(store.ErrUnavailable, now)
		most := backoff.Longest(n)
		if wait := o.until.Sub(now); wait < most/2 || wait > most {
			t.Errorf("the backoff after %d failures is %v, want %v to %v", n, wait, most/2, most)
		}
	}
	if !o.mayLog(now) || o.mayLog(now.Add(logAgain-1)) || !o.mayLog(now.Add(logAgain)) {
		t.Error("the log gets more or less than a line in a while")
	}
	over := o.over
	if !o.endOutage() || o.failures != 0 || !o.until.IsZero() || o.endOutage() {
		t.Errorf("the outage goes on: %+v", o)
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

// TestLogDecidesNothing: a line in the log about an outage leaves the decisions about fetches as they were.
func TestLogDecidesNothing(t *testing.T) {
	image := random(1, 10)
	r := open(t, image, holding(t, image), Options{})
	e := newEntry(r.want(0), Demand)
	e.at = r.source
	r.cache.mu.Lock()
	defer r.cache.mu.Unlock()
	r.cache.logWait(e, errors.New("x"), slowFetch)
	o := &r.source.outage
	if ok, _ := r.source.mayPrefetch(1, queueDelay, time.Now()); !ok || o.failures != 0 || !o.until.IsZero() || o.loggedAt.IsZero() {
		t.Errorf("after a line in the log: %+v", o)
	}
}
