package nbd

// batchSize is up to how many bytes of replies that are ready at once are written together.
const batchSize = 256 << 10

// admit takes room for requests or bytes. Before it waits, it sends what it holds itself.
func (t *transmission) admit(requests, bytes int) {
	if t.gate.tryEnter(requests, bytes) {
		return
	}
	t.flush()
	t.gate.enter(requests, bytes)
}

// take returns an empty buffer with room for n bytes. Whoever frees or sends it gives the room back, and
// that of the requests it answers.
func (t *transmission) take(n int) *buffer {
	t.admit(0, classSize(classOf(n)))
	return t.buffers.get(n)
}

func (t *transmission) free(b *buffer) {
	t.gate.leave(b.requests, classSize(b.class))
	t.buffers.put(b)
}

// place returns the batch, with room for n more bytes.
func (t *transmission) place(n int) *buffer {
	if b := t.batch; b != nil && len(b.p)+n <= cap(b.p) {
		return b
	}
	t.flush()
	t.batch = t.take(max(n, batchSize))
	return t.batch
}

// flush sends the batch.
func (t *transmission) flush() {
	b := t.batch
	t.batch = nil
	switch {
	case b == nil:
	case len(b.p) == 0:
		t.free(b)
	default:
		t.out.send(b)
	}
}

// flushBefore sends the batch if the next n bytes must be waited for.
func (t *transmission) flushBefore(n int) {
	if t.in.Buffered() < n {
		t.flush()
	}
}
