package blockdev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lockDisk takes the lock on a whole disk that udev, systemd-repart, sfdisk and others agree on
// (https://systemd.io/BLOCK_DEVICE_LOCKING): LOCK_EX on its node, for a partition on its disk's. Whoever has it is
// waited for as long as o says. It returns nil where there is no such node, as in a container, or where it may not be
// opened: then o.Notice is told; and where this process was given the lock, as by 'flock DISK cairn …'.
func lockDisk(ctx context.Context, path string, info os.FileInfo, o Options) (*os.File, error) {
	if !IsBlockDevice(info) {
		return nil, nil
	}
	node, err := live().diskNode(path, info)
	if err != nil || node == "" {
		return nil, err
	}
	f, err := os.OpenFile(node, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrPermission) {
		o.notice("the disk " + node + " cannot be locked against other programs: permission denied")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = tryLock(f)
	if errors.Is(err, unix.EWOULDBLOCK) && live().hasInheritedLock(f) {
		f.Close()
		return nil, nil
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		if err = refuseClaimed(path, info); err == nil {
			err = awaitLock(ctx, f, path, o)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func tryLock(f *os.File) error {
	return control(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}

// hasInheritedLock reports whether this process began with an open file that has the lock on what f is open on, for
// itself alone. What the process opened by itself is closed on exec, and does not count.
func (k kernel) hasInheritedLock(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	file, self := inodeOf(info), process{filepath.Join(k.proc, "self")}
	return self.has(func(name string) bool {
		id, ok := self.opened(name)
		if !ok || id != file || !self.locks(name) {
			return false
		}
		fd, err := strconv.Atoi(name)
		if err != nil {
			return false
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		return err == nil && flags&unix.FD_CLOEXEC == 0 && unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil
	})
}

// refuseClaimed tells at once of a device that another program has exclusively: that lasts longer than a lock.
func refuseClaimed(path string, info os.FileInfo) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return busyError(path, info)
	}
	if err == nil {
		f.Close()
	}
	return nil
}

// diskNode is the node of the whole disk that the device described by info is or lies on; "" if there is none to be
// seen. The lock is the node's, so that the one in /dev counts, whatever the path.
func (k kernel) diskNode(path string, info os.FileInfo) (string, error) {
	d, err := k.device(inodeOf(info).rdev)
	if err != nil {
		return "", err
	}
	whole, part := d.disk()
	if !part {
		whole = d
	}
	id, err := whole.id()
	if err != nil {
		return "", err
	}
	if at, err := os.Stat(whole.node()); err == nil && IsBlockDevice(at) && deviceID(inodeOf(at).rdev) == id {
		return whole.node(), nil
	}
	if part {
		return "", nil
	}
	return filepath.EvalSymlinks(path)
}

// The pauses between two looks at a lock that another program holds, and how long it may hold it before that is told.
const (
	firstPause  = 5 * time.Millisecond
	longPause   = 200 * time.Millisecond
	silentWhile = 500 * time.Millisecond
)

func awaitLock(ctx context.Context, f *os.File, path string, o Options) error {
	begun, told := time.Now(), false
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := tryLock(f)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		waited := time.Since(begun)
		if waited >= o.LockWait {
			return lockedReason(f).refused(path)
		}
		if !told && waited >= silentWhile {
			told = true
			o.notice("waiting until the lock is free: " + lockedReason(f).why)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(pause, o.LockWait-waited)):
		}
	}
}

// lockedReason says who has locked the disk that f is open on.
func lockedReason(f *os.File) reason {
	r := reason{CheckClaimed, "another program has locked the disk " + f.Name(), "wait until that program has ended, and run it again"}
	info, err := f.Stat()
	if err != nil {
		return r
	}
	if who := live().lockers(inodeOf(info)); who != "" {
		r.why += ": " + who
	}
	return r
}

// RereadPartitions has the kernel read the partition table of the whole disk that t is. It is an
// errors.ErrUnsupported where the kernel looks for none: a partition, a mapped device, a loop device without
// partitions, a file.
func (t *Target) RereadPartitions() error {
	if !t.device || t.offset() != 0 {
		return errors.ErrUnsupported
	}
	const tries, pause = 10, 100 * time.Millisecond
	var err error
	for range tries { // others may have a partition open for a moment, as udev has
		err = ioctl(t.f, unix.BLKRRPART, unsafe.Pointer(nil))
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(pause)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
		return errors.ErrUnsupported
	}
	if err != nil {
		return fmt.Errorf("reading the partition table of %s again: %w", t.path, err)
	}
	return nil
}
