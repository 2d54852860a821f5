package lanes

import (
	"encoding/binary"
	"slices"
	"sync"
)

const (
	maxLanes = 16
	maxBlock = 128
	// maxRun is how many blocks a kernel does in one call: a goroutine cannot be stopped inside of it, and so much
	// takes a millisecond or two.
	maxRun = 4096
	// maxSort is how many messages are put in order of their size; more of them are taken in parts.
	maxSort = 256
)

// sumAll hands the digest of each message to put, in any order, before it returns.
func (m *method) sumAll(messages [][]byte, put func(i int, sum [32]byte)) {
	if m.kernel == none {
		for i, p := range messages {
			put(i, m.sum(p))
		}
		return
	}
	b := batches.Get().(*batch)
	for first := 0; first < len(messages); first += maxSort {
		*b = batch{method: m, messages: messages[first:min(first+maxSort, len(messages))]}
		b.run(func(i int, sum [32]byte) { put(first+i, sum) })
	}
	*b = batch{} // keeps no message alive
	batches.Put(b)
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// batch hashes up to maxSort messages.
type batch struct {
	*method
	messages [][]byte
	order    [maxSort]uint16 // the messages' numbers, longest first, so that the lanes end at about the same time
	next     int             // in order: who gets the next free lane
	lanes    [maxLanes]lane
	// What the kernel works on. The state is word by word, in each of which a lane follows the other.
	state [512]byte
	from  [maxLanes]*byte
}

// lane is a message on its way through the kernel.
type lane struct {
	live    bool
	message int
	rest    []byte // whole blocks that the kernel has not seen; first the message's, then its padded end
	last    bool   // rest is the padded end
	end     [2 * maxBlock]byte
}

func (b *batch) run(put func(i int, sum [32]byte)) {
	b.sort()
	for i := range b.width {
		b.load(i)
	}
	for {
		blocks, live := b.steps()
		if live == 0 {
			return
		}
		if b.next == len(b.messages) && b.lagging() {
			b.finish(put)
			return
		}
		b.aim()
		b.kernel.hash(&b.state, &b.from, blocks)
		b.advance(blocks, put)
	}
}

func (b *batch) sort() {
	order := b.order[:len(b.messages)]
	for i := range order {
		order[i] = uint16(i)
	}
	slices.SortFunc(order, func(x, y uint16) int { return len(b.messages[y]) - len(b.messages[x]) })
}

// used are the lanes that the kernel has.
func (b *batch) used() []lane { return b.lanes[:b.width] }

// load gives lane i the next message, if there is one.
func (b *batch) load(i int) {
	l := &b.lanes[i]
	if l.live = b.next < len(b.messages); !l.live {
		return
	}
	l.message = int(b.order[b.next])
	b.next++
	message := b.messages[l.message]
	l.rest, l.last = message[:len(message)/b.block()*b.block()], false
	if len(l.rest) == 0 {
		l.rest, l.last = b.padded(l, message), true
	}
	for w, v := range b.start {
		b.setWord(w, i, v)
	}
}

// padded is what comes behind the whole blocks of a message: its last bytes, a one bit, zeros, and its size in bits.
func (b *batch) padded(l *lane, message []byte) []byte {
	size, over := b.block(), len(message)%b.block()
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

// steps is how many blocks all live lanes can go on for, and how many are live.
func (b *batch) steps() (blocks, live int) {
	blocks = maxRun
	for i := range b.used() {
		if l := &b.lanes[i]; l.live {
			blocks = min(blocks, len(l.rest)/b.block())
			live++
		}
	}
	return blocks, live
}

// lagging says that so few lanes are left that it is faster to hash their messages from the start, one by one.
func (b *batch) lagging() bool {
	alone, longest := 0, 0
	for i := range b.used() {
		if l := &b.lanes[i]; l.live {
			alone += len(b.messages[l.message]) + b.block()
			longest = max(longest, b.left(l))
		}
	}
	return 10*alone < b.delay*longest
}

// left is how much of a message a lane has still to hash, in bytes of blocks.
func (b *batch) left(l *lane) int {
	if l.last {
		return len(l.rest)
	}
	return len(l.rest) + b.block()
}

func (b *batch) finish(put func(i int, sum [32]byte)) {
	for i := range b.used() {
		if l := &b.lanes[i]; l.live {
			put(l.message, b.sum(b.messages[l.message]))
		}
	}
}

// aim tells the kernel where the lanes read. Idle ones read with another, and what they make of it is not used.
func (b *batch) aim() {
	var some *byte
	for i := range b.used() {
		if l := &b.lanes[i]; l.live {
			b.from[i] = &l.rest[0]
			some = b.from[i]
		}
	}
	for i := range b.used() {
		if !b.lanes[i].live {
			b.from[i] = some
		}
	}
}

// advance moves the lanes on, and loads those anew that have ended.
func (b *batch) advance(blocks int, put func(i int, sum [32]byte)) {
	for i := range b.used() {
		l := &b.lanes[i]
		if !l.live {
			continue
		}
		l.rest = l.rest[blocks*b.block():]
		switch {
		case len(l.rest) > 0:
		case !l.last:
			l.rest, l.last = b.padded(l, b.messages[l.message]), true
		default:
			put(l.message, b.digest(i))
			b.load(i)
		}
	}
}

// digest is the first 32 bytes of a lane's state.
func (b *batch) digest(l int) (sum [32]byte) {
	for w := range 32 / b.word {
		p := b.at(w, l)
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
		binary.LittleEndian.PutUint64(b.at(w, l), v)
	} else {
		binary.LittleEndian.PutUint32(b.at(w, l), uint32(v))
	}
}

// at is where the state has word w of lane l.
func (b *batch) at(w, l int) []byte { return b.state[(w*b.width+l)*b.word:] }
