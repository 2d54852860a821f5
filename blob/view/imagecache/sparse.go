package imagecache

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// sparse is a file with holes.
type sparse struct {
	*os.File
	fd     int
	always atomic.Bool // the file system cannot tell what it has at hand; it is asked for all, then
}

func openSparse(path string, flags int) (*sparse, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return &sparse{File: f, fd: int(f.Fd())}, nil
}

// readNow fills p if that takes no waiting for the disk.
func (s *sparse) readNow(p []byte, off int64) bool {
	if !s.always.Load() {
		n, err := unix.Preadv2(s.fd, [][]byte{p}, off, unix.RWF_NOWAIT)
		if err == nil {
			return n == len(p)
		}
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
			return false
		}
		s.always.Store(true)
	}
	n, err := unix.Pread(s.fd, p, off)
	return n == len(p) && err == nil
}

// flush makes what was written durable.
func (s *sparse) flush() error {
	for {
		if err := unix.Fdatasync(s.fd); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// uncache has the next reads come from the disk, as far as all is flushed.
func (s *sparse) uncache() { _ = unix.Fadvise(s.fd, 0, 0, unix.FADV_DONTNEED) }

// punch makes a hole.
func (s *sparse) punch(off, n int64) error {
	for {
		err := unix.Fallocate(s.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// nextData is where the next data at or behind off begins and ends; io.EOF when there is none.
func (s *sparse) nextData(off int64) (from, to int64, err error) {
	from, err = unix.Seek(s.fd, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if err != nil {
		return 0, 0, err
	}
	to, err = unix.Seek(s.fd, from, unix.SEEK_HOLE)
	return from, to, err
}

// allocated is how many bytes the file takes on its disk, and by how many names it is known.
func allocated(info os.FileInfo) (bytes int64, links uint64) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.Size(), 1
	}
	return st.Blocks * 512, uint64(st.Nlink) //nolint:unconvert // it has 32 bits on some machines
}

// lock takes the lock on f; ErrBusy says that another process has it.
func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrBusy
	}
	return err
}

// freeBytes is how much is free on the file system of a directory; 0 when that is not known.
func freeBytes(dir string) int64 {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Bavail) * int64(st.Bsize) //nolint:unconvert // they have 32 bits on some machines
}
