package blockdev

import (
	"errors"
	"fmt"
	"io"
)

// ReadBack reads a file's bytes from the medium and not from the page cache, to prove that they arrived. Its
// offsets count from the section's start. ReadAt may be called concurrently; it takes 1 MiB of memory, which
// lets four reads go on at a time.
type ReadBack struct {
	bytes  *io.SectionReader
	direct *direct // nil if the bytes are read through the page cache
}

// ReadBack opens the same file once more, for reading past the page cache (O_DIRECT). What was written must
// have been flushed (Sync) before. Where direct reads are not supported the page cache is dropped now, and read
// through: then it depends on the kernel to have let go of all pages. f must stay open.
func (f *File) ReadBack() (*ReadBack, error) {
	if err := f.DropCache(0, f.Size()); err != nil {
		return nil, err
	}
	direct, err := openDirect(f.f, f.offset())
	if errors.Is(err, errors.ErrUnsupported) {
		return &ReadBack{bytes: f.bytes}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening %s for direct reads: %w", f.path, err)
	}
	return &ReadBack{io.NewSectionReader(direct, f.offset(), f.Size()), direct}, nil
}

// Direct says whether the page cache is out of the way for certain.
func (r *ReadBack) Direct() bool { return r.direct != nil }

// Size is the section's length in bytes.
func (r *ReadBack) Size() int64 { return r.bytes.Size() }

// ReadAt is as io.ReaderAt has it; the section's end is io.EOF.
func (r *ReadBack) ReadAt(p []byte, off int64) (int, error) { return r.bytes.ReadAt(p, off) }

// Close ends the direct reading. The file stays open.
func (r *ReadBack) Close() error {
	if r.direct == nil {
		return nil
	}
	return r.direct.Close()
}
