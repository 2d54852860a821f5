package lanes

import (
	"encoding/binary"
	"slices"
	"sync"
)

const (
	maxLanes = 16
	maxBlock = 128
	// maxRun limits the blocks of one call of a kernel. A goroutine cannot be preempted during the call, and this
	// many blocks take a millisecond or two.
	maxRun = 4096
	// maxSort limits the messages that are sorted together. More messages are hashed in several batches.
	maxSort = 256
)

// sumAll calls emit with the digest of each message, in any order.
func (h *hasher) sumAll(messages [][]byte, emit func(i int, sum [32]byte)) {
	if h.kernel == none {
		for i, p := range messages {
			emit(i, h.sum(p))
		}
		return
	}
	b := batches.Get().(*batch)
	for first := 0; first < len(messages); first += maxSort {
		*b = batch{hasher: h, messages: messages[first:min(first+maxSort, len(messages))]}
		b.sumBatch(func(i int, sum [32]byte) { emit(first+i, sum) })
	}
	*b = batch{} // releases the messages
	batches.Put(b)
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// batch is the state of hashing up to maxSort messages.
type batch struct {
	*hasher
	messages [][]byte
	order    [maxSort]uint16 // message numbers, longest first, so that the lanes end at about the same time
	next     int             // index in order of the next message to load
	lanes    [maxLanes]lane
	// The kernel's arguments. state has each word of all lanes side by side.
	state [512]byte
	from  [maxLanes]*byte
}

// lane is a message in the kernel.
type lane struct {
	live    bool
	message int
	rest    []byte // whole blocks that are not hashed yet, of the message or of its padded end
	last    bool   // rest is the padded end
	end     [2 * maxBlock]byte
}

func (b *batch) sumBatch(emit func(i int, sum [32]byte)) {
	b.sortBySize()
	for i := range b.width {
		b.loadMessage(i)
	}
	for {
		blocks, live := b.countBlocks()
		if live == 0 {
			return
		}
		if b.next == len(b.messages) && b.isFasterAlone() {
			b.sumRemaining(emit)
			return
		}
		b.setInputs()
		b.kernel.hashBlocks(&b.state, &b.from, blocks)
		b.advanceLanes(blocks, emit)
	}
}

func (b *batch) sortBySize() {
	order := b.order[:len(b.messages)]
	for i := range order {
		order[i] = uint16(i)
	}
	slices.SortFunc(order, func(x, y uint16) int { return len(b.messages[y]) - len(b.messages[x]) })
}

// loadMessage assigns the next message to lane i, if there is one.
func (b *batch) loadMessage(i int) {
	l := &b.lanes[i]
	if l.live = b.next < len(b.messages); !l.live {
		return
	}
	l.message = int(b.order[b.next])
	b.next++
	message := b.messages[l.message]
	l.rest, l.last = message[:len(message)/b.blockSize()*b.blockSize()], false
	if len(l.rest) == 0 {
		l.rest, l.last = b.padMessage(l, message), true
	}
	for w, v := range b.initial {
		b.setWord(w, i, v)
	}
}

// padMessage returns the padded end of a message: the bytes after its last whole block, a one bit, zeros, and its
// size in bits.
func (b *batch) padMessage(l *lane, message []byte) []byte {
	size, over := b.blockSize(), len(message)%b.blockSize()
	if over+1+2*b.word > size {
		size *= 2
	}
	end := l.end[:size]
	clear(end)
	copy(end, message[len(message)-over:])
	end[over] = 0x80
	binary.BigEndian.PutUint64(end[size-8:], 8*uint64(len(message)))
	return end
}

// countBlocks returns how many blocks the kernel can hash in all live lanes, and the number of live lanes.
func (b *batch) countBlocks() (blocks, live int) {
	blocks = maxRun
	for i := range b.width {
		if l := &b.lanes[i]; l.live {
			blocks = min(blocks, len(l.rest)/b.blockSize())
			live++
		}
	}
	return blocks, live
}

// isFasterAlone reports whether it is faster to hash the remaining messages one by one from the start, since few
// lanes are live.
func (b *batch) isFasterAlone() bool {
	alone, longest := 0, 0
	for i := range b.width {
		if l := &b.lanes[i]; l.live {
			alone += len(b.messages[l.message]) + b.blockSize()
			left := len(l.rest)
			if !l.last {
				left += b.blockSize() // the padded end
			}
			longest = max(longest, left)
		}
	}
	return 10*alone < b.laneCost*longest
}

func (b *batch) sumRemaining(emit func(i int, sum [32]byte)) {
	for i := range b.width {
		if l := &b.lanes[i]; l.live {
			emit(l.message, b.sum(b.messages[l.message]))
		}
	}
}

// setInputs sets the addresses that the kernel reads. Idle lanes read the input of a live one, and their results are
// ignored.
func (b *batch) setInputs() {
	var some *byte
	for i := range b.width {
		if l := &b.lanes[i]; l.live {
			b.from[i] = &l.rest[0]
			some = b.from[i]
		}
	}
	for i := range b.width {
		if !b.lanes[i].live {
			b.from[i] = some
		}
	}
}

// advanceLanes moves the lanes past the hashed blocks, and loads the next message into lanes that have ended.
func (b *batch) advanceLanes(blocks int, emit func(i int, sum [32]byte)) {
	for i := range b.width {
		l := &b.lanes[i]
		if !l.live {
			continue
		}
		l.rest = l.rest[blocks*b.blockSize():]
		switch {
		case len(l.rest) > 0:
		case !l.last:
			l.rest, l.last = b.padMessage(l, b.messages[l.message]), true
		default:
			emit(l.message, b.readDigest(i))
			b.loadMessage(i)
		}
	}
}

// readDigest returns the first 32 bytes of a lane's state.
func (b *batch) readDigest(l int) (sum [32]byte) {
	for w := range 32 / b.word {
		p := b.wordAt(w, l)
		if b.word == 8 {
			binary.BigEndian.PutUint64(sum[8*w:], binary.LittleEndian.Uint64(p))
		} else {
			binary.BigEndian.PutUint32(sum[4*w:], binary.LittleEndian.Uint32(p))
		}
	}
	return sum
}

func (b *batch) setWord(w, l int, v uint64) {
	if b.word == 8 {
		binary.LittleEndian.PutUint64(b.wordAt(w, l), v)
	} else {
		binary.LittleEndian.PutUint32(b.wordAt(w, l), uint32(v))
	}
}

// wordAt returns the state from word w of lane l on.
func (b *batch) wordAt(w, l int) []byte { return b.state[(w*b.width+l)*b.word:] }
