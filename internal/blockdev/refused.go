package blockdev

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The checks that a target passes before it is written. Their names are stable: users lift checks by name, and
// programs distinguish refusals by them. Callers of this package report CheckOverlap and CheckMoved.
const (
	CheckNotTarget = "not-a-target" // neither a block device nor a regular file
	CheckInDev     = "in-dev"       // a regular file under /dev, where a device was meant
	CheckRoot      = "root"         // it holds the running system
	CheckMounted   = "mounted"      // also in another mount namespace
	CheckHolder    = "holder"       // a part of a stacked device (dm, md)
	CheckSwap      = "swap"         // used as swap
	CheckLoop      = "loop-backing" // a loop device is attached to it
	CheckReadOnly  = "read-only"
	CheckClaimed   = "claimed"   // another program has exclusive access or a lock
	CheckTooSmall  = "too-small" // the image does not fit
	CheckOverlap   = "overlap"   // it shares bytes with a seed
	CheckMoved     = "moved"     // its partition changed since it was found
)

// Liftable returns the checks that Options.Force may name. Lifting them need not lose data: a loop device that
// is itself in use (mounted, swap, holder) fails the check for that use as well. Lifting any other check would
// destroy data, or the kernel would deny the write.
func Liftable() []string { return []string{CheckInDev, CheckLoop} }

// ErrNotLiftable means that Options.Force named a check that is not Liftable.
var ErrNotLiftable = errors.New("cannot be lifted")

func checkForce(names []string) error {
	for _, name := range names {
		if !slices.Contains(Liftable(), name) {
			return fmt.Errorf("the check %q %w, only %s", name, ErrNotLiftable, strings.Join(Liftable(), ", "))
		}
	}
	return nil
}

// RefusedError means that a target was not opened for writing, to protect data.
type RefusedError struct {
	Path  string // the target
	Check string // the name of the check that failed
	Why   string // the mount, device or process that prevents writing
	Hint  string // a remedy for the user
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("refusing to write to %s: %s", e.Path, e.Why)
}

// TooSmall returns the error for a target of size bytes that is to hold need bytes.
func TooSmall(path string, size, need int64) *RefusedError {
	why := fmt.Sprintf("it holds %d bytes and %d are needed", size, need)
	return &RefusedError{Path: path, Check: CheckTooSmall, Why: why, Hint: "choose a larger partition"}
}
