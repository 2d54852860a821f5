package blockdev

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// directWriter writes to a device past the page cache. That takes a quarter of the CPU time, and leaves the
// memory of a small machine to other programs. All writes to the device go through it, so the page cache never
// holds dirty data. It is safe for concurrent use if ranges do not overlap.
type directWriter struct {
	f      *os.File
	path   string // the path of the first opening
	sector int64
	memory []byte
	free   chan []byte    // parts of memory, aligned
	edges  [64]sync.Mutex // by sector number, held while a sector is changed in part
}

const (
	bounceBuffers    = 4
	bounceBufferSize = 256 << 10 // a multiple of any sector
)

// openDirectWriter opens f's device again for direct writes, and checks that direct reads work.
func openDirectWriter(f *os.File) (*directWriter, error) {
	sector, err := sectorSize(f)
	if err != nil {
		return nil, err
	}
	if sector <= 0 || bounceBufferSize%sector != 0 {
		return nil, errors.ErrUnsupported
	}
	again, err := reopenDirect(f, os.O_RDWR)
	if err != nil {
		return nil, err
	}
	w := &directWriter{f: again, path: f.Name(), sector: sector, free: make(chan []byte, bounceBuffers)}
	if w.memory, err = alignedMemory(bounceBuffers * bounceBufferSize); err != nil {
		again.Close()
		return nil, err
	}
	for i := range bounceBuffers {
		w.free <- w.memory[i*bounceBufferSize : (i+1)*bounceBufferSize]
	}
	if err := w.pread(w.memory[:sector], 0); err != nil {
		_ = w.Close()
		return nil, errors.ErrUnsupported
	}
	return w, nil
}

// reopenDirect opens f's file again past the page cache.
func reopenDirect(f *os.File, mode int) (*os.File, error) {
	var path string
	if err := withDescriptor(f, func(fd int) error {
		path = fmt.Sprint("/proc/self/fd/", fd)
		return nil
	}); err != nil {
		return nil, err
	}
	again, err := os.OpenFile(path, mode|unix.O_DIRECT, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) { // no direct I/O in the file system; no /proc
		return nil, errors.ErrUnsupported
	}
	return again, err
}

func alignedMemory(size int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
}

// WriteAt writes p at an offset of the device.
func (w *directWriter) WriteAt(p []byte, off int64) (done int, err error) {
	for done < len(p) && err == nil {
		var n int
		n, err = w.writeSome(p[done:], off+int64(done))
		done += n
	}
	return done, err
}

// writeSome writes the beginning of p: a part of a sector, or as many whole sectors as possible. Memory that is
// aligned to a sector is written directly, other memory is copied first.
func (w *directWriter) writeSome(p []byte, off int64) (int, error) {
	skip, whole := off%w.sector, int64(len(p))/w.sector*w.sector
	switch {
	case skip > 0 || whole == 0:
		n := min(w.sector-skip, int64(len(p)))
		return int(n), w.writePart(p[:n], off-skip, skip)
	case int64(uintptr(unsafe.Pointer(&p[0])))%w.sector == 0:
		return int(whole), w.pwrite(p[:whole], off)
	}
	buffer := <-w.free
	defer func() { w.free <- buffer }()
	n := copy(buffer, p[:whole])
	return n, w.pwrite(buffer[:n], off)
}

// writePart changes the sector at off from byte skip on. Other changes to the sector wait.
func (w *directWriter) writePart(p []byte, off, skip int64) error {
	buffer := <-w.free
	defer func() { w.free <- buffer }()
	edge := &w.edges[off/w.sector%int64(len(w.edges))]
	edge.Lock()
	defer edge.Unlock()
	sector := buffer[:w.sector]
	if err := w.pread(sector, off); err != nil {
		return err
	}
	copy(sector[skip:], p)
	return w.pwrite(sector, off)
}

func (w *directWriter) pread(p []byte, off int64) error {
	return withDescriptor(w.f, func(fd int) error {
		n, err := unix.Pread(fd, p, off)
		if err == nil && n < len(p) {
			err = io.ErrUnexpectedEOF
		}
		return w.wrapError("read", err)
	})
}

func (w *directWriter) pwrite(p []byte, off int64) error {
	for len(p) > 0 {
		n := 0
		err := withDescriptor(w.f, func(fd int) (err error) {
			n, err = unix.Pwrite(fd, p, off)
			return w.wrapError("write", err)
		})
		if err == nil && int64(n)%w.sector != 0 || err == nil && n == 0 {
			err = w.wrapError("write", io.ErrShortWrite)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// wrapError adds the operation to err. EINTR stays as it is, because withDescriptor repeats the call.
func (w *directWriter) wrapError(op string, err error) error {
	if err == nil || errors.Is(err, unix.EINTR) {
		return err
	}
	return &fs.PathError{Op: "direct " + op, Path: w.path, Err: err}
}

func (w *directWriter) Close() error { return errors.Join(w.f.Close(), unix.Munmap(w.memory)) }
