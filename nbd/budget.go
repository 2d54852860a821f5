package nbd

import (
	"errors"
	"time"
)

// Limits of a handshake. A client may request information about each listed export: `nbdinfo
// --list` and `qemu-nbd -L` send INFO and LIST_META_CONTEXT for each, one after the other.
const (
	maxOptions     = 32
	optionsPerName = 4
	timePerName    = 500 * time.Millisecond
)

var errTooManyOptions = errors.New("too many options")

// budget limits the options and the time of a handshake. Both limits grow with the list that the
// server has sent.
type budget struct {
	perOption     time.Duration // to receive and answer one option
	end           time.Time     // deadline of the handshake
	spent         int           // options so far, without those taken from exportOptions
	exportOptions int           // options about exports that are still free
	longestList   int           // exports in the longest list so far
}

func newBudget(timeout time.Duration) budget {
	return budget{perOption: timeout, end: time.Now().Add(timeout)}
}

// optionDeadline returns the time by which the next option must be received and answered.
func (b *budget) optionDeadline(now time.Time) time.Time {
	if at := now.Add(b.perOption); at.Before(b.end) {
		return at
	}
	return b.end
}

// spendOption counts one option. It returns an error if the client has sent too many.
func (b *budget) spendOption(id uint32) error {
	if b.exportOptions > 0 && (id == optInfo || id == optListMetaContext || id == optSetMetaContext) {
		b.exportOptions--
		return nil
	}
	if b.spent++; b.spent > maxOptions {
		return errTooManyOptions
	}
	return nil
}

// extendForList extends the budget for a list of n exports. Listing the same exports again adds
// nothing.
func (b *budget) extendForList(n int) {
	more := max(n-b.longestList, 0)
	b.longestList += more
	b.exportOptions += more * optionsPerName
	b.end = b.end.Add(time.Duration(more) * timePerName)
}
