package store

import (
	"runtime"
	"sync"

	"cairn/blob"
)

// maxTogether is how many chunks are hashed together: enough to fill the processor's lanes, few enough for
// another core to begin with the next ones.
const maxTogether = 32

// summer hashes chunks that come at the same time together, which is several times cheaper than one by one.
// Safe for concurrent use.
type summer struct {
	algorithm blob.Algorithm

	mu   sync.Mutex // guards open, and data of the group in it
	open *together  // the group that may be joined; nil when there is none
}

// together is a group of chunks that are hashed at once.
type together struct {
	data [][]byte
	sums []blob.Digest
	done chan struct{} // closed when sums is final
}

// sum is the digest of data. Whoever opens a group lets all others run that can, and hashes what they
// brought: on an idle machine that is its own chunk alone, at once; on a busy one it is many.
func (s *summer) sum(data []byte) blob.Digest {
	group, place := s.join(data)
	if place > 0 {
		<-group.done
		return group.sums[place]
	}
	runtime.Gosched()
	s.shut(group)
	group.sums = make([]blob.Digest, len(group.data))
	s.algorithm.SumAll(group.sums, group.data)
	close(group.done)
	return group.sums[0]
}

// join adds data to the open group, and says at what place; the first one has to hash.
func (s *summer) join(data []byte) (*together, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil || len(s.open.data) == maxTogether {
		s.open = &together{done: make(chan struct{})}
	}
	s.open.data = append(s.open.data, data)
	return s.open, len(s.open.data) - 1
}

// shut lets nobody join the group any more.
func (s *summer) shut(group *together) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == group {
		s.open = nil
	}
}
