package export

import (
	"context"
	"errors"
	"sync"
	"time"

	"cairn/blob/release"
	"cairn/store"
	"cairn/store/pack"
)

// startPacks lets an image's store read packs, if there is a map of them beside its index. While the map's location is
// unavailable, it tries again in the background. end ends the use of the map.
func (im *images) startPacks(ctx context.Context, i image, s imageSource) (end func()) {
	at, err := release.MapOf(i.at, i.index.Digest())
	if err != nil {
		return func() {} // nothing is beside it
	}
	var used usedMap
	read := func(ctx context.Context) error {
		var m *pack.Map
		dir, name, err := s.store.from.File(at)
		if err == nil {
			m, err = release.ReadMap(ctx, dir, name, i.index)
			store.Close(dir)
		}
		switch {
		case err == nil:
			used.set(im.usePacks(s, m))
		case errors.Is(err, store.ErrUnavailable):
			return err
		case ctx.Err() == nil && !release.IsAbsent(err):
			im.o.Log.Warn("no packs are used", "image", nameOf(i.at), "error", err)
		}
		return nil
	}
	if !i.cached && read(ctx) == nil {
		return used.end
	}
	s.store.addUnreadMaps(1)
	stop := im.inBackground(func(ctx context.Context) {
		defer s.store.addUnreadMaps(-1)
		policy := store.Policy{Patience: -1, First: indexPause, Max: time.Minute}
		_ = policy.Do(ctx, func() error { return read(ctx) }) // it ends with ctx only
	})
	return func() {
		stop()
		used.end()
	}
}

// usePacks lets the store of a source read packs, and counts the memory for them.
func (im *images) usePacks(s imageSource, m *pack.Map) (end func()) {
	memory := m.Memory()
	im.addIndexMemory(memory)
	s.packMemory.Do(func() { im.addIndexMemory(pack.DefaultMemory) })
	stop := s.store.from.UsePacks(m, release.PackDir)
	return func() {
		stop()
		im.addIndexMemory(-memory)
	}
}

// usedMap is the end of the use of a map, if the map is used.
type usedMap struct {
	mu   sync.Mutex // guards stop
	stop func()
}

func (u *usedMap) set(stop func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stop = stop
}

func (u *usedMap) end() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.stop != nil {
		u.stop()
		u.stop = nil
	}
}
