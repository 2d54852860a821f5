package nbd

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"

	"golang.org/x/sync/errgroup"
)

// A structured reply to a read says zeros in words where they are long, unless that takes too many pieces.
const (
	minHole   = 32 << 10
	maxPieces = 16
)

var errNotResident = errors.New("not resident")

// piece is a part of a read's reply: data, or a hole.
type piece struct {
	offset, length int64
	hole           bool
}

// zeros yields from where to where [off, end) of a device of that size is known to be zeros, in order, for runs of
// at least `least` bytes, which is at least 1. Runs count in whole blocks of the device, since clients round them to their
// sectors. A range that begins or ends within a block of zeros cuts the run there, and the block counts.
func zeros(d Extenter, off, end, size, least int64) iter.Seq2[int64, int64] {
	first, last := off&^(block-1), min((end+block-1)&^(block-1), size)
	return func(yield func(from, to int64) bool) {
		for from, to := range zeroBlocks(d.Extents(first, last-first), first, last, size) {
			from, to = max(from, off), min(to, end)
			if to-from >= least && !yield(from, to) {
				return
			}
		}
	}
}

// zeroBlocks yields from where to where [off, end) is zeros in whole blocks. The extents start at off.
func zeroBlocks(extents iter.Seq[Extent], off, end, size int64) iter.Seq2[int64, int64] {
	return func(yield func(from, to int64) bool) {
		start, at := off, off // all from start to at is zeros
		emit := func() bool {
			from, to := (start+block-1)&^(block-1), at
			if to != size {
				to &^= block - 1
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

// appendPieces divides [off, end) at its holes.
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

// pieces plans the reply to a read. The result is valid until the next call.
func (t *transmission) pieces(q request) []piece {
	off, end := int64(q.offset), int64(q.offset)+int64(q.length)
	whole := !t.structured || q.flags&flagDF != 0 || t.extents == nil || q.length < minHole
	if whole {
		t.plan = append(t.plan[:0], piece{offset: off, length: end - off})
		return t.plan
	}
	holes := zeros(t.extents, off, end, int64(t.size), minHole)
	t.plan = appendPieces(t.plan[:0], holes, off, end)
	return t.plan
}

// replySize is room enough for the reply to a read.
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

// read answers from what is resident, or has a goroutine read the rest.
func (t *transmission) read(q request) {
	pieces := t.pieces(q)
	if t.readNow(q, pieces) {
		return
	}
	b := t.take(replySize(pieces))
	b.requests = 1
	pending, pieces := t.seat.begin(q), slices.Clone(pieces)
	t.tasks.Go(func() {
		err := t.explain(q, t.readAll(q, b, pieces))
		t.seat.end(pending)
		if err != nil {
			b.p = appendError(b.p[:0], q, err, t.structured)
		}
		t.seat.count(q, err)
		t.out.send(b)
	})
}

func (t *transmission) readNow(q request, pieces []piece) bool {
	if t.resident == nil {
		return false
	}
	b := t.place(replySize(pieces))
	p, err := t.appendRead(b.p, q, pieces, t.now)
	if err != nil {
		return false
	}
	b.p = p
	b.requests++
	t.seat.count(q, nil)
	return true
}

// readAll reads all pieces, at once if there are several.
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

// filler sees to it that p gets the device's bytes from off on.
type filler func(p []byte, off int64) error

func (t *transmission) fillNow(p []byte, off int64) error {
	if !t.resident.ReadResident(p, off) {
		return errNotResident
	}
	return nil
}

// appendRead appends the whole reply to a read, for which p has room. The data is fill's.
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
