package blockdev

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	directBuffers    = 4
	directBufferSize = 256 << 10 // a multiple of any block size
	// Offsets, lengths and addresses of direct reads are multiples of this, or of a sector if that is larger.
	directBlock = 4096
)

// DirectReader reads a file past the page cache: whole blocks into aligned memory, which Go does not allocate. It uses
// 1 MiB of memory, which allows four reads at a time.
type DirectReader struct {
	f      *os.File
	block  int64
	memory []byte
	free   chan []byte // parts of memory
}

// OpenDirect opens f's file again for reads past the page cache (O_DIRECT). Where that is not supported, the error is an
// errors.ErrUnsupported. Pages in the page cache stay there.
func OpenDirect(f *os.File) (*DirectReader, error) { return openDirect(f, 0) }

// openDirect opens f's file again for direct reads, and checks that they work at off.
func openDirect(f *os.File, off int64) (*DirectReader, error) {
	again, err := reopenDirect(f, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	d := &DirectReader{f: again, block: directBlock, free: make(chan []byte, directBuffers)}
	if sector, err := sectorSize(again); err == nil { // fails for a regular file
		d.block = max(d.block, sector)
	}
	if d.memory, err = alignedMemory(directBuffers * directBufferSize); err != nil {
		again.Close()
		return nil, err
	}
	for i := range directBuffers {
		d.free <- d.memory[i*directBufferSize : (i+1)*directBufferSize]
	}
	_, err = d.ReadAt(make([]byte, 1), off)
	if errors.Is(err, unix.EINVAL) {
		err = errors.ErrUnsupported
	}
	if err != nil && !errors.Is(err, io.EOF) {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// ReadAt implements io.ReaderAt.
func (d *DirectReader) ReadAt(p []byte, off int64) (done int, err error) {
	buffer := <-d.free
	defer func() { d.free <- buffer }()
	for done < len(p) && err == nil {
		var n int
		n, err = d.readSome(buffer, p[done:], off+int64(done))
		done += n
	}
	return done, err
}

// readSome reads the blocks around off into buffer, and copies from there to the beginning of p.
func (d *DirectReader) readSome(buffer, p []byte, off int64) (int, error) {
	skip := off % d.block
	blocks := (skip + int64(len(p)) + d.block - 1) / d.block * d.block
	buffer = buffer[:min(blocks, int64(len(buffer)))]
	n := 0
	err := withDescriptor(d.f, func(fd int) (err error) {
		n, err = unix.Pread(fd, buffer, off-skip)
		return err
	})
	if err != nil {
		return 0, &fs.PathError{Op: "direct read", Path: d.f.Name(), Err: err}
	}
	if int64(n) <= skip {
		return 0, io.EOF
	}
	return copy(p, buffer[skip:n]), nil
}

// Close closes the file that OpenDirect opened.
func (d *DirectReader) Close() error { return errors.Join(d.f.Close(), unix.Munmap(d.memory)) }
