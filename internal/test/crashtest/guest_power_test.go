package crashtest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// guestPower records the writes of assemble to a slot (dm-log-writes), and makes slots as a power cut would
// leave them: all flushed writes, and any parts of the others.
func guestPower(t *testing.T, r releases) {
	random := chance(t)
	size := (r.size(t, "c")/mib + 2) * mib
	base, slot := readStart(t, r.image("c"), size), newLoop(t, size)
	recorded := record(t, r, base)
	t.Logf("recorded %d writes and flushes", len(recorded))
	was, will := sum(t, r.image("c"), r.size(t, "b")), sum(t, r.image("b"), r.size(t, "b"))
	count := map[outcome]int{}
	for n := range times() / 2 {
		cut := cutPoint(random, n, len(recorded))
		patch(t, slot, powerCut(random, base, recorded[:cut], n == 0), 0)
		left := judge(t, slot, was, will, r.size(t, "b"), r.index("b"))
		count[left]++
		if n == 0 && left != isNew {
			t.Errorf("the power failed when assemble had ended well, which left %s", left)
		}
		assemble(t, r.index("b"), slot, "--state", "")
		wantImage(t, slot, r.image("b"))
		if t.Failed() {
			t.Fatalf("try %d: the power failed after %d of %d, which left %s", n, cut, len(recorded), left)
		}
	}
	t.Logf("left: %v", count)
}

// cutPoint returns the number of requests before try n's power cut: all, a few at the start or end, where the head is
// written, or any.
func cutPoint(random *rand.Rand, n, requests int) int {
	some := random.IntN(min(requests, 2*head/(4*kib)))
	switch {
	case n == 0:
		return requests
	case n%4 == 1:
		return some
	case n%4 == 2:
		return requests - some
	}
	return random.IntN(requests)
}

// readStart returns the first size bytes of an image, padded with zeros.
func readStart(t testing.TB, image string, size int64) []byte {
	t.Helper()
	p := make([]byte, size)
	if _, err := openFile(t, image).ReadAt(p, 0); len(p) == 0 {
		t.Fatal(err)
	}
	return p
}

// record assembles release b onto a slot that holds base, and returns the recorded writes.
func record(t testing.TB, r releases, base []byte) []entry {
	t.Helper()
	below, log := newLoop(t, int64(len(base))), newLoop(t, 64*mib)
	patch(t, below, base, 0)
	table := fmt.Sprintf("0 %d log-writes %s %s", len(base)/512, below, log)
	assemble(t, r.index("b"), newMapping(t, "recorded", table), "--state", "")
	removeMapping(t, "recorded")
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return parseLog(t, data)
}

// entry is a request in a log of dm-log-writes.
type entry struct {
	flush, fua bool // earlier requests, or this one, are on the medium
	at         int64
	data       []byte
	mark       string // text of a mark, which is not a request
}

// parseLog reads a log of sectors of 512 bytes, as drivers/md/dm-log-writes.c writes it.
func parseLog(t testing.TB, log []byte) (all []entry) {
	t.Helper()
	const (
		magic, sector             = 0x6a736677736872, 512
		flush, fua, discard, mark = 1, 2, 4, 8
	)
	number := func(p []byte, i int) int64 { return int64(binary.LittleEndian.Uint64(p[8*i:])) }
	if number(log, 0) != magic || binary.LittleEndian.Uint32(log[24:]) != sector {
		t.Fatal("this is no log of dm-log-writes")
	}
	rest := log[sector:]
	for range number(log, 2) {
		at, n, flags := number(rest, 0)*sector, number(rest, 1)*sector, number(rest, 2)
		note := string(rest[4*8:][:min(number(rest, 3), sector-4*8)])
		rest = rest[sector:]
		e := entry{flush: flags&flush != 0, fua: flags&fua != 0, at: at}
		switch {
		case flags&mark != 0:
			e = entry{mark: note}
		case flags&discard != 0:
			t.Fatal("something was discarded")
		}
		e.data, rest = rest[:n:n], rest[n:]
		all = append(all, e)
	}
	return all
}

// powerCut returns the content of a slot after a power cut behind the recorded requests. Blocks that were not
// flushed are lost, or, unless lost is set, may be on the medium or not.
func powerCut(random *rand.Rand, base []byte, recorded []entry, lost bool) []byte {
	slot := slices.Clone(base)
	flushed := 0
	for i, e := range recorded {
		if e.flush {
			flushed = i
		}
	}
	for i, e := range recorded {
		switch {
		case i < flushed || e.fua:
			copy(slot[e.at:], e.data)
		case !lost:
			writeSome(random, slot[e.at:], e.data)
		}
	}
	return slot
}

// writeSome writes all, none, a prefix, or some of the blocks of 4 KiB, which media write atomically.
func writeSome(random *rand.Rand, to, data []byte) {
	const block = 4 * kib
	until, chance := len(data), 1.0
	switch random.IntN(4) {
	case 0:
		chance = 0
	case 1:
		until = random.IntN(until + 1)
	case 2:
		chance = random.Float64()
	}
	for at := 0; at+block <= until; at += block {
		if random.Float64() < chance {
			copy(to[at:at+block], data[at:])
		}
	}
}
