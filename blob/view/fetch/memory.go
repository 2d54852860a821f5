package fetch

import "container/list"

// memory keeps the chunks that were used last, within a limit of bytes that includes the fetches under way. It keeps one
// chunk, however large. Not safe for concurrent use.
type memory struct {
	limit    int64
	bytes    int64 // of the chunks kept
	reserved int64 // of the fetches under way
	recent   *list.List
	places   map[key]*list.Element // in recent, of *Entry; last used first
}

func newMemory(limit int64) memory {
	return memory{limit: limit, recent: list.New(), places: map[key]*list.Element{}}
}

// get returns the entry of a chunk, which is the last used one from then on, or nil.
func (m *memory) get(k key) *Entry {
	at := m.places[k]
	if at == nil {
		return nil
	}
	m.recent.MoveToFront(at)
	return at.Value.(*Entry)
}

// has reports whether a chunk is here. It does not count as a use.
func (m *memory) has(k key) bool { return m.places[k] != nil }

func (m *memory) used() int64 { return m.bytes + m.reserved }

// share returns how much of the limit a fetch takes: a chunk that is larger than all of it is fetched alone.
func (m *memory) share(size int64) int64 { return min(size, m.limit) }

// fits reports whether a fetch may begin beside those under way.
func (m *memory) fits(size int64) bool {
	return m.reserved == 0 || m.reserved+m.share(size) <= m.limit
}

// reserve makes room for a fetch.
func (m *memory) reserve(size int64) {
	m.reserved += m.share(size)
	m.evict()
}

// release gives back the room of a fetch.
func (m *memory) release(size int64) { m.reserved -= m.share(size) }

// keep takes in a chunk that is not here.
func (m *memory) keep(e *Entry) {
	m.places[e.key] = m.recent.PushFront(e)
	m.bytes += e.size
	m.evict()
}

// evict drops the chunks that were not used for longest until the rest fits. Their readers keep the bytes.
func (m *memory) evict() {
	for m.used() > m.limit && m.recent.Len() > 1 {
		e := m.recent.Remove(m.recent.Back()).(*Entry)
		delete(m.places, e.key)
		m.bytes -= e.size
		e.markRead()
	}
}
