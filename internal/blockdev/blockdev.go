// Package blockdev reads and writes files and block devices as bytes at offsets: seeds are read; targets are
// claimed, written, zeroed and flushed. It refuses targets that are in use. It knows nothing of images, chunks,
// partition tables or file systems.
package blockdev

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Section is a range of a file or device in bytes, for example a partition inside a disk image. A Size of zero
// or less extends to the end, so the zero value is the whole file.
type Section struct{ Offset, Size int64 }

// resolveSize returns s with its actual size in a file of total bytes.
func (s Section) resolveSize(total int64) (Section, error) {
	rest := total - s.Offset
	if s.Offset < 0 || rest < 0 || s.Size > rest {
		return s, fmt.Errorf("section of %d bytes at %d does not fit into %d bytes", s.Size, s.Offset, total)
	}
	if s.Size <= 0 {
		s.Size = rest
	}
	return s, nil
}

// File is a section of a regular file or block device, open for reading. Its offsets count from the section's
// start. All methods but Close may be called concurrently.
type File struct {
	f      *os.File
	path   string
	device bool
	bytes  *io.SectionReader
}

// OpenRead opens a section of a regular file or block device for reading, also one that is in use.
func OpenRead(path string, section Section) (*File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if err := checkKind(path, info); err != nil {
		return nil, err
	}
	flags := os.O_RDONLY
	if info.Mode().IsRegular() {
		flags |= unix.O_NONBLOCK // a FIFO may have taken the file's place
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, err
	}
	if info, err = f.Stat(); err == nil {
		err = checkKind(path, info)
	}
	var file *File
	if err == nil {
		file, err = newFile(f, path, section)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return file, nil
}

func checkKind(path string, info os.FileInfo) error {
	if !info.Mode().IsRegular() && !IsBlockDevice(info) {
		return fmt.Errorf("opening %s: it is %s, not a regular file or block device", path, describeFile(info))
	}
	return nil
}

func newFile(f *os.File, path string, section Section) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	total, device := info.Size(), IsBlockDevice(info)
	if device {
		if total, err = deviceSize(f); err != nil {
			return nil, fmt.Errorf("size of %s: %w", path, err)
		}
	}
	if device && total == 0 {
		return nil, fmt.Errorf("opening %s: the device has no medium (its size is 0)", path)
	}
	section, err = section.resolveSize(total)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return &File{f, path, device, io.NewSectionReader(f, section.Offset, section.Size)}, nil
}

// IsBlockDevice reports whether a file is a block device.
func IsBlockDevice(info fs.FileInfo) bool {
	return info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

// describeFile returns the type of a file for messages.
func describeFile(info fs.FileInfo) string {
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return "a regular file"
	case mode.IsDir():
		return "a directory"
	case IsBlockDevice(info):
		return "a block device"
	case mode&fs.ModeCharDevice != 0:
		return "a character device"
	case mode&fs.ModeNamedPipe != 0:
		return "a pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a special file"
}

// Path returns the path that the file was opened by.
func (f *File) Path() string { return f.path }

// IsDevice reports whether the file is a block device.
func (f *File) IsDevice() bool { return f.device }

// Size returns the section's length in bytes. The size of a device is never 0.
func (f *File) Size() int64 { return f.bytes.Size() }

// SectorSize returns a device's logical block size in bytes.
func (f *File) SectorSize() (int64, error) {
	if !f.device {
		return 0, fmt.Errorf("sector size of %s: it is not a block device", f.path)
	}
	return sectorSize(f.f)
}

// ReadAt implements io.ReaderAt. It returns io.EOF at the section's end.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.bytes.ReadAt(p, off) }

// NextData returns the first run of data at or after off. The bytes from off to start are a hole and read as
// zeros. If no data follows, start and end are Size. All bytes of a device are data. More data may follow a run
// directly.
func (f *File) NextData(off int64) (start, end int64, err error) {
	size := f.Size()
	if off < 0 {
		return 0, 0, fmt.Errorf("next data of %s: negative offset %d", f.path, off)
	}
	if off >= size {
		return size, size, nil
	}
	if f.device {
		return off, size, nil
	}
	base := f.offset()
	start, end, err = seekData(f.f, base+off, base+size)
	if err != nil {
		return 0, 0, fmt.Errorf("next data of %s at %d: %w", f.path, off, err)
	}
	if start > base+off && end == base+size { // a file that shrank looks as if it ended in a hole
		if info, err := f.f.Stat(); err != nil || info.Size() < base+size {
			return 0, 0, errors.Join(fmt.Errorf("next data of %s at %d: it shrank from %d bytes", f.path, off, base+size), err)
		}
	}
	return min(start-base, size), min(end-base, size), nil
}

// DropCache asks the kernel to drop the bytes from the page cache, so that the next read comes from the medium
// if they were flushed before. It does nothing where that is not supported.
func (f *File) DropCache(off, n int64) error {
	if err := f.checkRange(off, n); err != nil {
		return fmt.Errorf("dropping cache of %s: %w", f.path, err)
	}
	if err := dropCache(f.f, f.offset()+off, n); err != nil {
		return fmt.Errorf("dropping cache of %s: %w", f.path, err)
	}
	return nil
}

// Close closes the file. For a target it also ends the claim.
func (f *File) Close() error { return f.f.Close() }

// offset returns the section's start in the file or device.
func (f *File) offset() int64 {
	_, off, _ := f.bytes.Outer()
	return off
}

// checkRange returns an error for a range outside the section.
func (f *File) checkRange(off, n int64) error {
	if off < 0 || n < 0 || off > f.Size()-n {
		return fmt.Errorf("%d bytes at %d are not inside its %d bytes", n, off, f.Size())
	}
	return nil
}
