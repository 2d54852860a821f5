// Package supply combines several stores into one source of chunks. It chooses the order of the
// stores and tracks their health. It limits the requests in flight to each store, retries, sends a
// second request when an answer is late, and applies shared limits. Each store has a Link, the one
// model of the path to it.
package supply

import (
	"context"
	"fmt"
	"sync"

	"cairn/blob"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/pack"
)

// In-flight limits of a store. A Link uses as many of the remote requests as speed it up.
const (
	requestsLocal  = 32
	requestsRemote = 256
)

// Options are the limits of a Supply. The zero value has the defaults of the package.
type Options struct {
	Requests int // in flight to each store; 0 is up to 256 as the link measures, or 32 to a local store
	// MaxRequests is the largest number in flight to each store, whatever Requests and the link say. 0 is no limit.
	MaxRequests int
	RateLimit   int64 // bytes a second, of all stores together; 0 is no limit
	Budget      int64 // bytes in all, of all stores together; 0 is no limit. A read beyond it is ErrBudget
	// LeftOut is called with the reason when a store of a group cannot be opened, if the group has
	// other stores. May be nil.
	LeftOut func(err error)
}

// Supply is a Getter that gets chunks from several stores. Safe for concurrent use.
type Supply struct {
	counter  Counter
	policy   store.Policy
	pauses   store.Pauses
	stores   fallback
	uncached store.Getter
	chunks   store.Getter
	cached   func(far store.Getter) store.Getter // puts the cache in front of a Getter; nil without a cache
	near     store.Getter                        // reads the cache; nil without one

	places    []locate.Location // of the stores that Open has opened, in their order
	open      func(locate.Location) (store.Reader, error)
	algorithm blob.Algorithm
	limited   bool // the rate of all stores is limited

	openingPacks sync.Once
	packDirs     map[*member]*pack.Dir // set by openingPacks

	mu      sync.Mutex // guards the fields below
	closers []func()
	maps    []*pack.Map
}

var _ store.Getter = (*Supply)(nil)

// Open opens the stores of the groups, which are asked in order. At least one store of each group
// must open; the others are left out. Otherwise Open returns the error of the group's last store.
func Open(groups [][]locate.Location, access locate.Access, a blob.Algorithm, o Options) (*Supply, error) {
	limit := o.newLimiter()
	s := &Supply{policy: access.Retry, algorithm: a, limited: o.RateLimit > 0}
	s.open = func(at locate.Location) (store.Reader, error) {
		r, err := access.Open(at)
		if err != nil {
			return nil, err
		}
		return meter{limit(r), &s.counter}, nil
	}
	for _, group := range groups {
		var failed error
		opened := 0
		for _, at := range group {
			r, err := s.openUntilClose(at)
			if err != nil {
				failed = fmt.Errorf("opening store %s: %w", at, err)
				if len(group) > 1 && o.LeftOut != nil {
					o.LeftOut(failed)
				}
				continue
			}
			opened++
			s.places = append(s.places, at)
			m := o.newMember(at.Remote())
			s.addMember(store.NewChunksAtOnce(r, a, m.link.Most()), m)
		}
		if opened == 0 {
			s.Close()
			return nil, failed
		}
	}
	s.addRetries()
	return s, nil
}

// New returns the Supply of remote getters, which are asked in order. Failed requests are retried
// as the policy says. The options that limit bytes have no effect.
func New(policy store.Policy, o Options, getters ...store.Getter) *Supply {
	s := &Supply{policy: policy}
	for _, g := range getters {
		s.addMember(g, o.newMember(true))
	}
	s.addRetries()
	return s
}

func (o *Options) newMember(remote bool) *member {
	m := &member{local: !remote, noHedge: !remote || o.Budget > 0} // the bytes of a cancelled request are unknown
	limit := func(requests int) int {
		if o.MaxRequests > 0 {
			return min(requests, o.MaxRequests)
		}
		return requests
	}
	switch {
	case o.Requests > 0:
		m.link = NewFixedLink(limit(o.Requests))
	case remote:
		m.link = NewLink(limit(requestsRemote))
	default:
		m.link = NewFixedLink(limit(requestsLocal))
	}
	return m
}

// newLimiter returns a function that applies the limits shared by all stores to a Reader.
func (o *Options) newLimiter() func(store.Reader) store.Reader {
	rate, budget := NewRate(o.RateLimit), NewBudget(o.Budget)
	return func(r store.Reader) store.Reader {
		if o.RateLimit > 0 {
			r = rate.Limit(r)
		}
		if o.Budget > 0 {
			r = budget.Limit(r)
		}
		return r
	}
}

