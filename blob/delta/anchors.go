package delta

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"sort"
)

const (
	anchorSize = 16 // bytes that are hashed
	// maxAnchors limits the memory of anchors to 683 MiB.
	maxAnchors = 1 << 26
	// maxPlaces limits the places with one hash.
	maxPlaces = 16
)

// anchors finds places in an image that have 16 given bytes. It knows those at multiples of step bytes in some ranges
// only, so it finds every run of step+15 bytes there, if maxPlaces does not hide it. It is a hash table with linear
// probing: an absent hash costs one read of memory.
type anchors struct {
	step   int64
	ranges []Range // sorted
	first  []int64 // number of each range's first place
	slots  []slot
}

// slot is a place, or empty.
type slot struct {
	place uint32 // 1 + number of the place
	tag   uint32 // the last bits of its hash, which tell most other bytes apart without a read of the image
}

// newAnchors reads sorted ranges of an image.
func newAnchors(ctx context.Context, image io.ReaderAt, ranges []Range, most int64) (*anchors, error) {
	a := &anchors{step: anchorSize, ranges: ranges}
	for sizeOf(ranges)/a.step > most {
		a.step *= 2
	}
	places := int64(0)
	for _, r := range ranges {
		a.first = append(a.first, places)
		places += (r.Size + a.step - 1) / a.step
	}
	a.slots = make([]slot, places+places/3+1)
	buf := make([]byte, 4<<20)
	for n, r := range ranges {
		for at := r.Offset; at < r.End(); at += int64(len(buf)) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			part := buf[:min(r.End()-at, int64(len(buf)))]
			if _, err := image.ReadAt(part, at); err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			for i := int64(0); i+anchorSize <= int64(len(part)); i += a.step {
				if !isDull(part[i:]) {
					a.insert(a.first[n]+(at+i-r.Offset)/a.step, hash16(part[i:]))
				}
			}
		}
	}
	return a, nil
}

func (a *anchors) insert(place int64, hash uint64) {
	same := 0
	i := a.slotOf(hash)
	for ; a.slots[i].place != 0; i = a.slotAfter(i) {
		if a.slots[i].tag == uint32(hash) {
			if same++; same == maxPlaces {
				return
			}
		}
	}
	a.slots[i] = slot{uint32(place) + 1, uint32(hash)}
}

// slotOf returns the first slot where a hash may be.
func (a *anchors) slotOf(hash uint64) int {
	hi, _ := bits.Mul64(hash, uint64(len(a.slots)))
	return int(hi)
}

func (a *anchors) slotAfter(i int) int {
	if i++; i < len(a.slots) {
		return i
	}
	return 0
}

// offsetOf returns the offset of a place in the image.
func (a *anchors) offsetOf(place int64) int64 {
	n := sort.Search(len(a.first), func(i int) bool { return a.first[i] > place }) - 1
	return a.ranges[n].Offset + (place-a.first[n])*a.step
}

// hash16 hashes the first 16 bytes.
func hash16(b []byte) uint64 {
	x, y := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	h := (x*0x9E3779B97F4A7C15 ^ bits.RotateLeft64(y*0xC2B2AE3D27D4EB4F, 31)) * 0x165667B19E3779F9
	return h ^ h>>29
}

// isDull reports whether the first 16 bytes repeat a pattern of 1, 2, 4 or 8 bytes. Such bytes are in too
// many places.
func isDull(b []byte) bool {
	return binary.LittleEndian.Uint64(b) == binary.LittleEndian.Uint64(b[8:])
}

// window reads an image in blocks, and keeps some of them. After an error it reads zeros.
type window struct {
	image  io.ReaderAt
	size   int64
	blocks [windowBlocks]windowBlock
	err    error
}

const (
	blockSize    = 16 << 10
	windowBlocks = 256
)

type windowBlock struct {
	number int64 // 1 + offset / blockSize; 0 is none
	data   []byte
}

// from returns some of the bytes from an offset on, at least one if it is less than size.
func (w *window) from(off int64) []byte {
	if off < 0 || off >= w.size {
		return nil
	}
	number := off / blockSize
	b := &w.blocks[number%windowBlocks]
	if b.number != number+1 {
		b.number = number + 1
		if b.data == nil {
			b.data = make([]byte, blockSize)
		}
		b.data = b.data[:min(w.size-number*blockSize, blockSize)]
		if n, err := w.image.ReadAt(b.data, number*blockSize); n < len(b.data) {
			w.err = errors.Join(w.err, err)
			clear(b.data)
		}
	}
	return b.data[off-number*blockSize:]
}

// matchLen returns how many bytes from an offset on equal those of b.
func (w *window) matchLen(off int64, b []byte) (n int) {
	for n < len(b) {
		part := w.from(off + int64(n))
		if len(part) == 0 {
			return n
		}
		part = part[:min(len(part), len(b)-n)]
		m := commonPrefix(part, b[n:])
		if n += m; m < len(part) {
			return n
		}
	}
	return n
}

// matchBack returns how many bytes before an offset equal the last ones of b.
func (w *window) matchBack(off int64, b []byte) (n int) {
	for n < len(b) {
		at := off - int64(n) - 1
		start := max(at/blockSize*blockSize, 0)
		if at < 0 || at >= w.size {
			return n
		}
		part := w.from(start)[:at-start+1]
		for len(part) > 0 && n < len(b) {
			if part[len(part)-1] != b[len(b)-n-1] {
				return n
			}
			part, n = part[:len(part)-1], n+1
		}
	}
	return n
}

func commonPrefix(a, b []byte) (n int) {
	limit := min(len(a), len(b))
	for n+8 <= limit {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)/8
		}
		n += 8
	}
	for n < limit && a[n] == b[n] {
		n++
	}
	return n
}

// find returns the place with the longest match of b, of at least 16 bytes. Of equal ones it returns the
// one nearest to near.
func (a *anchors) find(w *window, b []byte, near int64) (at int64, n int) {
	if len(b) < anchorSize || isDull(b) {
		return 0, 0
	}
	hash := hash16(b)
	for i := a.slotOf(hash); a.slots[i].place != 0; i = a.slotAfter(i) {
		if a.slots[i].tag != uint32(hash) {
			continue
		}
		off := a.offsetOf(int64(a.slots[i].place) - 1)
		m := w.matchLen(off, b)
		if m >= anchorSize && (m > n || m == n && distance(off, near) < distance(at, near)) {
			at, n = off, m
		}
	}
	return at, n
}

func distance(a, b int64) int64 { return max(a-b, b-a) }

// holds is the match after which the present distance between new and old bytes is kept without a search.
const holds = 32

// matches returns the parts of the old image that equal parts of a chunk, in the order of the chunk. near is where the
// chunk was, if it is known.
func (a *anchors) matches(w *window, chunk []byte, near int64) (list []Range) {
	shift := near // old offset minus position in the chunk
	end := 0      // of the last match
	for i := 0; i < len(chunk); {
		at, n := shift+int64(i), 0
		if at >= 0 {
			n = w.matchLen(at, chunk[i:])
		}
		if n < holds && n < len(chunk)-i {
			if other, m := a.find(w, chunk[i:], at); m > n {
				at, n = other, m
			}
		}
		if n < anchorSize {
			i++
			continue
		}
		back := w.matchBack(at, chunk[end:i])
		list = append(list, Range{at - int64(back), int64(back + n)})
		shift = at - int64(i)
		i += n
		end = i
	}
	return list
}
