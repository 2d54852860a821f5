package deltadir

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"cairn/store"
)

// spool is a temporary file without a name.
type spool struct{ file *os.File }

func newSpool() (*spool, error) {
	f, err := os.CreateTemp("", "cairn-delta-")
	if err != nil {
		return nil, spoolError(err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, spoolError(err)
	}
	return &spool{f}, nil
}

func spoolError(err error) error {
	return fmt.Errorf("using a temporary file in %s (TMPDIR names another directory): %w", os.TempDir(), err)
}

func (s *spool) close() { _ = s.file.Close() } // its bytes are gone anyway

func (s *spool) writeAt(p []byte, off int64) error {
	if _, err := s.file.WriteAt(p, off); err != nil {
		return spoolError(err)
	}
	return nil
}

func (s *spool) readAt(p []byte, off int64) error {
	if _, err := s.file.ReadAt(p, off); err != nil {
		return spoolError(err)
	}
	return nil
}

// view returns n bytes from an offset on, mapped into memory. The kernel writes them back to the file
// when it needs the memory.
func (s *spool) view(off, n int64) (data []byte, release func(), err error) {
	begin := off / int64(os.Getpagesize()) * int64(os.Getpagesize())
	if n == 0 || off-begin+n > math.MaxInt {
		return nil, nil, fmt.Errorf("mapping %d bytes into memory: %w", n, unix.EINVAL)
	}
	mapped, err := unix.Mmap(int(s.file.Fd()), begin, int(off-begin+n), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, spoolError(fmt.Errorf("mapping it into memory: %w", err))
	}
	return mapped[off-begin:], func() { _ = unix.Munmap(mapped) }, nil
}

// spoolWriter writes to a spool from an offset on.
type spoolWriter struct {
	to  *spool
	off int64
}

func (w *spoolWriter) Write(p []byte) (int, error) {
	if err := w.to.writeAt(p, w.off); err != nil {
		return 0, err
	}
	w.off += int64(len(p))
	return len(p), nil
}

// spoolObject reads an object of at most limit bytes into a temporary file, and calls use with its bytes.
func spoolObject(ctx context.Context, r store.Reader, name string, limit int64, use func(data []byte) error) error {
	s, err := newSpool()
	if err != nil {
		return err
	}
	defer s.close()
	w := &spoolWriter{to: s}
	err = store.Stream(ctx, r, name, limit, func(in io.Reader) error {
		w.off = 0 // a retry begins anew
		_, err := io.Copy(w, in)
		return err
	})
	if err != nil {
		return err
	}
	if w.off == 0 {
		return use(nil)
	}
	data, release, err := s.view(0, w.off)
	if err != nil {
		return err
	}
	defer release()
	return use(data)
}
