package store

import (
	"runtime"
	"sync"

	"cairn/blob"
)

// maxGroup limits the chunks that are hashed together: enough to fill the processor's SIMD lanes,
// and few enough that another core can begin with the next ones.
const maxGroup = 32

// groupHasher hashes concurrent chunks together, which is several times cheaper than one by one.
// Safe for concurrent use.
type groupHasher struct {
	algorithm blob.Algorithm

	mu   sync.Mutex // guards open, and data of the open group
	open *hashGroup // the group that may be joined; nil if there is none
}

// hashGroup is a group of chunks that are hashed at once.
type hashGroup struct {
	data [][]byte
	sums []blob.Digest
	done chan struct{} // closed when sums is final
}

// sum returns the digest of data. The first caller in a group yields to all runnable goroutines,
// then hashes the chunks that have joined. On an idle machine these are its own chunk alone, hashed
// at once; on a busy one they are many.
func (s *groupHasher) sum(data []byte) blob.Digest {
	group, place := s.joinGroup(data)
	if place > 0 {
		<-group.done
		return group.sums[place]
	}
	runtime.Gosched()
	s.closeGroup(group)
	group.sums = make([]blob.Digest, len(group.data))
	s.algorithm.SumAll(group.sums, group.data)
	close(group.done)
	return group.sums[0]
}

// joinGroup adds data to the open group and returns its place there. The caller at place 0 has to
// hash.
func (s *groupHasher) joinGroup(data []byte) (*hashGroup, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil || len(s.open.data) == maxGroup {
		s.open = &hashGroup{done: make(chan struct{})}
	}
	s.open.data = append(s.open.data, data)
	return s.open, len(s.open.data) - 1
}

// closeGroup closes the group to further chunks.
func (s *groupHasher) closeGroup(group *hashGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == group {
		s.open = nil
	}
}
