package nbd

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"

	"golang.org/x/sync/errgroup"
)

// A structured reply to a read contains a hole for each run of at least minHole zeros. If that takes
// more than maxPieces pieces, it contains only data.
const (
	minHole   = 32 << 10
	maxPieces = 16
)

var errNotResident = errors.New("not resident")

// piece is a part of the reply to a read: data or a hole.
type piece struct {
	offset, length int64
	hole           bool
}

// zeroRanges yields the start and end of each range of zeros in [off, end), in order, if it has at
// least `least` bytes. size is the size of the device, and least is at least 1. Only whole blocks of
// zeros count, because clients round ranges to their sectors. A block of zeros counts even if off or
// end lies within it; then the yielded range is cut there.
func zeroRanges(d Extenter, off, end, size, least int64) iter.Seq2[int64, int64] {
	first, last := off&^(blockSize-1), min((end+blockSize-1)&^(blockSize-1), size)
	return func(yield func(from, to int64) bool) {
		for from, to := range zeroBlocks(d.Extents(first, last-first), first, last, size) {
			from, to = max(from, off), min(to, end)
			if to-from >= least && !yield(from, to) {
				return
			}
		}
	}
}

// zeroBlocks yields the start and end of each range of whole blocks of zeros in [off, end). The
// extents start at off.
func zeroBlocks(extents iter.Seq[Extent], off, end, size int64) iter.Seq2[int64, int64] {
	return func(yield func(from, to int64) bool) {
		start, at := off, off // [start, at) is zeros
		emit := func() bool {
			from, to := (start+blockSize-1)&^(blockSize-1), at
			if to != size {
				to &^= blockSize - 1
			}
			return from >= to || yield(from, to)
		}
		for e := range extents {
			n := min(max(e.Length, 0), end-at)
			if !e.Zero {
				if !emit() {
					return
				}
				start = at + n
			}
			if at += n; at == end {
				break
			}
		}
		emit()
	}
}

// appendPieces appends the pieces of [off, end), with its holes.
func appendPieces(pieces []piece, holes iter.Seq2[int64, int64], off, end int64) []piece {
	at := off
	for from, to := range holes {
		if from > at {
			pieces = append(pieces, piece{offset: at, length: from - at})
		}
		pieces = append(pieces, piece{offset: from, length: to - from, hole: true})
		at = to
		if len(pieces) > maxPieces {
			break
		}
	}
	if at < end {
		pieces = append(pieces, piece{offset: at, length: end - at})
	}
	if len(pieces) > maxPieces {
		return append(pieces[:0], piece{offset: off, length: end - off})
	}
	return pieces
}

// planPieces returns the pieces of the reply to a read. They are valid until the next call.
func (t *transmission) planPieces(q request) []piece {
	off, end := int64(q.offset), int64(q.offset)+int64(q.length)
	whole := !t.structured || q.flags&flagDF != 0 || t.extents == nil || q.length < minHole
	if whole {
		t.pieces = append(t.pieces[:0], piece{offset: off, length: end - off})
		return t.pieces
	}
	holes := zeroRanges(t.extents, off, end, int64(t.size), minHole)
	t.pieces = appendPieces(t.pieces[:0], holes, off, end)
	return t.pieces
}

// replySize returns the buffer size that suffices for the reply to a read.
func replySize(pieces []piece) int {
	n := 0
	for _, p := range pieces {
		n += chunkSize + 8 + 4
		if !p.hole {
			n += int(p.length)
		}
	}
	return n
}

// handleRead answers a read at once if its data is resident. Otherwise it starts a goroutine that
// reads from the device.
func (t *transmission) handleRead(q request) {
	pieces := t.planPieces(q)
	if t.readResident(q, pieces) {
		return
	}
	b := t.newBuffer(1, replySize(pieces))
	pending, pieces := t.client.beginRequest(q), slices.Clone(pieces)
	t.tasks.Go(func() {
		err := t.reportFailure(q, t.readAll(q, b, pieces))
		t.client.endRequest(pending)
		if err != nil {
			b.p = appendError(b.p[:0], q, err, t.structured)
		}
		t.client.countReply(q, err)
		t.out.sendBuffer(b)
	})
}

func (t *transmission) readResident(q request, pieces []piece) bool {
	if t.resident == nil {
		return false
	}
	b := t.batchWithRoom(replySize(pieces))
	p, err := t.appendRead(b.p, q, pieces, t.residentFiller)
	if err != nil {
		return false
	}
	b.p = p
	b.requests++
	t.client.countReply(q, nil)
	return true
}

// readAll reads all data of the pieces, concurrently if there are several.
func (t *transmission) readAll(q request, b *buffer, pieces []piece) error {
	group, ctx := errgroup.WithContext(t.reads)
	p, err := t.appendRead(b.p, q, pieces, func(p []byte, off int64) error {
		if len(pieces) == 1 {
			return t.readAt(ctx, p, off)
		}
		group.Go(func() error { return t.readAt(ctx, p, off) })
		return nil
	})
	if err := cmp.Or(err, group.Wait()); err != nil {
		return err
	}
	b.p = p
	return nil
}

func (t *transmission) readAt(ctx context.Context, p []byte, off int64) error {
	if err := t.export.Device.ReadAt(ctx, p, off); err != nil {
		return &readError{off, err}
	}
	return nil
}

// filler fills p with the device's bytes at off. It may return before p is filled.
type filler func(p []byte, off int64) error

func (t *transmission) fillResident(p []byte, off int64) error {
	if !t.resident.ReadResident(p, off) {
		return errNotResident
	}
	return nil
}

// appendRead appends the complete reply to a read to p, which has room for it. It gets the data
// from fill.
func (t *transmission) appendRead(p []byte, q request, pieces []piece, fill filler) ([]byte, error) {
	if !t.structured {
		p = appendSimple(p, q, 0)
		return appendData(p, pieces[0], fill)
	}
	for i, part := range pieces {
		var flags uint16
		if i == len(pieces)-1 {
			flags = chunkDone
		}
		if part.hole {
			p = appendChunk(p, q, flags, chunkOffsetHole, 12)
			p = appendU32(appendU64(p, uint64(part.offset)), uint32(part.length))
			continue
		}
		p = appendChunk(p, q, flags, chunkOffsetData, 8+part.length)
		var err error
		if p, err = appendData(appendU64(p, uint64(part.offset)), part, fill); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func appendData(p []byte, part piece, fill filler) ([]byte, error) {
	n := len(p) + int(part.length)
	return p[:n], fill(p[len(p):n:n], part.offset)
}
