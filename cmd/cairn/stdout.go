package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/deploy"
	"cairn/internal/blockdev"
)

// output takes bytes in order: stdout, another open file of this process, or a FIFO.
type output struct {
	io.Writer // to file
	file      *os.File
	durable   bool // a regular file or block device, which can be flushed
	sparse    bool // a regular file that is not appended to
	keepsRest bool // that does not end behind the last byte, if it is longer
}

var _ assemble.ZeroWriter = (*output)(nil)

// newOutput makes an output of an open file, which w writes to.
func newOutput(w io.Writer, f *os.File) (*output, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	regular := info.Mode().IsRegular()
	o := &output{Writer: w, file: f, durable: regular || isBlockDevice(info)}
	if !regular {
		return o, nil
	}
	flags, err := openFlags(f)
	if err != nil {
		return nil, err
	}
	o.sparse = flags&unix.O_APPEND == 0
	start, err := f.Seek(0, io.SeekCurrent)
	o.keepsRest = start > 0
	return o, err
}

// openFlags are the flags of open(2) that f has.
func openFlags(f *os.File) (flags int, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := conn.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) })
	return flags, errors.Join(ctlErr, err)
}

// openOutput opens what a name stands for, if that is stdout, another open file of this process, or a FIFO. Else it is nil.
func openOutput(ctx context.Context, name string) (*output, error) {
	fd, open := descriptor(name)
	if name == dash {
		fd, open = stdout, true
	}
	if open {
		return descriptorOutput(ctx, fd)
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		return nil, nil //nolint:nilerr // the caller finds it again
	}
	f, err := openFIFO(ctx, name, os.O_WRONLY)
	if err != nil {
		return nil, err
	}
	return newOutput(reported(ctx, f), f)
}

func descriptorOutput(ctx context.Context, fd int) (*output, error) {
	f := openFile(fd)
	if f == nil {
		return nil, fs.ErrInvalid
	}
	if err := refuseClosed(fd, f); err != nil {
		return nil, err
	}
	flags, err := openFlags(f)
	switch {
	case err != nil:
		return nil, err
	case flags&unix.O_ACCMODE == unix.O_RDONLY:
		return nil, misuse{fmt.Sprintf("%s is open for reading only", f.Name())}
	}
	return newOutput(reported(ctx, f), f)
}

// reported writes to f. A reader that is gone is an error as others are.
func reported(ctx context.Context, f *os.File) io.Writer {
	return patient{ctx: ctx, w: f, gone: func() {}}
}

// WriteZeros writes n zeros, or leaves a hole behind the end of a regular file.
func (o *output) WriteZeros(n int64) error {
	if !o.sparse {
		return writeZeros(o.Writer, n)
	}
	at, err := o.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	info, err := o.file.Stat()
	if err != nil {
		return err
	}
	old := min(max(info.Size()-at, 0), n)
	if err := writeZeros(o.Writer, old); err != nil {
		return err
	}
	_, err = o.file.Seek(n-old, io.SeekCurrent)
	return err
}

func writeZeros(w io.Writer, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for n > 0 {
		k, err := w.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return err
		}
		n -= int64(k)
	}
	return nil
}

// finish brings what can be flushed to the medium, and closes the output. A regular file that was written from its start
// ends behind the last byte. One that was not may hold something else there, and keeps it.
func (o *output) finish() error {
	err := o.setSize()
	if o.durable {
		err = errors.Join(err, o.file.Sync())
	}
	return errors.Join(err, o.file.Close())
}

func (o *output) setSize() error {
	if !o.sparse {
		return nil
	}
	at, err := o.file.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	info, err := o.file.Stat()
	if err != nil || at < info.Size() && o.keepsRest || at == info.Size() {
		return err
	}
	return o.file.Truncate(at)
}

// writeWhole makes data the whole content of a file, or writes it to stdout or whatever else openOutput knows.
func writeWhole(ctx context.Context, name string, data []byte) error {
	out, err := openOutput(ctx, name)
	switch {
	case err != nil:
		return err
	case out == nil:
		return writeFile(name, data)
	}
	_, err = out.Write(data)
	return errors.Join(err, out.finish())
}

// isStream reports whether something is written to this location in order, as a stream.
func isStream(location string) bool {
	if standard(location, stdout) == dash {
		return true
	}
	info, err := os.Stat(location)
	if err != nil {
		return false
	}
	if _, open := descriptor(location); open {
		return !isBlockDevice(info)
	}
	return info.Mode()&fs.ModeNamedPipe != 0
}

