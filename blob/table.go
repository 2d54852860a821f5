package blob

import "hash/maphash"

// Table finds the chunks of an index by digest, in 4 to 12 bytes per chunk. Its hash is seeded, so
// chosen digests do not slow it down. A table from NewTable is immutable and may be shared.
type Table struct {
	x     *Index
	seed  maphash.Seed
	slots []uint32 // 1 + number of a chunk, or 0; the length is a power of two
	used  int
}

// NewTable returns the table of x.
func NewTable(x *Index) *Table {
	t := newTable(x, x.Len())
	for i := range x.Len() {
		t.insertChunk(i)
	}
	return t
}

func newTable(x *Index, chunks int) *Table {
	size := 64
	for size*3 < chunks*4 {
		size *= 2
	}
	return &Table{x: x, seed: maphash.MakeSeed(), slots: make([]uint32, size)}
}

// Find returns the number of the first chunk with this digest, or -1.
func (t *Table) Find(d Digest) int { return int(t.slots[t.findSlot(d)]) - 1 }

// findSlot returns the slot that holds d, or else the empty slot for it.
func (t *Table) findSlot(d Digest) int {
	mask := len(t.slots) - 1
	for at := int(maphash.Bytes(t.seed, d[:])) & mask; ; at = (at + 1) & mask {
		if i := t.slots[at]; i == 0 || t.x.row(int(i)-1).digest == d {
			return at
		}
	}
}

// insertChunk inserts chunk i. It returns the first chunk with the same digest, which is i if the
// digest is new.
func (t *Table) insertChunk(i int) int {
	at := t.findSlot(t.x.row(i).digest)
	if first := int(t.slots[at]) - 1; first >= 0 {
		return first
	}
	t.slots[at] = uint32(i + 1)
	if t.used++; t.used*4 > len(t.slots)*3 {
		t.grow()
	}
	return i
}

func (t *Table) grow() {
	old := t.slots
	t.slots = make([]uint32, 2*len(old))
	for _, i := range old {
		if i != 0 {
			t.slots[t.findSlot(t.x.row(int(i)-1).digest)] = i
		}
	}
}
