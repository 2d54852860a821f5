package keep

import (
	"bytes"
	"hash/maphash"
	"slices"

	"cairn/blob"
)

// table holds the distinct chunks of many indexes, in about 60 bytes each.
type table struct {
	seed  maphash.Seed
	rows  []row
	slots []uint32 // 1 + row index, or 0; the length is a power of two
}

// row is a chunk. 48 bytes.
type row struct {
	digest blob.Digest
	stored int64  // bytes in the store; 0 if absent
	size   uint32 // of the chunk
	owner  int32  // the only index that has it, or shared
}

const shared = -1

func newTable() *table { return &table{seed: maphash.MakeSeed(), slots: make([]uint32, 64)} }

// findSlot returns the slot of d, or the empty slot for it. The random seed keeps chosen digests
// from making it slow.
func (t *table) findSlot(d blob.Digest) int {
	mask := len(t.slots) - 1
	for at := int(maphash.Bytes(t.seed, d[:])) & mask; ; at = (at + 1) & mask {
		if i := t.slots[at]; i == 0 || t.rows[i-1].digest == d {
			return at
		}
	}
}

// find returns the row of d, or nil.
func (t *table) find(d blob.Digest) *row {
	if i := t.slots[t.findSlot(d)]; i > 0 {
		return &t.rows[i-1]
	}
	return nil
}

// add adds the chunks of an index, and returns their row indexes, each once.
func (t *table) add(x *blob.Index, owner int32) []uint32 {
	seen, distinct := blob.NewTable(x), 0
	for i, c := range x.All() {
		if seen.Find(c.Digest) == i {
			distinct++
		}
	}
	mine := make([]uint32, 0, distinct)
	t.rows = slices.Grow(t.rows, distinct) // in one step, since each growth leaves garbage behind
	for i, c := range x.All() {
		if seen.Find(c.Digest) == i {
			mine = append(mine, t.insert(c, owner))
		}
	}
	return mine
}

func (t *table) insert(c blob.Chunk, owner int32) uint32 {
	at := t.findSlot(c.Digest)
	if i := t.slots[at]; i > 0 {
		if r := &t.rows[i-1]; r.owner != owner {
			r.owner = shared
		}
		return i - 1
	}
	t.rows = append(t.rows, row{digest: c.Digest, size: uint32(c.Size), owner: owner})
	t.slots[at] = uint32(len(t.rows))
	if len(t.rows)*4 > len(t.slots)*3 {
		t.grow()
	}
	return uint32(len(t.rows) - 1)
}

func (t *table) grow() {
	t.slots = make([]uint32, 2*len(t.slots))
	for i, r := range t.rows {
		t.slots[t.findSlot(r.digest)] = uint32(i + 1)
	}
}

// sortedRows returns the rows by digest. The table cannot be used afterwards.
func (t *table) sortedRows() []row {
	t.slots = nil
	slices.SortFunc(t.rows, func(a, b row) int { return bytes.Compare(a.digest[:], b.digest[:]) })
	return t.rows
}

// distinctRows returns the chunks of the indexes that are in none of the indexes except, once and sorted.
func distinctRows(indexes, except []*blob.Index) []row {
	t, out := newTable(), newTable()
	for i, x := range indexes {
		t.add(x, int32(i))
	}
	for i, x := range except {
		out.add(x, int32(i))
	}
	return slices.DeleteFunc(t.sortedRows(), func(r row) bool { return out.find(r.digest) != nil })
}
