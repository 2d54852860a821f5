package imagecache

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev"
	"cairn/internal/owndir"
)

// sparse is a file with holes.
type sparse struct {
	*os.File
	fd     int
	always atomic.Bool // the file system lacks RWF_NOWAIT, so readNow may block
}

func openSparse(root *os.Root, name string, flags int) (*sparse, error) {
	f, err := owndir.OpenFile(root, name, flags)
	if err != nil {
		return nil, err
	}
	return &sparse{File: f, fd: int(f.Fd())}, nil
}

// readNow fills p if the bytes are in the page cache. It reports whether it did.
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

// flushData makes the written bytes durable.
func (s *sparse) flushData() error {
	for {
		if err := unix.Fdatasync(s.fd); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// dropCache drops the flushed pages of the file from the page cache, so later reads reach the disk.
func (s *sparse) dropCache() { _ = unix.Fadvise(s.fd, 0, 0, unix.FADV_DONTNEED) }

// openMedium implements medium. Where direct reads are not supported, each read drops its pages from the page cache
// before and after.
func (s *sparse) openMedium() io.ReaderAt {
	if direct, err := blockdev.OpenDirect(s.File); err == nil {
		return direct
	}
	return droppingReader{s}
}

// droppingReader reads through the page cache, and leaves nothing in it.
type droppingReader struct{ s *sparse }

func (r droppingReader) ReadAt(p []byte, off int64) (int, error) {
	from := off / mapAlign * mapAlign // only whole pages are dropped
	drop := func() {
		_ = unix.Fadvise(r.s.fd, from, (off+int64(len(p))-from+mapAlign-1)/mapAlign*mapAlign, unix.FADV_DONTNEED)
	}
	drop()
	defer drop()
	return r.s.ReadAt(p, off)
}

// punchHole frees the blocks of a range, which reads as zeros from then on.
func (s *sparse) punchHole(off, n int64) error {
	for {
		err := unix.Fallocate(s.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// nextData returns the first range of data at or after off, or io.EOF if there is none.
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

// diskUsage returns the bytes that a file takes on disk, and the number of its hard links.
func diskUsage(info os.FileInfo) (bytes int64, links uint64) {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return info.Size(), 1
	}
	return st.Blocks * 512, uint64(st.Nlink) //nolint:unconvert // it has 32 bits on some machines
}

// lockFile locks f. It returns ErrBusy if another process holds the lock.
func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrBusy
	}
	return err
}

// freeBytes returns the free bytes on the file system of a directory, or 0 if they are unknown.
func freeBytes(root *os.Root) int64 {
	dir, err := root.Open(".")
	if err != nil {
		return 0
	}
	defer dir.Close()
	var st unix.Statfs_t
	if unix.Fstatfs(int(dir.Fd()), &st) != nil {
		return 0
	}
	return int64(st.Bavail) * int64(st.Bsize) //nolint:unconvert // they have 32 bits on some machines
}
