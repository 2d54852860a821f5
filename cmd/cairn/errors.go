package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os/exec"
	"slices"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/delta"
	"cairn/blob/delta/deltadir"
	"cairn/blob/ingest"
	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/blob/trust"
	"cairn/blob/update"
	"cairn/blob/verify"
	"cairn/internal/blockdev"
	"cairn/internal/dashboard"
	"cairn/internal/disk"
	"cairn/internal/openfile"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/keep"
	"cairn/store/locate"
	"cairn/store/s3"
)

// The exit statuses, as `cairn help` lists them.
const (
	exitDone     = 0
	exitFailed   = 1
	exitUsage    = 2
	exitDamaged  = 3
	exitNotFound = 4
	exitRefused  = 5
	exitMended   = 6
	exitSignal   = 128 // plus the signal's number
)

// usageError is wrong usage of a command.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// usageIfUnsupported marks the error about a location of a kind that cannot be written as wrong usage.
func usageIfUnsupported(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return usageError{err}
	}
	return err
}

// damagedError reports data that does not match its digest.
type damagedError struct{ text string }

func (e damagedError) Error() string { return e.text }

// refusedError reports that a command does not go on, to protect data.
type refusedError struct{ text, hint string }

func (e refusedError) Error() string { return e.text }

// mendedError reports that damage was found, and removed as requested.
type mendedError struct{ text string }

func (e mendedError) Error() string { return e.text }

// onlyMended reports whether err consists of one or more mendedErrors.
func onlyMended(err error) bool {
	several, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return hasType[mendedError](err)
	}
	return !slices.ContainsFunc(several.Unwrap(), func(err error) bool { return !onlyMended(err) })
}

// hintError is an error with a hint.
type hintError struct {
	err  error
	hint string
}

func (e hintError) Error() string { return e.err.Error() }
func (e hintError) Unwrap() error { return e.err }

// streamError is the failure of an image that was written as a stream. The next run cannot use any of it.
type streamError struct{ err error }

func (e streamError) Error() string { return e.err.Error() }
func (e streamError) Unwrap() error { return e.err }

// exitStatus returns the exit status for an error. A signal decides it even if the job failed otherwise.
func exitStatus(ctx context.Context, err error) int {
	if i, ok := errors.AsType[interrupted](context.Cause(ctx)); ok {
		return exitSignal + int(i.signal)
	}
	switch {
	case hasType[usageError](err) || hasType[openfile.ClosedError](err) ||
		isAny(err, openfile.ErrReadOnly, blockdev.ErrNotLiftable, locate.ErrKind, keep.ErrCannotList):
		return exitUsage
	case hasType[*blockdev.RefusedError](err) || hasType[refusedError](err) ||
		isAny(err, disk.ErrAmbiguous, store.ErrExists, gcroot.ErrUnmanaged, gcroot.ErrBusy, update.ErrBusy):
		return exitRefused
	case hasType[damagedError](err) || hasType[verify.LengthError](err) || hasType[release.TreeError](err) ||
		hasType[*store.CorruptError](err) || hasType[*deltadir.OtherBytesError](err) ||
		hasType[*assemble.ImageSumError](err) || hasType[*ingest.MismatchError](err) || hasType[*trust.RefusedError](err) ||
		isAny(err, assemble.ErrMedium, blob.ErrInvalid, trust.ErrUntrusted, trust.ErrInvalid, gcroot.ErrInvalid, delta.ErrInvalid, profile.ErrInvalid, disk.ErrInvalidTable):
		return exitDamaged
	case trustHint(err) != "" || isAny(err, store.ErrNotFound, store.ErrUnavailable, store.ErrDenied, s3.ErrNoBucket,
		dashboard.ErrUnavailable, fs.ErrPermission, fs.ErrNotExist, exec.ErrNotFound, disk.ErrNotFound, disk.ErrNoTable, disk.ErrNoRoot):
		return exitNotFound
	case onlyMended(err):
		return exitMended
	}
	return exitFailed
}

// isAny reports whether err is one of targets.
func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}

// hasType reports whether err's tree contains an error of type E.
func hasType[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// printError prints an error, and a hint unless it is empty.
func printError(w io.Writer, err error, hint string) {
	kind := "error: "
	if onlyMended(err) {
		kind = ""
	}
	printLine(w, "cairn: %s%v", kind, err)
	if hint != "" {
		printLine(w, "cairn: hint: %s", hint)
	}
}
