package nbd

import (
	"math/bits"
	"sync"
)

// Buffers come in sizes of 4 KiB times a power of two, each with room for the heads of a reply besides. The
// smallest has room for any error.
const (
	headroom    = 1024
	sizeClasses = 14 // up to maxPayload
)

// buffer is one or more whole replies on their way to a client.
type buffer struct {
	p        []byte
	sent     int // of p
	requests int // that p answers
	class    int
}

func classOf(n int) int {
	if n <= block+headroom {
		return 0
	}
	return bits.Len(uint(n-headroom-1) / block)
}

func classSize(class int) int { return block<<class + headroom }

// buffers keeps buffers for their next use. The zero value is ready.
type buffers struct{ classes [sizeClasses]sync.Pool }

// get returns an empty buffer with room for n bytes, of size classSize(classOf(n)).
func (s *buffers) get(n int) *buffer {
	class := classOf(n)
	if b, ok := s.classes[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{p: make([]byte, 0, classSize(class)), class: class}
}

func (s *buffers) put(b *buffer) {
	b.p, b.sent, b.requests = b.p[:0], 0, 0
	s.classes[b.class].Put(b)
}
