package export

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/blob"
	"cairn/internal/dashboard"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/supply"
)

// outcome is the result of requesting a chunk from a store.
type outcome int

const (
	gotChunk outcome = iota
	gotNotFound
	gotDamaged
	gotDenied
	gotUnavailable
	gotCancelled
	gotOther
	numOutcomes // number of outcomes
)

func (o outcome) String() string {
	return [...]string{"ok", "not_found", "damaged", "denied", "unavailable", "cancelled", "other"}[o]
}

func outcomeOf(ctx context.Context, err error) outcome {
	_, isCorrupt := errors.AsType[*store.CorruptError](err)
	switch {
	case err == nil:
		return gotChunk
	case ctx.Err() != nil:
		return gotCancelled
	case errors.Is(err, store.ErrUnavailable):
		return gotUnavailable
	case isCorrupt:
		return gotDamaged
	case errors.Is(err, store.ErrDenied):
		return gotDenied
	case errors.Is(err, store.ErrNotFound):
		return gotNotFound
	}
	return gotOther
}

// unusedName returns a name for the stores at these locations that no other store has, because a
// name must be unique in the metrics. Locations may differ only in their secrets, which names do
// not show.
func unusedName(others []*meteredStore, locations []locate.Location, a blob.Algorithm) string {
	var names []string
	for _, at := range locations {
		names = append(names, at.String())
	}
	name := strings.Join(names, " ")
	isUsed := func(name string) bool {
		return slices.ContainsFunc(others, func(other *meteredStore) bool { return other.name == name })
	}
	unused := name
	if isUsed(unused) {
		unused = fmt.Sprintf("%s (%v)", name, a)
	}
	for n := 2; isUsed(unused); n++ {
		unused = fmt.Sprintf("%s (%v, %d)", name, a, n)
	}
	return unused
}

// meteredStore counts the outcomes of requests to stores, and records since when they are available
// or unavailable.
type meteredStore struct {
	name string
	from *supply.Supply

	mu                sync.Mutex // guards the fields below
	inFlight, retries int64
	results           [numOutcomes]int64
	up                bool
	since             time.Time
	lastErr           error                    // of the last request, if the store is not up
	failed            map[blob.Digest]struct{} // chunks that were unavailable; the next request for one is a retry
	unreadMaps        int                      // maps of packs that could not be read yet
}

// maxFailed limits the size of meteredStore.failed.
const maxFailed = 4096

func newMeteredStore(name string, from *supply.Supply) *meteredStore {
	return &meteredStore{name: name, from: from, up: true, since: time.Now(), failed: make(map[blob.Digest]struct{})}
}

var _ store.Getter = (*meteredStore)(nil)

// Get implements store.Getter.
func (s *meteredStore) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	for _, w := range wants {
		s.countRequest(w.Digest)
	}
	unread := s.hasUnreadMaps()
	s.from.Get(ctx, wants, func(i int, err error) {
		if unread {
			err = explainAbsence(err)
		}
		s.countOutcome(wants[i].Digest, outcomeOf(ctx, err), err)
		done(i, err)
	})
}

// explainAbsence returns the error of a request that began while a map of packs could not be read: a chunk that was not
// found may be in a pack.
func explainAbsence(err error) error {
	if errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrUnavailable) {
		return fmt.Errorf("%w: a map of packs cannot be read yet, and without it: %s", store.ErrUnavailable, err.Error())
	}
	return err
}

func (s *meteredStore) hasUnreadMaps() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unreadMaps > 0
}

// addUnreadMaps adds n to the number of maps that could not be read yet.
func (s *meteredStore) addUnreadMaps(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unreadMaps += n
}

func (s *meteredStore) countRequest(d blob.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight++
	if _, again := s.failed[d]; again {
		s.retries++
		delete(s.failed, d)
	}
}

func (s *meteredStore) countOutcome(d blob.Digest, o outcome, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight--
	s.results[o]++
	switch o {
	case gotCancelled:
		return
	case gotUnavailable:
		s.lastErr = err
		if len(s.failed) < maxFailed {
			s.failed[d] = struct{}{}
		}
	default:
		s.lastErr = nil
	}
	if up := s.lastErr == nil; up != s.up {
		s.up, s.since = up, time.Now()
	}
}

// status returns the counts and the present state.
func (s *meteredStore) status() dashboard.Store {
	_, stored := s.from.Downloaded()
	limit := s.from.Limit()
	s.mu.Lock()
	defer s.mu.Unlock()
	d := dashboard.Store{Name: s.name, Up: s.up, Since: s.since, InFlight: s.inFlight, Stored: stored,
		Retries: s.retries, GateLimit: limit}
	for o, n := range s.results {
		d.Requests = append(d.Requests, dashboard.Results{Result: outcome(o).String(), Count: n})
	}
	if s.lastErr != nil {
		d.Error = s.lastErr.Error()
	}
	return d
}
