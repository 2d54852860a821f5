package nbd

import (
	"encoding/binary"
	"iter"
)

// maxStatus is the number of extents in one chunk of a reply, at most. It limits memory to half a
// MiB. The protocol allows 2^20; the client requests the missing ones again.
const maxStatus = 1 << 16

// handleBlockStatus sends the states of the selected contexts. It runs in a goroutine because it
// may take long, though it needs no device I/O.
func (t *transmission) handleBlockStatus(q request) {
	extents := maxStatus
	if q.flags&flagReqOne != 0 {
		extents = 1
	}
	b := t.newBuffer(1, len(t.contexts)*(chunkSize+4+8*extents))
	t.tasks.Go(func() {
		for i, name := range t.contexts {
			var flags uint16
			if i == len(t.contexts)-1 {
				flags = chunkDone
			}
			b.p = appendStatus(b.p, q, flags, uint32(i+1), t.contextStates(name, q), extents)
		}
		t.client.countReply(q, nil)
		t.out.sendBuffer(b)
	})
}

// contextStates yields the states of a context, from the request's offset on.
func (t *transmission) contextStates(context string, q request) iter.Seq[State] {
	if context == contextAllocation {
		return t.allocationStates(q)
	}
	return t.describer.States(context, int64(q.offset), int64(q.length))
}

func (t *transmission) allocationStates(q request) iter.Seq[State] {
	return func(yield func(State) bool) {
		if t.extents == nil {
			return
		}
		at, end := int64(q.offset), int64(q.offset)+int64(q.length)
		for from, to := range zeroRanges(t.extents, at, end, int64(t.size), 1) {
			if !yield(State{from - at, 0}) || !yield(State{to - from, stateHole | stateZero}) {
				return
			}
			at = to
		}
	}
}

// appendStatus appends one context's chunk: up to this many extents, from the request's offset on.
// It joins adjacent states with equal bits. Bytes after the last state have state 0.
func appendStatus(p []byte, q request, flags uint16, id uint32, states iter.Seq[State], extents int) []byte {
	head := len(p)
	p = appendU32(appendChunk(p, q, flags, chunkBlockStatus, 0), id)
	body, left := len(p), int64(q.length)
	var run State
	full := func() bool { return len(p)-body == 8*extents }
	end := func() {
		if run.Length > 0 && !full() {
			p = appendU32(appendU32(p, uint32(run.Length)), run.Bits)
		}
		run.Length = 0
	}
	for s := range states {
		n := min(max(s.Length, 0), left)
		if n > 0 && s.Bits != run.Bits {
			end()
		}
		if n > 0 {
			run = State{run.Length + n, s.Bits}
		}
		if left -= n; left == 0 || full() {
			break
		}
	}
	if left > 0 && run.Bits != 0 {
		end()
		run.Bits = 0
	}
	run.Length += left
	end()
	binary.BigEndian.PutUint32(p[head+chunkSize-4:], uint32(len(p)-head-chunkSize))
	return p
}
