package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"slices"
	"syscall"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/blob/verify"
	"cairn/internal/blockdev"
	"cairn/internal/disk"
	"cairn/internal/openfile"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/s3"
	"cairn/store/supply"
)

// The exit statuses, as `cairn help` tells them.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitDamaged  = 3
	exitNotFound = 4
	exitRefused  = 5
	exitMended   = 6
	exitSignal   = 128 // and the signal's number
)

// usageError is a mistake in how a command was called.
type usageError struct {
	command *cobra.Command
	err     error
}

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// damagedError says that data is not what it should be.
type damagedError struct{ text string }

func (e damagedError) Error() string { return e.text }

// mendedError says that damage was found and removed, as it was asked for.
type mendedError struct{ text string }

func (e mendedError) Error() string { return e.text }

// onlyMended reports whether err is a mendedError, or several, and nothing worse.
func onlyMended(err error) bool {
	several, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return is[mendedError](err)
	}
	return !slices.ContainsFunc(several.Unwrap(), func(err error) bool { return !onlyMended(err) })
}

// hintError is an error with something to try.
type hintError struct {
	err  error
	hint string
}

func (e hintError) Error() string { return e.err.Error() }
func (e hintError) Unwrap() error { return e.err }

// streamError is the failure of an image that was written as a stream, of which nothing can be used again.
type streamError struct{ err error }

func (e streamError) Error() string { return e.err.Error() }
func (e streamError) Unwrap() error { return e.err }

// exitStatus is the exit status for an error. A job that a signal ended is interrupted, whatever failed.
func exitStatus(ctx context.Context, err error) int {
	if i, ok := errors.AsType[interrupted](context.Cause(ctx)); ok {
		return exitSignal + int(i.signal)
	}
	switch {
	case is[usageError](err) || is[misuse](err) || is[openfile.ClosedError](err) || errors.Is(err, openfile.ErrReadOnly) ||
		errors.Is(err, blockdev.ErrNotLiftable) || errors.Is(err, locate.ErrKind):
		return exitUsage
	case is[*blockdev.RefusedError](err) || errors.Is(err, disk.ErrAmbiguous) || errors.Is(err, store.ErrExists):
		return exitRefused
	case is[damagedError](err) || is[verify.LengthError](err) || is[release.TreeError](err) || is[*store.CorruptError](err) || errors.Is(err, assemble.ErrMedium) || errors.Is(err, blob.ErrInvalid) || errors.Is(err, profile.ErrInvalid) || errors.Is(err, disk.ErrInvalidTable):
		return exitDamaged
	case errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrDenied),
		errors.Is(err, fs.ErrPermission) || errors.Is(err, s3.ErrNoBucket) || trustHint(err) != "",
		errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) || errors.Is(err, disk.ErrNotFound) || errors.Is(err, disk.ErrNoTable) || errors.Is(err, disk.ErrNoRoot):
		return exitNotFound
	case onlyMended(err):
		return exitMended
	}
	return exitFailed
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// complain tells the user what went wrong, and what to try.
func complain(w io.Writer, err error, hint string) {
	kind := "error: "
	if onlyMended(err) {
		kind = ""
	}
	fmt.Fprintf(w, "cairn: %s%v\n", kind, err)
	if hint != "" {
		fmt.Fprintf(w, "cairn: hint: %s\n", hint)
	}
}

// interruptedHint says what a command that a signal ended has left, and how to go on.
func interruptedHint(c *cobra.Command, signal syscall.Signal, err error) string {
	hint := "run it again to go on"
	switch c.Name() {
	case "assemble":
		hint = "a target in place is not whole, and a file has not its name yet; run it again to go on"
	case "make":
		hint = "there is no new index; run it again: chunks that are stored stay"
	}
	if is[streamError](err) {
		hint = "what was written is the beginning of the image; run it again to begin anew"
	}
	if h, ok := errors.AsType[hookError](err); ok {
		hint = fmt.Sprintf("%s holds the image; run %s, or assemble again", h.target, h.program)
	}
	if signal == syscall.SIGHUP {
		hint += ". 'nohup cairn …' or 'systemd-run cairn …' goes on when its terminal or ssh session is closed"
	}
	return hint
}

func hintFor(err error, status int) string {
	if h, ok := errors.AsType[hintError](err); ok {
		return h.hint
	}
	if refused, ok := errors.AsType[*blockdev.RefusedError](err); ok {
		return cmp.Or(refused.Hint, refusedHint(refused, is[streamError](err)))
	}
	if u, ok := errors.AsType[usageError](err); ok && u.command.HasParent() {
		return fmt.Sprintf("see '%s --help'", u.command.CommandPath())
	}
	if closed, ok := errors.AsType[openfile.ClosedError](err); ok && closed.FD == stdout {
		return ">/dev/null throws away what is written"
	}
	if hint := accessHint(err); hint != "" {
		return hint
	}
	switch {
	case status == exitMended:
		return "run make again for the images that have those chunks, or verify with --repair STORE and the indexes"
	case status == exitUsage:
		return "see 'cairn help'"
	case errors.Is(err, supply.ErrBudget) && is[streamError](err):
		return "run it again with a larger --max-download; a stream begins anew"
	case errors.Is(err, supply.ErrBudget):
		return "run it again with a larger --max-download: what is done is not done twice"
	case errors.Is(err, syscall.ENOSPC):
		return "make room and run it again"
	case errors.Is(err, store.ErrUnavailable) && is[streamError](err):
		return "check the network and the server, and run it again; a stream begins anew"
	case errors.Is(err, store.ErrUnavailable):
		return "check the network and the server, and run it again: what is done is not done twice"
	case errors.Is(err, store.ErrExists):
		return "choose another name, or leave --create-only out to replace it"
	case is[release.TreeError](err) || errors.Is(err, blob.ErrArchive):
		return treeHint
	case errors.Is(err, blob.ErrInvalid):
		return "the index is damaged or is something else; get it again"
	case is[*store.CorruptError](err):
		return "the store's copy is damaged; 'cairn verify INDEX' lists what is, another store (-s) may hold it whole"
	case is[*release.VanishedError](err):
		return "something removes chunks from this store; when it has ended run it again, without --base if that was named"
	case errors.Is(err, store.ErrNotFound):
		return "'cairn verify INDEX -s STORE' lists what a store lacks; -s names another store"
	}
	return tableHint(err)
}
