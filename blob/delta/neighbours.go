package delta

import "cairn/blob"

// places has, for each chunk of a new image, where the old image has the same bytes.
type places struct {
	old, new *blob.Index
	at       []int64 // offset in the old image by number of the new chunk; -1 if the old image lacks the chunk
	wanted   []int   // the chunks to encode: neither zeros, nor in the old image, nor equal to an earlier one
}

func findPlaces(old, new *blob.Index) *places {
	p := &places{old: old, new: new, at: make([]int64, new.Len())}
	table, first := blob.NewTable(old), blob.NewTable(new)
	last := -1 // number of the old chunk that the last one equals
	for i, c := range new.All() {
		p.at[i] = -1
		if last++; last >= old.Len() || last == 0 || !sameChunk(old.At(last), c) {
			last = table.Find(c.Digest)
		}
		switch {
		case last >= 0 && sameChunk(old.At(last), c):
			p.at[i] = old.At(last).Offset
		default:
			last = -1
			if !new.IsZero(i) && first.Find(c.Digest) == i && c.Size <= MaxChunk {
				p.wanted = append(p.wanted, i)
			}
		}
	}
	return p
}

// limitWanted leaves out wanted chunks, so that at most n are left, evenly spread. 0 is no limit.
func (p *places) limitWanted(n int) {
	all := p.wanted
	if n <= 0 || len(all) <= n {
		return
	}
	p.wanted = make([]int, n)
	for i := range n {
		p.wanted[i] = all[i*len(all)/n]
	}
}

func sameChunk(a, b blob.Chunk) bool { return a.Digest == b.Digest && a.Size == b.Size }

// between is where a wanted chunk was if its neighbours kept their distance: before has the old offset
// of its first byte by the last known chunk before it, after that of its end by the next known one. -1
// is unknown.
type between struct{ before, after int64 }

// findBetween returns the places of the wanted chunks, in order. Zeros are not neighbours: they are
// everywhere.
func (p *places) findBetween() []between {
	list := make([]between, len(p.wanted))
	shift, known, next := int64(0), false, 0
	for n, i := range p.wanted {
		for ; next < i; next++ {
			if p.isNeighbour(next) {
				shift, known = p.at[next]-p.new.At(next).Offset, true
			}
		}
		list[n].before = -1
		if at := p.new.At(i).Offset + shift; known && at <= p.old.Size() {
			list[n].before = at
		}
	}
	known, next = false, p.new.Len()-1
	for n := len(p.wanted) - 1; n >= 0; n-- {
		i := p.wanted[n]
		for ; next > i; next-- {
			if p.isNeighbour(next) {
				shift, known = p.at[next]-p.new.At(next).Offset, true
			}
		}
		list[n].after = -1
		if at := p.new.At(i).End() + shift; known && at >= 0 {
			list[n].after = at
		}
	}
	return list
}

func (p *places) isNeighbour(i int) bool { return p.at[i] >= 0 && !p.new.IsZero(i) }

// padding is the number of bytes on both sides of the place between the neighbours that belong to the
// reference.
const padding = 32 << 10

// ranges returns where the bytes of a chunk of a size may be in an old image.
func (b between) ranges(at, size, oldSize int64) []Range {
	before, after := b.before, b.after
	switch {
	case before < 0 && after < 0:
		before, after = at, at+size
	case before < 0:
		before = after - size
	case after < 0:
		after = before + size
	}
	list := []Range{{before - padding, after - before + 2*padding}}
	if after < before || after-before > 4*size+1<<20 || list[0].Size > MaxReference {
		// The neighbours were apart: take what followed the one, and what preceded the other.
		list = []Range{{before - padding, size + 2*padding}, {after - size - padding, size + 2*padding}}
	}
	return joinRanges(limitSize(list), 0, oldSize)
}

// vanished returns the parts of the old image that the new one lacks, with padding bytes on both sides. The bytes of a
// wanted chunk are most likely there.
func (p *places) vanished() (list []Range) {
	table := blob.NewTable(p.new)
	for i, c := range p.old.All() {
		if j := table.Find(c.Digest); !p.old.IsZero(i) && (j < 0 || !sameChunk(p.new.At(j), c)) {
			list = append(list, Range{c.Offset - padding, c.Size + 2*padding})
		}
	}
	return joinRanges(list, 0, p.old.Size())
}
