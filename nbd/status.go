package nbd

import "encoding/binary"

// maxStatus is the number of extents in one reply. The protocol has room for 2^20; a client asks again for
// what is missing, and half a MiB a reply is enough memory.
const maxStatus = 1 << 16

// blockStatus answers where data and zeros are. It needs no device I/O, but may take a while.
func (t *transmission) blockStatus(q request) {
	extents := maxStatus
	if q.flags&flagReqOne != 0 {
		extents = 1
	}
	b := t.take(chunkSize + 4 + 8*extents)
	b.requests = 1
	start := t.begin()
	t.tasks.Go(func() {
		b.p = t.appendStatus(b.p, q, extents)
		t.done(q, start, nil)
		t.out.send(b)
	})
}

// appendStatus appends the whole reply: at most so many extents, from the request's offset on.
func (t *transmission) appendStatus(p []byte, q request, extents int) []byte {
	head := len(p)
	p = appendU32(appendChunk(p, q, chunkDone, chunkBlockStatus, 0), allocationID)
	body := len(p)
	add := func(length int64, state uint32) {
		if length > 0 && len(p)-body < 8*extents {
			p = appendU32(appendU32(p, uint32(length)), state)
		}
	}
	at, end := int64(q.offset), int64(q.offset)+int64(q.length)
	if t.extents != nil {
		for from, to := range zeros(t.extents.Extents(at, end-at), at, end, int64(t.size), 1) {
			add(from-at, 0)
			add(to-from, stateHole|stateZero)
			at = to
			if len(p)-body == 8*extents {
				break
			}
		}
	}
	add(end-at, 0)
	binary.BigEndian.PutUint32(p[head+chunkSize-4:], uint32(len(p)-head-chunkSize))
	return p
}
