package cachedir

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"
)

// tally is what all processes know together of the directory. Values of a tally that is not known are 0.
type tally struct {
	known bool
	used  int64    // bytes: no less than what is there and what is being written
	added int64    // bytes taken since the last count began
	last  int64    // when the last count ended, in Unix seconds
	boot  [16]byte // of the system then: a power cut may lose what came later
}

// tallySize is that of the one line in the file: magic, used, added, last, boot, a checksum of all of it.
const (
	tallyMagic = "cairn 1\n"
	tallySize  = len(tallyMagic) + 3*8 + 16 + 4
)

func (t tally) encode() []byte {
	line := make([]byte, 0, tallySize)
	line = append(line, tallyMagic...)
	for _, n := range []int64{t.used, t.added, t.last} {
		line = binary.LittleEndian.AppendUint64(line, uint64(n))
	}
	line = append(line, t.boot[:]...)
	return binary.LittleEndian.AppendUint32(line, crc32.ChecksumIEEE(line))
}

var errTally = errors.New("it is no count of this version")

// decodeTally accepts only what encode makes of a tally that can be.
func decodeTally(line []byte) (tally, error) {
	if len(line) != tallySize || string(line[:len(tallyMagic)]) != tallyMagic {
		return tally{}, errTally
	}
	body, sum := line[:tallySize-4], line[tallySize-4:]
	if binary.LittleEndian.Uint32(sum) != crc32.ChecksumIEEE(body) {
		return tally{}, errTally
	}
	numbers := body[len(tallyMagic):]
	number := func(i int) int64 { return int64(binary.LittleEndian.Uint64(numbers[8*i:])) }
	t := tally{known: true, used: number(0), added: number(1), last: number(2), boot: [16]byte(numbers[24:])}
	if t.used < 0 || t.added < 0 || t.last < 0 {
		return tally{}, errTally
	}
	return t, nil
}

// countEvery is how long a count is trusted that no eviction has renewed: others may have written chunks, or
// removed some.
const countEvery = 24 * time.Hour

// stale says whether the directory should be counted anew.
func (t tally) stale(boot [16]byte, now time.Time) bool {
	return !t.known || t.boot != boot || now.Sub(time.Unix(t.last, 0)).Abs() > countEvery
}

// take takes room for n bytes if the limit allows.
func (t *tally) take(n, limit int64) bool {
	if !t.known || n > limit-t.used {
		return false
	}
	t.used += n
	t.added += n
	return true
}

// giveBack gives back the room of what was there. It may have been counted by the count under way, or not, so
// that does not hear of it.
func (t *tally) giveBack(n int64) { t.used = max(t.used-n, 0) }

// cancel undoes a take of which no count has seen anything.
func (t *tally) cancel(n int64) {
	t.giveBack(n)
	t.added = max(t.added-n, 0)
}

// counted takes in a count: what was seen, and what was added since it began.
func (t *tally) counted(seen int64, boot [16]byte, now time.Time) {
	*t = tally{known: true, used: seen + t.added, added: t.added, last: now.Unix(), boot: boot}
}
