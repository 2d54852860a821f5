package nbd

import (
	"math/bits"
	"sync"
)

// A buffer has a size of 4 KiB times a power of two, and headroom for the headers of a reply. The
// smallest buffer has room for any error reply.
const (
	headroom    = 1024
	sizeClasses = 14 // up to maxPayload
	pooled      = 11 // size classes that are reused, up to 4 MiB
)

// buffer holds one or more complete replies.
type buffer struct {
	p        []byte
	sent     int // bytes of p that are written
	requests int // number of requests that p answers
	class    int
}

func classOf(n int) int {
	if n <= blockSize+headroom {
		return 0
	}
	return bits.Len(uint(n-headroom-1) / blockSize)
}

func classSize(class int) int { return blockSize<<class + headroom }

// bufferPool recycles buffers, except large ones: a buffer in a sync.Pool is memory until the second
// garbage collection, and a few large ones would exceed any limit. The zero value is ready to use.
type bufferPool struct{ classes [sizeClasses]sync.Pool }

// getBuffer returns an empty buffer of size classSize(classOf(n)), which has room for n bytes.
func (p *bufferPool) getBuffer(n int) *buffer {
	class := classOf(n)
	if b, ok := p.classes[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{p: make([]byte, 0, classSize(class)), class: class}
}

func (p *bufferPool) putBuffer(b *buffer) {
	if b.class >= pooled {
		return
	}
	b.p, b.sent, b.requests = b.p[:0], 0, 0
	p.classes[b.class].Put(b)
}
