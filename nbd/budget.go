package nbd

import (
	"errors"
	"time"
)

// Limits of a handshake. A client may ask about each export that it was shown: `nbdinfo --list` and `qemu-nbd -L` send
// INFO and LIST_META_CONTEXT for each, one after the other.
const (
	maxOptions     = 32
	optionsPerName = 4
	timePerName    = 500 * time.Millisecond
)

var errOptions = errors.New("too many options")

// budget is how much a client may ask in a handshake, and for how long. Both grow with the list that it was shown.
type budget struct {
	idle    time.Duration // for the next option to come and be answered
	end     time.Time     // of the handshake
	options int           // sent, those apart that are about exports of the list
	about   int           // options about exports that may still come
	listed  int           // the longest list so far
}

func newBudget(timeout time.Duration) budget {
	return budget{idle: timeout, end: time.Now().Add(timeout)}
}

// deadline is when the next option must be answered.
func (b *budget) deadline(now time.Time) time.Time {
	if at := now.Add(b.idle); at.Before(b.end) {
		return at
	}
	return b.end
}

// spend takes one option off the budget.
func (b *budget) spend(id uint32) error {
	if b.about > 0 && (id == optInfo || id == optListMetaContext || id == optSetMetaContext) {
		b.about--
		return nil
	}
	if b.options++; b.options > maxOptions {
		return errOptions
	}
	return nil
}

// grow takes note of a list of n exports. The same list once more gives nothing.
func (b *budget) grow(n int) {
	more := max(n-b.listed, 0)
	b.listed += more
	b.about += more * optionsPerName
	b.end = b.end.Add(time.Duration(more) * timePerName)
}