func isBlockDevice(info fs.FileInfo) bool {
	return info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

// refuseCharacter refuses a character device as the target of an image of size bytes, and says what to use in its place.
func refuseCharacter(location string, size int64) error {
	info, err := os.Stat(location)
	if err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		return nil //nolint:nilerr // the caller finds it again
	}
	refused := &blockdev.RefusedError{
		Path: location, Check: blockdev.CheckNotTarget, Why: "it is a character device",
		Hint: "'cairn assemble INDEX - >" + location + "' writes the image there as a stream",
	}
	switch flashKind(location, info) {
	case "ubi":
		refused.Why = "it is a UBI volume, which takes an update of a known size only"
		refused.Hint = fmt.Sprintf("'cairn assemble INDEX - | ubiupdatevol -s %d %s -'", size, location)
	case "mtd":
		refused.Why = "it is raw flash, which is erased before it is written"
		refused.Hint = fmt.Sprintf("'flash_erase %s 0 0', then 'cairn assemble INDEX - | nandwrite -p %s -'", location, location)
	}
	return refused
}

// flashKind returns "ubi" for a UBI volume, "mtd" for raw flash, else "".
func flashKind(name string, info fs.FileInfo) string {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		number := fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))) //nolint:unconvert // 32 bits on some machines
		link, err := os.Readlink(filepath.Join("/sys/dev/char", number, "subsystem"))
		if kind := filepath.Base(link); err == nil && (kind == "ubi" || kind == "mtd") {
			return kind
		}
	}
	if m := regexp.MustCompile(`^(ubi)\d+_\d+$|^(mtd)\d+$`).FindStringSubmatch(filepath.Base(name)); m != nil {
		return m[1] + m[2]
	}
	return ""
}

// claimTarget claims a target: what deploy claims by its location, a stream, or a block device that is an open file of
// this process.
func claimTarget(ctx context.Context, location string, x *blob.Index, o deploy.Options) (*deploy.Target, error) {
	out, err := openOutput(ctx, location)
	if err == nil && out == nil {
		err = refuseCharacter(location, x.Size())
	}
	switch {
	case err != nil:
		return nil, err
	case out == nil:
		return deploy.Claim(ctx, location, x, o)
	}
	info, err := out.file.Stat()
	if err != nil {
		return nil, err
	}
	name := nodeOf(out.file, info)
	if isBlockDevice(info) {
		t, passed, err := claimOpened(ctx, name, out.file, x.Size(), o)
		if err != nil {
			return nil, err
		}
		return deploy.Claimed(name, t, passed), nil
	}
	if err := checkStream(out.file, name, info, x.Size(), o); err != nil {
		return nil, err
	}
	return deploy.Stream{Name: shownTarget(location), Writer: out, File: out.file, Finish: out.finish}.Target(), nil
}

// lookAtTarget is claimTarget for a preview.
func lookAtTarget(ctx context.Context, location string, x *blob.Index, o deploy.Options) (*deploy.Target, error) {
	if isStream(location) {
		return deploy.Stream{Name: shownTarget(location)}.Target(), nil
	}
	if err := refuseCharacter(location, x.Size()); err != nil {
		return nil, err
	}
	return deploy.Look(ctx, location, x, o)
}

// checkStream refuses what takes no image as a stream, and what a stream does not allow.
func checkStream(file *os.File, name string, info fs.FileInfo, size int64, o deploy.Options) error {
	switch {
	case term.IsTerminal(int(file.Fd())):
		return misuse{"stdout is a terminal; redirect it to a file, a device or a pipe"}
	case file == os.Stderr:
		return misuse{"stderr is for messages, not for an image"}
	case info.Mode()&fs.ModeCharDevice != 0 && flashKind(name, info) != "":
		return refuseCharacter(name, size)
	case o.Verify == deploy.VerifyChanged || o.Verify == deploy.VerifyAll:
		return misuse{"--verify-after: a stream cannot be read back"}
	case o.Tail != deploy.TailKeep:
		return misuse{"--tail: nothing is behind an image that is written as a stream"}
	case info.Mode().IsRegular(): // a shell makes a file of a device's name that is not there
		return blockdev.RefuseStray(name, o.Force)
	}
	return nil
}

// claimOpened claims a block device that is open already, from where the open file stands. passed makes the next writer
// go on behind the image.
func claimOpened(ctx context.Context, name string, file *os.File, size int64, o deploy.Options) (t *blockdev.Target, passed func() error, err error) {
	flags, err := openFlags(file)
	if err != nil {
		return nil, nil, err
	}
	if flags&unix.O_APPEND != 0 {
		return nil, nil, &blockdev.RefusedError{
			Path: name, Check: blockdev.CheckNotTarget, Why: "it is open for appending (>>), which a device does not allow", Hint: "redirect with > or 1<>",
		}
	}
	off, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, nil, err
	}
	if t, err = o.ClaimDevice(ctx, name, blockdev.Section{Offset: off}); err != nil {
		return nil, nil, err
	}
	if err := t.Reserve(size); err != nil {
		t.Close()
		return nil, nil, err
	}
	return t, func() error {
		_, err := file.Seek(off+size, io.SeekStart)
		return err
	}, nil
}

// nodeOf is a path of an open file: the one by which it was opened, if it still is.
func nodeOf(f *os.File, info fs.FileInfo) string {
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

// shownTarget is a target's name for people.
func shownTarget(location string) string {
	if location == dash {
		return "stdout"
	}
	return location
}
