package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"cairn/blob/deploy"
	"cairn/internal/blockdev"
	"cairn/store/locate"
)

// dash means stdin or stdout wherever a file is read or written as a whole; ./- is a file of that name. Only one part of
// a command may use each of them.
const dash = "-"

const stdin, stdout, stderrFile = 0, 1, 2

// misuse is an error of usage that is found after the command line was checked.
type misuse struct{ text string }

func (e misuse) Error() string { return e.text }

// descriptor returns the number of the open file that a path of /dev/fd or /proc/self/fd names, also behind symbolic
// links such as /dev/stdout.
func descriptor(path string) (fd int, ok bool) {
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

// standard returns "-" for a location that is the open file fd, else the location.
func standard(location string, fd int) string {
	if n, ok := descriptor(location); ok && n == fd {
		return dash
	}
	return location
}

// openFile returns the open file of that number.
func openFile(fd int) *os.File {
	switch fd {
	case stdin:
		return os.Stdin
	case stdout:
		return os.Stdout
	case stderrFile:
		return os.Stderr
	}
	return os.NewFile(uintptr(fd), fmt.Sprint("/dev/fd/", fd))
}

// refuseClosed refuses a stdin or stdout that was closed when the program began (<&- or >&-): an image would come from
// nowhere, or go nowhere. The Go runtime opens /dev/null in its place, for reading and writing; a shell opens it for one
// of them.
func refuseClosed(fd int, f *os.File) error {
	if fd > stdout {
		return nil
	}
	flags, err := openFlags(f)
	if err != nil || flags&unix.O_ACCMODE != unix.O_RDWR {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	null, err := os.Stat(os.DevNull)
	switch {
	case err != nil || !os.SameFile(info, null):
		return nil //nolint:nilerr // there is no /dev/null that it could be
	case fd == stdin:
		return misuse{"stdin is closed, or /dev/null opened for reading and writing"}
	}
	return hintError{misuse{"stdout is closed, or /dev/null opened for reading and writing"}, ">/dev/null throws away what is written"}
}

// openFIFO opens a FIFO, which takes until another process opens its other end.
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

// openInput opens an image that is stdin, another open file of this process, or a FIFO: as a file where it can be read
// at any place, else as a stream. It returns neither for all other locations.
func openInput(ctx context.Context, location string) (*blockdev.File, io.Reader, error) {
	fd, open := descriptor(location)
	if open = open || location == dash; open {
		return openDescriptor(ctx, fd)
	}
	info, err := os.Stat(location)
	if err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		return nil, nil, nil //nolint:nilerr // the caller finds it again
	}
	f, err := openFIFO(ctx, location, os.O_RDONLY)
	if err != nil {
		return nil, nil, err
	}
	return nil, cancellable(ctx, f), nil
}

func openDescriptor(ctx context.Context, fd int) (*blockdev.File, io.Reader, error) {
	f := openFile(fd)
	if f == nil {
		return nil, nil, fs.ErrInvalid
	}
	if err := refuseClosed(fd, f); err != nil {
		return nil, nil, err
	}
	if off, err := f.Seek(0, io.SeekCurrent); err == nil {
		file, err := blockdev.OpenRead(fmt.Sprint("/proc/self/fd/", fd), blockdev.Section{Offset: off})
		if err == nil {
			return file, nil, nil
		}
	}
	return nil, cancellable(ctx, f), nil
}

// users are the parts of a command line that read stdin or write to stdout.
type users struct{ in, out []string }

func (u *users) reads(what, location string) {
	if standard(location, stdin) == dash {
		u.in = append(u.in, what)
	}
}

func (u *users) readsAt(what string, l locate.Location) {
	if l.IsStream() {
		u.in = append(u.in, what)
	}
}

func (u *users) writes(what, location string) {
	if standard(location, stdout) == dash {
		u.prints(what, true)
	}
}

func (u *users) prints(what string, does bool) {
	if does {
		u.out = append(u.out, what)
	}
}

// checkStdio refuses a second user of stdin or stdout.
func checkStdio(c *cobra.Command, find func(u *users, args []string)) {
	check(c, func(args []string) error {
		var u users
		find(&u, args)
		switch {
		case len(u.in) > 1:
			return fmt.Errorf("%s are both to be read from stdin; only one can be", strings.Join(u.in[:2], " and "))
		case len(u.out) > 1:
			return fmt.Errorf("%s both go to stdout; only one can", strings.Join(u.out[:2], " and "))
		}
		return nil
	})
}

// takesDash is the annotation of flags that name files whose value may be "-".
const takesDash = "cairn_takes_dash"

// takeDash lets a flag have the value "-".
func takeDash(c *cobra.Command, name string) {
	if err := c.Flags().SetAnnotation(name, takesDash, nil); err != nil {
		panic(err)
	}
}

// refuseDashes has all commands refuse "-" as the value of flags that name a file which is not a stream, or a directory.
// Flags that take locations say themselves which of these they take.
func refuseDashes(root *cobra.Command) {
	for _, c := range root.Commands() {
		refuseDashes(c)
		check(c, func([]string) (err error) {
			c.Flags().Visit(func(f *pflag.Flag) {
				if _, may := f.Annotations[takesDash]; !may && hasDash(f.Value) {
					err = fmt.Errorf("--%s -: it is not read from stdin or written to stdout; a file of that name is ./-", f.Name)
				}
			})
			return err
		})
	}
}

// hasDash reports whether a flag's value is "-", or HOST=-.
func hasDash(v pflag.Value) bool {
	values := []string{v.String()}
	if list, ok := v.(pflag.SliceValue); ok {
		values = list.GetSlice()
	}
	for _, value := range values {
		if value == dash || strings.HasSuffix(value, "="+dash) {
			return true
		}
	}
	return false
}

// checkSeeds refuses seeds that cannot be read at any place.
func checkSeeds(seeds []deploy.Place) error {
	for _, s := range seeds {
		if s.Path == dash {
			return errors.New("--seed -: a seed is read at any place, which stdin does not allow; a file of that name is ./-")
		}
		if info, err := os.Stat(s.Path); err == nil && info.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0 {
			return fmt.Errorf("--seed %s: a seed is read at any place, which a pipe does not allow", s.Path)
		}
	}
	return nil
}
