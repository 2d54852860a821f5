package blockdev

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The checks that a target passes before it is written. Their names are stable: users lift checks by them,
// and programs tell refusals apart. "overlap" and "moved" are for callers.
const (
	CheckNotTarget = "not-a-target" // no block device or regular file
	CheckInDev     = "in-dev"       // a regular file under /dev, where a device was meant
	CheckRoot      = "root"         // the running system lies on it
	CheckMounted   = "mounted"      // also in another mount namespace
	CheckHolder    = "holder"       // a part of a stacked device (dm, md)
	CheckSwap      = "swap"         // swapped to
	CheckLoop      = "loop-backing" // a loop device takes its bytes from it
	CheckReadOnly  = "read-only"
	CheckClaimed   = "claimed"   // another program has it exclusively, or locked
	CheckTooSmall  = "too-small" // the image does not fit
	CheckOverlap   = "overlap"   // it shares bytes with a seed
	CheckMoved     = "moved"     // it is another partition than it was
)

// Liftable are the checks that Options.Force may name. Where these fail nothing else need lose data: a loop
// device that is itself in use (mounted, swap, held) fails the check that is named for that use as well.
// With any other something would be destroyed, or the kernel would not let us write.
func Liftable() []string { return []string{CheckInDev, CheckLoop} }

// ErrNotLiftable says that Options.Force named something that is not Liftable.
var ErrNotLiftable = errors.New("cannot be lifted")

func checkForce(names []string) error {
	for _, name := range names {
		if !slices.Contains(Liftable(), name) {
			return fmt.Errorf("the check %q %w, only %s", name, ErrNotLiftable, strings.Join(Liftable(), ", "))
		}
	}
	return nil
}

// RefusedError says that a target was left alone, to protect data.
type RefusedError struct {
	Path  string // the target
	Check string // the name of the check that failed
	Why   string // what speaks against writing to it: which mount, device or process
	Hint  string // what the user can do
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("refusing to write to %s: %s", e.Path, e.Why)
}

// TooSmall returns the error for a target of size bytes that is to hold need bytes.
func TooSmall(path string, size, need int64) *RefusedError {
	why := fmt.Sprintf("it holds %d bytes and %d are needed", size, need)
	return &RefusedError{Path: path, Check: CheckTooSmall, Why: why, Hint: "choose a larger partition"}
}
