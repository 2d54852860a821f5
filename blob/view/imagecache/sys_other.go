//go:build !linux

package imagecache

import (
	"errors"
	"io"
	"os"
)

// sparse is a file, on a system whose holes this package does not know.
type sparse struct{ *os.File }

func openSparse(path string, flags int) (*sparse, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	return &sparse{f}, nil
}

func (s *sparse) readNow(p []byte, off int64) bool {
	n, err := s.ReadAt(p, off)
	return n == len(p) && (err == nil || errors.Is(err, io.EOF))
}

func (s *sparse) flush() error { return s.Sync() }

func (s *sparse) uncache() {}

func (s *sparse) punch(int64, int64) error { return errors.ErrUnsupported }

func (s *sparse) nextData(off int64) (from, to int64, err error) {
	info, err := s.Stat()
	if err == nil && off >= info.Size() {
		err = io.EOF
	}
	if err != nil {
		return 0, 0, err
	}
	return off, info.Size(), nil
}

func allocated(info os.FileInfo) (bytes int64, links uint64) { return info.Size(), 1 }

func lock(*os.File) error { return nil }

func freeBytes(string) int64 { return 0 }
