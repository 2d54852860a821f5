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
	"cairn/blob/deploy"
	"cairn/internal/blockdev"
	"cairn/internal/openfile"
)

// writeWhole makes data the whole content of a file, or writes it to stdout or whatever else openOutput knows.
func writeWhole(ctx context.Context, name string, data []byte) error {
	out, err := openfile.OpenOutput(ctx, name)
	switch {
	case err != nil:
		return err
	case out == nil:
		return writeFile(name, data)
	}
	_, err = out.Write(data)
	return errors.Join(err, out.Close())
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
	out, err := openfile.OpenOutput(ctx, location)
	if err == nil && out == nil {
		err = refuseCharacter(location, x.Size())
	}
	switch {
	case err != nil:
		return nil, err
	case out == nil:
		return deploy.Claim(ctx, location, x, o)
	}
	info, err := out.File().Stat()
	if err != nil {
		return nil, err
	}
	name := openfile.Node(out.File(), info)
	if openfile.IsBlockDevice(info) {
		t, passed, err := claimOpened(ctx, name, out.File(), x.Size(), o)
		if err != nil {
			return nil, err
		}
		return deploy.Claimed(name, t, passed), nil
	}
	if err := checkStream(out.File(), name, info, x.Size(), o); err != nil {
		return nil, err
	}
	return deploy.Stream{Name: shownTarget(location), Writer: out, File: out.File(), Finish: out.Close}.Target(), nil
}

// lookAtTarget is claimTarget for a preview.
func lookAtTarget(ctx context.Context, location string, x *blob.Index, o deploy.Options) (*deploy.Target, error) {
	if openfile.IsStream(location) {
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
	flags, err := openfile.Flags(file)
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

// shownTarget is a target's name for people.
func shownTarget(location string) string {
	if location == dash {
		return "stdout"
	}
	return location
}
