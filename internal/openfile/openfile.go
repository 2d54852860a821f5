// Package openfile opens images and outputs by every kind of name: files, devices and partitions, files that
// are open when the process begins, such as stdin and stdout, and FIFOs. It opens them as files where that is
// possible, else as streams. Reads and writes of streams end with a context.
package openfile

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev"
)

// Dash is the name of stdin or stdout.
const Dash = "-"

// The numbers of the standard files.
const (
	Stdin  = 0
	Stdout = 1
	stderr = 2
)

// ClosedError reports that stdin or stdout was closed when the process began.
type ClosedError struct{ FD int }

func (e ClosedError) Error() string {
	name := "stdin"
	if e.FD == Stdout {
		name = "stdout"
	}
	return name + " is closed, or /dev/null opened for reading and writing"
}

// ErrReadOnly reports that an open file cannot be written.
var ErrReadOnly = errors.New("open for reading only")

// Descriptor returns the number of the open file that a path of /dev/fd or /proc/self/fd names, also behind symbolic
// links such as /dev/stdout.
func Descriptor(path string) (fd int, ok bool) {
	const mostLinks = 40
	for range mostLinks {
		abs, err := filepath.Abs(path)
		if err != nil {
			return 0, false
		}
		dir, base := filepath.Split(abs)
		if n, err := strconv.Atoi(base); err == nil && n >= 0 && isDescriptorDir(dir) {
			return n, true
		}
		target, err := os.Readlink(abs)
		if err != nil {
			return 0, false
		}
		if path = target; !filepath.IsAbs(path) {
			path = filepath.Join(dir, target)
		}
	}
	return 0, false
}

func isDescriptorDir(dir string) bool {
	switch dir {
	case "/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/", fmt.Sprintf("/proc/%d/fd/", os.Getpid()):
		return true
	}
	return false
}

// Standard returns "-" for a location that is the open file fd, else the location.
func Standard(location string, fd int) string {
	if n, ok := Descriptor(location); ok && n == fd {
		return Dash
	}
	return location
}

// openDescriptor returns the open file of that number. All but the standard files get a number of their own, since the
// process may name the same file again after this one was closed.
func openDescriptor(fd int) (*os.File, error) {
	switch fd {
	case Stdin:
		return os.Stdin, nil
	case Stdout:
		return os.Stdout, nil
	case stderr:
		return os.Stderr, nil
	}
	path := fmt.Sprint("/dev/fd/", fd)
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(own), path), nil
}

// RefuseClosed returns a ClosedError for a stdin or stdout that was closed when the program began (<&- or >&-),
// because the image would be empty or lost. The Go runtime opens /dev/null in its place for reading and
// writing; a shell opens /dev/null for one of them.
func RefuseClosed(fd int, f *os.File) error {
	if fd > Stdout {
		return nil
	}
	flags, err := Flags(f)
	if err != nil || flags&unix.O_ACCMODE != unix.O_RDWR {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	null, err := os.Stat(os.DevNull)
	if err != nil || !os.SameFile(info, null) {
		return nil //nolint:nilerr // without /dev/null, f is another file
	}
	return ClosedError{fd}
}

// IsStream reports whether a location is written in order, as a stream.
func IsStream(location string) bool {
	if Standard(location, Stdout) == Dash {
		return true
	}
	info, err := os.Stat(location)
	if err != nil {
		return false
	}
	if _, open := Descriptor(location); open {
		return !blockdev.IsBlockDevice(info)
	}
	return info.Mode()&fs.ModeNamedPipe != 0
}

// Flags returns the flags of open(2) that f has.
func Flags(f *os.File) (flags int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := conn.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	return flags, errors.Join(ctlErr, err)
}

// Node returns a path of an open file: the path that it was opened by, if that still names the file, else one
// in /proc.
func Node(f *os.File, info fs.FileInfo) string {
	self := fmt.Sprint("/proc/self/fd/", f.Fd())
	path, err := os.Readlink(self)
	if err != nil {
		return self
	}
	if now, err := os.Stat(path); err != nil || !os.SameFile(info, now) {
		return self
	}
	return path
}

// openFIFO opens a FIFO. It blocks until another process opens the other end, or the context ends.
func openFIFO(ctx context.Context, path string, mode int) (*os.File, error) {
	type opened struct {
		f   *os.File
		err error
	}
	done := make(chan opened, 1)
	go func() {
		f, err := os.OpenFile(path, mode, 0)
		done <- opened{f, err}
	}()
	select {
	case o := <-done:
		return o.f, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
