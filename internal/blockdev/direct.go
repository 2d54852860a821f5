package blockdev

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	directBuffers = 4
	directBuffer  = 256 << 10 // bytes of each, a multiple of any block
	// Offsets, lengths and addresses of direct reads are multiples of that, or of a sector if that is larger.
	directBlock = 4096
)

// direct reads whole blocks into memory that is aligned, which Go's own is not.
type direct struct {
	f      *os.File
	block  int64
	memory []byte
	free   chan []byte // parts of memory
}

// openDirect opens what f is open on, and makes sure that at off direct reads work.
func openDirect(f *os.File, off int64) (*direct, error) {
	again, err := reopenDirect(f, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	d, err := newDirect(again)
	if err != nil {
		again.Close()
		return nil, err
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

func newDirect(f *os.File) (*direct, error) {
	d := &direct{f: f, block: directBlock, free: make(chan []byte, directBuffers)}
	if sector, err := sectorSize(f); err == nil { // else it is a regular file
		d.block = max(d.block, sector)
	}
	memory, err := alignedMemory(directBuffers * directBuffer)
	if err != nil {
		return nil, err
	}
	d.memory = memory
	for i := range directBuffers {
		d.free <- memory[i*directBuffer : (i+1)*directBuffer]
	}
	return d, nil
}

func (d *direct) ReadAt(p []byte, off int64) (done int, err error) {
	buffer := <-d.free
	defer func() { d.free <- buffer }()
	for done < len(p) && err == nil {
		var n int
		n, err = d.readSome(buffer, p[done:], off+int64(done))
		done += n
	}
	return done, err
}

// readSome reads the blocks around off into buffer, and from there the beginning of p.
func (d *direct) readSome(buffer, p []byte, off int64) (int, error) {
	skip := off % d.block
	blocks := (skip + int64(len(p)) + d.block - 1) / d.block * d.block
	buffer = buffer[:min(blocks, int64(len(buffer)))]
	n := 0
	err := control(d.f, func(fd int) (err error) {
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

func (d *direct) Close() error { return errors.Join(d.f.Close(), unix.Munmap(d.memory)) }
