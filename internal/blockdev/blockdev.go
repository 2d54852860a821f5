// Package blockdev sees files and block devices as bytes at offsets: seeds are read, targets are claimed,
// written, zeroed and flushed. It refuses targets that something else uses. It knows nothing of images,
// chunks, partition tables or file systems.
package blockdev

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Section is a run of bytes of a file or device, for instance a partition inside a disk image. A Size of zero
// or less means up to the end, so the zero value is all of it.
type Section struct{ Offset, Size int64 }

// within is the section with its real size, in a file or device of total bytes.
func (s Section) within(total int64) (Section, error) {
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
	if !info.Mode().IsRegular() && !IsBlockDevice(info) {
		return nil, fmt.Errorf("opening %s: it is %s, no regular file or block device", path, kind(info))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	file, err := newFile(f, path, section)
	if err != nil {
		f.Close()
		return nil, err
	}
	return file, nil
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
	section, err = section.within(total)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	return &File{f, path, device, io.NewSectionReader(f, section.Offset, section.Size)}, nil
}

// IsBlockDevice reports whether a file is a block device.
func IsBlockDevice(info fs.FileInfo) bool {
	return info.Mode()&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice
}

// kind says what info is, for messages.
func kind(info fs.FileInfo) string {
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

// Path is the path it was opened by.
func (f *File) Path() string { return f.path }

// IsDevice says whether the bytes are a block device's.
func (f *File) IsDevice() bool { return f.device }

// Size is the section's length in bytes. A device's is never 0.
func (f *File) Size() int64 { return f.bytes.Size() }

// SectorSize is a device's logical block size in bytes.
func (f *File) SectorSize() (int64, error) {
	if !f.device {
		return 0, fmt.Errorf("sector size of %s: it is not a block device", f.path)
	}
	return sectorSize(f.f)
}

// ReadAt is as io.ReaderAt has it; the section's end is io.EOF.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.bytes.ReadAt(p, off) }

// NextData is the first run of data at or behind off; what lies between off and start is a hole and reads as
// zeros. start == end == Size means that no data follows. The bytes of a device are all data. A run may end
// where more data follows.
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
	if start > base+off && end == base+size { // a file that became shorter looks as if it ended in a hole
		if info, err := f.f.Stat(); err != nil || info.Size() < base+size {
			return 0, 0, errors.Join(fmt.Errorf("next data of %s at %d: it shrank from %d bytes", f.path, off, base+size), err)
		}
	}
	return min(start-base, size), min(end-base, size), nil
}

// DropCache asks that the bytes not be kept in memory, so that the next read comes from the medium if they
// were flushed before. It is advice: where it is not supported nothing happens.
func (f *File) DropCache(off, n int64) error {
	if err := f.check(off, n); err != nil {
		return fmt.Errorf("dropping cache of %s: %w", f.path, err)
	}
	if err := dropCache(f.f, f.offset()+off, n); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("dropping cache of %s: %w", f.path, err)
	}
	return nil
}

// Close ends its use; for a target also the claim on it.
func (f *File) Close() error { return f.f.Close() }

// offset is where the section starts in the file or device.
func (f *File) offset() int64 {
	_, off, _ := f.bytes.Outer()
	return off
}

// check refuses a range that is not inside the section.
func (f *File) check(off, n int64) error {
	if off < 0 || n < 0 || off > f.Size()-n {
		return fmt.Errorf("%d bytes at %d are not inside its %d bytes", n, off, f.Size())
	}
	return nil
}
