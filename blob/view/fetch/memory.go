package fetch

import "container/list"

// memory keeps the most recently used chunks, within a limit of bytes that includes the fetches in flight. It keeps
// one chunk of any size. Not safe for concurrent use.
type memory struct {
	limit    int64
	bytes    int64                 // of the chunks in memory
	reserved int64                 // bytes of the fetches in flight
	recent   *list.List            // of *Entry; the most recently used one is first
	places   map[key]*list.Element // elements of recent
}

func newMemory(limit int64) memory {
	return memory{limit: limit, recent: list.New(), places: map[key]*list.Element{}}
}

// getEntry returns the entry of a chunk and makes it the most recently used one, or returns nil.
func (m *memory) getEntry(k key) *Entry {
	at := m.places[k]
	if at == nil {
		return nil
	}
	m.recent.MoveToFront(at)
	return at.Value.(*Entry)
}

// hasChunk reports whether a chunk is in memory. It does not count as a use.
func (m *memory) hasChunk(k key) bool { return m.places[k] != nil }

func (m *memory) usedBytes() int64 { return m.bytes + m.reserved }

// cappedSize returns the part of the limit that a fetch occupies: a chunk larger than the limit is fetched alone.
func (m *memory) cappedSize(size int64) int64 { return min(size, m.limit) }

// fitsFetch reports whether a fetch may start beside those in flight.
func (m *memory) fitsFetch(size int64) bool {
	return m.reserved == 0 || m.reserved+m.cappedSize(size) <= m.limit
}

// reserveFetch reserves memory for a fetch, and evicts chunks to make room.
func (m *memory) reserveFetch(size int64) {
	m.reserved += m.cappedSize(size)
	m.evictOldest()
}

// releaseFetch releases the memory reserved for a fetch.
func (m *memory) releaseFetch(size int64) { m.reserved -= m.cappedSize(size) }

// addEntry adds the entry of a chunk that is not in memory.
func (m *memory) addEntry(e *Entry) {
	m.places[e.key] = m.recent.PushFront(e)
	m.bytes += e.size
	m.evictOldest()
}

// evictOldest evicts the least recently used chunks until the rest fits. Readers may still hold their bytes.
func (m *memory) evictOldest() {
	for m.usedBytes() > m.limit && m.recent.Len() > 1 {
		e := m.recent.Remove(m.recent.Back()).(*Entry)
		delete(m.places, e.key)
		m.bytes -= e.size
		e.markRead()
	}
}
