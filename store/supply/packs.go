package supply

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"cairn/blob"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/pack"
)

// minSilence is the least time without a byte of a pack after which its chunks are requested elsewhere.
const minSilence = 5 * time.Second

// packs are the packs beside the stores, and the maps that say where chunks lie in them. It is immutable.
type packs struct {
	dirs map[*member]*pack.Dir // no entry for a member without packs
	maps []*pack.Map
}

// find is a pack.Finder.
func (p *packs) find(d blob.Digest) (at pack.Place, ok bool) {
	for _, m := range p.maps {
		if at, ok = m.Find(d); ok {
			return at, true
		}
	}
	return at, false
}

// UsePacks lets Get read chunks from packs, as a map says, until stop is called. dirOf returns the location of the packs
// of a store. A store whose packs cannot be opened is used without. Each member's packs are requested before its chunks,
// admitted by its Link, and count in Downloaded and in the shared limits. UsePacks sends no request to a server.
func (s *Supply) UsePacks(m *pack.Map, dirOf func(store locate.Location) (locate.Location, error)) (stop func()) {
	s.openingPacks.Do(func() { s.packDirs = s.openPackDirs(dirOf) })
	s.changeMaps(func(maps []*pack.Map) []*pack.Map { return append(maps, m) })
	return sync.OnceFunc(func() {
		s.changeMaps(func(maps []*pack.Map) []*pack.Map {
			at := slices.Index(maps, m)
			return slices.Delete(maps, at, at+1)
		})
	})
}

// HasPacks reports whether Get reads packs.
func (s *Supply) HasPacks() bool { return s.stores.packs.Load() != nil }

// IsPacked reports whether a map says that a chunk is in a pack.
func (s *Supply) IsPacked(d blob.Digest) bool {
	p := s.stores.packs.Load()
	if p == nil {
		return false
	}
	_, ok := p.find(d)
	return ok
}

// Near reports whether a map says that one request reads both chunks, with few bytes between them.
func (s *Supply) Near(a, b blob.Digest) bool {
	p := s.stores.packs.Load()
	if p == nil {
		return false
	}
	one, ok := p.find(a)
	other, also := p.find(b)
	return ok && also && one.Near(other)
}

// changeMaps replaces the maps by what edit returns for a copy of them.
func (s *Supply) changeMaps(edit func(maps []*pack.Map) []*pack.Map) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.maps = edit(slices.Clone(s.maps))
	if len(s.maps) == 0 {
		s.stores.packs.Store(nil)
		return
	}
	s.stores.packs.Store(&packs{s.packDirs, s.maps})
}

func (s *Supply) openPackDirs(dirOf func(store locate.Location) (locate.Location, error)) map[*member]*pack.Dir {
	dirs := map[*member]*pack.Dir{}
	for i, at := range s.places {
		beside, err := dirOf(at)
		if err != nil {
			continue
		}
		r, err := s.openUntilClose(beside)
		if err != nil {
			continue
		}
		m := s.stores.members[i]
		o := pack.Options{Admit: m.link.Admit}
		if !m.noHedge && !s.limited {
			o.Silence = func() time.Duration { return max(m.link.lateAfter(), minSilence) }
		}
		dirs[m] = pack.NewDir(r, s.algorithm, o)
	}
	return dirs
}

// getPacked gets the wants with the given indexes, which are in packs. It requests them from the packs and the chunks of
// each member in turn.
func (f *fallback) getPacked(ctx context.Context, p *packs, wants []store.Want, left []int, done func(i int, err error)) {
	tried := make([]memberErrors, len(wants))
	members := f.failingLast()
	var asked []*member
	for n, m := range members {
		if left = f.getFromDir(ctx, p, m, wants, left, tried, done); len(left) == 0 {
			return
		}
		if !slices.ContainsFunc(members[n+1:], func(m *member) bool { return p.dirs[m] != nil }) {
			break
		}
		asked = append(asked, m)
		left = f.getFromMember(ctx, m, wants, left, tried, done)
	}
	store.Each(len(left), f.maxRequests(), func(n int) {
		i := left[n]
		done(i, f.getOne(ctx, wants[i], asked, tried[i]))
	})
}

// failingLast returns the members in their order, those whose last request failed last.
func (f *fallback) failingLast() (members []*member) {
	var failing []*member
	for _, m := range f.members {
		if m.isFailing() {
			failing = append(failing, m)
		} else {
			members = append(members, m)
		}
	}
	return append(members, failing...)
}

// getFromDir gets wants from the packs of a member, and returns the indexes of those that failed. Requests that failed
// while the process was stopped are repeated.
func (f *fallback) getFromDir(
	ctx context.Context, p *packs, m *member, wants []store.Want, left []int, tried []memberErrors, done func(i int, err error),
) []int {
	dir := p.dirs[m]
	if dir == nil {
		return left
	}
	watch := m.pauses.Watch()
	defer watch.End()
	failed := make([]error, len(wants))
	from := dirGetter{dir, p.find}
	for range maxRepeats + 1 {
		left = getIndexed(ctx, from, wants, left, func(i int, err error) bool {
			if failed[i] = err; err == nil {
				done(i, nil)
			}
			return err != nil
		})
		unavailable := func(i int) bool { return errors.Is(failed[i], store.ErrUnavailable) }
		if !watch.WasStopped() || ctx.Err() != nil || !slices.ContainsFunc(left, unavailable) {
			break
		}
	}
	for _, i := range left {
		tried[i].addError(failed[i])
		if !errors.Is(failed[i], store.ErrNotFound) { // it may be known without a request
			m.updateHealth(ctx, failed[i])
		}
	}
	if len(left) == 0 {
		m.updateHealth(ctx, nil)
	}
	return left
}

// dirGetter is a store.Getter of chunks in packs.
type dirGetter struct {
	dir  *pack.Dir
	find pack.Finder
}

// Get implements store.Getter.
func (g dirGetter) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	g.dir.Get(ctx, g.find, wants, done)
}

// getFromMember gets wants from the chunks of a member, and returns the indexes of those that failed.
func (f *fallback) getFromMember(
	ctx context.Context, m *member, wants []store.Want, left []int, tried []memberErrors, done func(i int, err error),
) []int {
	failed := make([]bool, len(left))
	store.Each(len(left), m.link.Most(), func(n int) {
		i := left[n]
		err := f.getHedged(ctx, m, m, wants[i])
		if err == nil {
			done(i, nil)
			return
		}
		failed[n] = true
		tried[i].addError(err)
	})
	n := -1
	return slices.DeleteFunc(left, func(int) bool { n++; return !failed[n] })
}
