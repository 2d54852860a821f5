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

	"cairn/internal/blockdev/sysfs"
)

// lockDisk takes the lock on a whole disk that udev, systemd-repart and sfdisk use
// (https://systemd.io/BLOCK_DEVICE_LOCKING): LOCK_EX on its node, for a partition on the node of its disk. It
// waits up to o.LockWait for another holder.
//
// lockDisk returns nil where there is no such node, as in a container. It returns nil where the node may not be
// opened, after a message to o.Notice, and where this process inherited the lock, as from 'flock DISK cairn …'.
func lockDisk(ctx context.Context, path string, info os.FileInfo, o Options) (*os.File, error) {
	if !IsBlockDevice(info) {
		return nil, nil
	}
	node, err := liveKernel().diskNode(path, info)
	if err != nil || node == "" {
		return nil, err
	}
	f, err := os.OpenFile(node, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrPermission) {
		o.sendNotice("the disk " + node + " cannot be locked against other programs: permission denied")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = tryLock(f)
	if errors.Is(err, unix.EWOULDBLOCK) && liveKernel().hasInheritedLock(f) {
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
	return withDescriptor(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}

// hasInheritedLock reports whether this process started with an open descriptor that holds the exclusive lock on f's
// file. Descriptors that the process opened itself are closed on exec, and do not count.
func (k kernel) hasInheritedLock(f *os.File) bool {
	info, err := f.Stat()
	if err != nil {
		return false
	}
	file, self := inodeOf(info), process{filepath.Join(k.proc, "self")}
	return self.hasDescriptor(func(name string) bool {
		id, ok := self.descriptorInode(name)
		if !ok || id != file || !self.hasLock(name) {
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

// refuseClaimed returns an error at once for a device that another program has claimed: a claim outlasts a lock.
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

// diskNode returns the node of the whole disk of the device that info describes, and "" if no node is visible. Locks
// belong to a node, so the one in /dev counts whatever path is.
func (k kernel) diskNode(path string, info os.FileInfo) (string, error) {
	d, err := k.sys.Device(sysfs.ID(inodeOf(info).rdev))
	if err != nil {
		return "", err
	}
	whole, part := d.Disk()
	if !part {
		whole = d
	}
	id, err := whole.ID()
	if err != nil {
		return "", err
	}
	if at, err := os.Stat(whole.Node()); err == nil && IsBlockDevice(at) && sysfs.ID(inodeOf(at).rdev) == id {
		return whole.Node(), nil
	}
	if part {
		return "", nil
	}
	return filepath.EvalSymlinks(path)
}

// The pauses between two attempts to take the lock, and the time before a notice about the wait.
const (
	firstPause  = 5 * time.Millisecond
	longPause   = 200 * time.Millisecond
	noticeAfter = 500 * time.Millisecond
)

func awaitLock(ctx context.Context, f *os.File, path string, o Options) error {
	begun, notified := time.Now(), false
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := tryLock(f)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		waited := time.Since(begun)
		if waited >= o.LockWait {
			return diskLockedReason(f).asError(path)
		}
		if !notified && waited >= noticeAfter {
			notified = true
			o.sendNotice("waiting until the lock is free: " + diskLockedReason(f).why)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(pause, o.LockWait-waited)):
		}
	}
}

// diskLockedReason names the holders of the lock on the disk that f is open on.
func diskLockedReason(f *os.File) reason {
	r := reason{CheckClaimed, "another program has locked the disk " + f.Name(), "wait until that program has ended, and run it again"}
	info, err := f.Stat()
	if err != nil {
		return r
	}
	if names := liveKernel().nameLockers(inodeOf(info)); names != "" {
		r.why += ": " + names
	}
	return r
}

// RereadPartitions makes the kernel read the partition table of the whole disk t again. It returns
// errors.ErrUnsupported where the kernel reads none: for a partition, a mapped device, a loop device without
// partitions, and a file.
func (t *Target) RereadPartitions() error {
	if !t.device || t.offset() != 0 {
		return errors.ErrUnsupported
	}
	const tries, pause = 10, 100 * time.Millisecond
	var err error
	for range tries { // others, such as udev, may have a partition open for a moment
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
