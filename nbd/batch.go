package nbd

// batchSize is the number of bytes of completed replies that are written together, at most.
const batchSize = 256 << 10

// acquireRoom blocks until the in-flight limit has room for these requests and bytes. Before it
// blocks, it flushes the batch, whose buffer also counts towards the limit.
func (t *transmission) acquireRoom(requests, bytes int) {
	if t.inFlight.tryAcquireRoom(requests, bytes) {
		return
	}
	t.flushBatch()
	t.inFlight.acquireRoom(requests, bytes)
}

// newBuffer returns an empty buffer with room for n bytes, which answers this many requests.
// Sending or freeing the buffer releases its bytes and its requests from the in-flight limit.
func (t *transmission) newBuffer(requests, n int) *buffer {
	t.acquireRoom(0, classSize(classOf(n)))
	b := t.buffers.getBuffer(n)
	b.requests = requests
	return b
}

func (t *transmission) freeBuffer(b *buffer) {
	t.inFlight.releaseRoom(b.requests, classSize(b.class))
	t.buffers.putBuffer(b)
}

// batchWithRoom returns the batch, with room for n more bytes.
func (t *transmission) batchWithRoom(n int) *buffer {
	if b := t.batch; b != nil && len(b.p)+n <= cap(b.p) {
		return b
	}
	t.flushBatch()
	t.batch = t.newBuffer(0, max(n, batchSize))
	return t.batch
}

func (t *transmission) flushBatch() {
	b := t.batch
	t.batch = nil
	switch {
	case b == nil:
	case len(b.p) == 0:
		t.freeBuffer(b)
	default:
		t.out.sendBuffer(b)
	}
}

// flushUnlessBuffered sends the batch if reading the next n bytes may block.
func (t *transmission) flushUnlessBuffered(n int) {
	if t.in.Buffered() < n {
		t.flushBatch()
	}
}
