package cachedir

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"
)

// tally is the shared count of the directory. The fields of an unknown tally are 0.
type tally struct {
	known bool
	used  int64    // bytes: at least those on the disk or being written
	added int64    // bytes taken since the last count began
	last  int64    // when the last count ended, in Unix seconds
	boot  [16]byte // boot id at that time: a power cut may lose later changes
}

// tallySize is the size of the single line in the file: magic, used, added, last, boot, and a
// checksum of them.
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

var errTally = errors.New("it is not a count of this version")

// decodeTally accepts only encodings of a valid tally.
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

// countEvery is the age at which a count expires unless an eviction renews it, since other programs
// may write or remove chunks.
const countEvery = 24 * time.Hour

// isStale reports whether the directory should be counted again.
func (t tally) isStale(boot [16]byte, now time.Time) bool {
	return !t.known || t.boot != boot || now.Sub(time.Unix(t.last, 0)).Abs() > countEvery
}

// tryReserve reserves n bytes if the limit allows.
func (t *tally) tryReserve(n, limit int64) bool {
	if !t.known || n > limit-t.used {
		return false
	}
	t.used += n
	t.added += n
	return true
}

// release releases the space of removed data. It leaves added unchanged, because the running count
// may or may not have seen the data.
func (t *tally) release(n int64) { t.used = max(t.used-n, 0) }

// cancelReserve undoes a tryReserve of which no count has seen any data.
func (t *tally) cancelReserve(n int64) {
	t.release(n)
	t.added = max(t.added-n, 0)
}

// setCounted sets the tally after a count: the bytes seen, plus those added since it began.
func (t *tally) setCounted(seen int64, boot [16]byte, now time.Time) {
	*t = tally{known: true, used: seen + t.added, added: t.added, last: now.Unix(), boot: boot}
}
