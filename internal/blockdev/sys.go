package blockdev

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev/sysfs"
)

// withDescriptor calls fn with f's descriptor, and again when a signal interrupted the call.
func withDescriptor(f *os.File, fn func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = conn.Control(func(fd uintptr) {
		for result = unix.EINTR; errors.Is(result, unix.EINTR); {
			result = fn(int(fd))
		}
	})
	return errors.Join(err, result)
}

func ioctl(f *os.File, request uint, arg unsafe.Pointer) error {
	return withDescriptor(f, func(fd int) error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		if errno != 0 {
			return errno
		}
		return nil
	})
}

func deviceSize(f *os.File) (int64, error) {
	var size uint64
	err := ioctl(f, unix.BLKGETSIZE64, unsafe.Pointer(&size))
	return int64(size), err
}

func sectorSize(f *os.File) (int64, error) {
	var size int32
	err := ioctl(f, unix.BLKSSZGET, unsafe.Pointer(&size))
	return int64(size), err
}

func isReadOnly(f *os.File) (bool, error) {
	var ro int32
	err := ioctl(f, unix.BLKROGET, unsafe.Pointer(&ro))
	return ro != 0, err
}

// zeroOut returns errors.ErrUnsupported where the kernel has no BLKZEROOUT. The kernel writes zeros itself to
// devices that have no command for it.
func zeroOut(f *os.File, off, n int64) error {
	blocks := [2]uint64{uint64(off), uint64(n)}
	return ioctl(f, unix.BLKZEROOUT, unsafe.Pointer(&blocks))
}

func discardBlocks(f *os.File, off, n int64) error {
	blocks := [2]uint64{uint64(off), uint64(n)}
	return ioctl(f, unix.BLKDISCARD, unsafe.Pointer(&blocks))
}

func punchHole(f *os.File, off, n int64) error {
	return withDescriptor(f, func(fd int) error {
		for {
			err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
			if !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
}

// blockSize returns the block size of f's file system, the unit of shared ranges.
func blockSize(f *os.File) (int64, error) {
	var st unix.Statfs_t
	err := withDescriptor(f, func(fd int) error { return unix.Fstatfs(fd, &st) })
	return int64(st.Bsize), err //nolint:unconvert // 32 bits on some machines
}

// cloneRange returns errors.ErrUnsupported where blocks cannot be shared. The ranges are whole blocks inside
// both files, so EINVAL means that the file system cannot share them, or that src has shrunk.
func cloneRange(dst, src *os.File, srcOff, dstOff, n int64) error {
	err := withDescriptor(src, func(from int) error {
		r := unix.FileCloneRange{
			Src_fd: int64(from), Src_offset: uint64(srcOff), Src_length: uint64(n), Dest_offset: uint64(dstOff),
		}
		return withDescriptor(dst, func(to int) error { return unix.IoctlFileCloneRange(to, &r) })
	})
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("%w (%w)", errors.ErrUnsupported, err)
	}
	return err
}

// seekData returns the first run of data in f that starts at or after off and before end. It moves f's
// position, which this package does not use.
func seekData(f *os.File, off, end int64) (first, last int64, err error) {
	err = withDescriptor(f, func(fd int) (err error) {
		if first, err = unix.Seek(fd, off, unix.SEEK_DATA); err != nil {
			return err
		}
		last, err = unix.Seek(fd, first, unix.SEEK_HOLE)
		return err
	})
	switch {
	case errors.Is(err, unix.ENXIO): // only a hole follows, or the file has shrunk
		return end, end, nil
	case errors.Is(err, unix.EINVAL): // a file system without holes
		return off, end, nil
	}
	return first, last, err
}

func startWriteback(f *os.File, off, n int64) error {
	return withDescriptor(f, func(fd int) error {
		return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE)
	})
}

// dropCache drops clean pages from the page cache, up to the end if n is 0. It does nothing where that is not
// supported.
func dropCache(f *os.File, off, n int64) error {
	err := withDescriptor(f, func(fd int) error { return unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) })
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	return err
}

func syncData(f *os.File) error { return withDescriptor(f, unix.Fdatasync) }

// openExclusive opens a target that passed checkTarget. For a device, O_EXCL without O_CREAT is the kernel's
// claim.
func openExclusive(path string, info os.FileInfo) (*os.File, error) {
	flags := os.O_RDWR
	if IsBlockDevice(info) {
		flags |= os.O_EXCL
	}
	f, err := os.OpenFile(path, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, busyError(path, info)
	}
	if errors.Is(err, unix.EROFS) {
		return nil, readOnlyError(path)
	}
	return f, err
}

func busyError(path string, info os.FileInfo) error {
	d, err := liveKernel().sys.Device(sysfs.ID(inodeOf(info).rdev))
	if err != nil {
		return err
	}
	return liveKernel().busyReason(d).asError(path)
}

func readOnlyError(path string) error {
	return &RefusedError{path, CheckReadOnly, "it is read-only", "blockdev --setrw, or choose another target"}
}

// finishClaim checks that a claimed device is writable, and locks a regular file.
func finishClaim(f *os.File, path string, info os.FileInfo) error {
	if IsBlockDevice(info) {
		ro, err := isReadOnly(f)
		if err == nil && ro {
			err = readOnlyError(path)
		}
		return err
	}
	err := withDescriptor(f, lockWhole)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EACCES) {
		return liveKernel().fileLockedReason(inodeOf(info)).asError(path)
	}
	if err != nil {
		return fmt.Errorf("locking %s: %w", path, err)
	}
	return nil
}

// lockWhole takes both kinds of lock on a file, or neither.
func lockWhole(fd int) error {
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	err := lockBytes(fd)
	if err != nil {
		_ = unix.Flock(fd, unix.LOCK_UN) // else nameLockers would name this process
	}
	return err
}

// lockBytes locks all bytes of a file. qemu takes such locks on disk images. Some file systems do not support
// them.
func lockBytes(fd int) error {
	err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