func (s *Supply) addMember(g store.Getter, m *member) {
	m.from, m.pauses = g, &s.pauses
	s.stores.members = append(s.stores.members, m)
}

func (s *Supply) addRetries() {
	s.policy.Pauses = &s.pauses
	s.uncached = retrier{&s.stores, s.policy}
	s.chunks = s.uncached
}

// AddCache puts a cache in front of the stores, as Cached does. Close calls done.
func (s *Supply) AddCache(near store.Getter, keep store.Putter, failed func(error), done func()) {
	s.near, s.cached = near, func(far store.Getter) store.Getter { return Cached(far, near, keep, failed) }
	s.chunks = s.cached(s.chunks)
	s.addCloser(done)
}

// openUntilClose opens a directory. Close closes it.
func (s *Supply) openUntilClose(at locate.Location) (store.Reader, error) {
	r, err := s.open(at)
	if err == nil {
		s.addCloser(func() { store.Close(r) })
	}
	return r, err
}

func (s *Supply) addCloser(end func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closers = append(s.closers, end)
}

// Beside opens the directories that derive returns for the locations of the stores, and returns
// their readers in the order of the stores. Their reads count in Downloaded, and the shared limits
// hold for them. They are not retried, cached, or admitted by a Link. A directory that cannot be
// opened, or for which derive returns an error, is left out. Each call opens the directories anew;
// they stay open until Close. Beside sends no request to a server.
func (s *Supply) Beside(derive func(locate.Location) (locate.Location, error)) (readers []store.Reader) {
	for _, at := range s.places {
		beside, err := derive(at)
		if err != nil {
			continue
		}
		if r, err := s.openUntilClose(beside); err == nil {
			readers = append(readers, r)
		}
	}
	return readers
}

// File opens the directory of a file, and returns the file's name in it. Its reads count in Downloaded, the shared limits
// hold for them, and they are retried. The caller must close it with store.Close.
func (s *Supply) File(at locate.Location) (r store.Reader, name string, err error) {
	dir, name, err := at.Split()
	if err != nil {
		return nil, "", err
	}
	if r, err = s.open(dir); err == nil && dir.Remote() {
		r = store.Retry(r, s.policy)
	}
	return r, name, err
}

// Keep returns a Getter that gets chunks from the cache or from far, and puts the latter into the cache.
// It is far if there is no cache.
func (s *Supply) Keep(far store.Getter) store.Getter {
	if s.cached == nil {
		return far
	}
	return s.cached(far)
}

// IsCached reports whether the cache has the chunk d, which is not read.
func (s *Supply) IsCached(ctx context.Context, d blob.Digest) bool {
	cache, ok := s.near.(sizer)
	if !ok {
		return false
	}
	_, err := cache.Stat(ctx, d)
	return err == nil
}

// sizer tells the stored size of chunks.
type sizer interface {
	Stat(ctx context.Context, d blob.Digest) (int64, error)
}

// Get implements store.Getter.
func (s *Supply) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	s.chunks.Get(ctx, wants, done)
}

// GetUncached fills dst with the chunk d from the stores. It neither reads nor fills a cache.
func (s *Supply) GetUncached(ctx context.Context, d blob.Digest, dst []byte) error {
	return store.GetOne(ctx, s.uncached, d, dst)
}

// Requests returns how many wants a caller may usefully have under way at once.
func (s *Supply) Requests() int { return s.stores.maxRequests() }

// Limit returns the sum of the present in-flight limits of the remote stores.
func (s *Supply) Limit() (n int) {
	for _, m := range s.stores.members {
		if !m.local {
			n += m.link.Limit()
		}
	}
	return n
}

// Far reports whether any store is remote, so that answers have network latency.
func (s *Supply) Far() bool {
	for _, m := range s.stores.members {
		if !m.local {
			return true
		}
	}
	return false
}

// Link returns the link to the first store.
func (s *Supply) Link() *Link { return s.stores.members[0].link }

// Downloaded returns the objects and stored bytes read from the stores so far.
func (s *Supply) Downloaded() (objects, bytes int64) {
	return s.counter.Objects.Load(), s.counter.Bytes.Load()
}

// Close ends the processes of the stores, such as ssh, and closes the caches.
func (s *Supply) Close() {
	s.mu.Lock()
	closers := s.closers
	s.mu.Unlock()
	for _, end := range closers {
		end()
	}
}
