package blockdev

import (
	"errors"
	"fmt"
	"io"
)

// ReadBack reads a file's bytes from the medium instead of the page cache, to prove that they arrived. Its
// offsets count from the section's start. ReadAt may be called concurrently. It uses 1 MiB of memory, which
// allows four reads at a time.
type ReadBack struct {
	bytes  *io.SectionReader
	direct *DirectReader // nil if reads go through the page cache
}

// ReadBack opens the file again for reads past the page cache (O_DIRECT). Written bytes must have been flushed
// with Sync before. Where direct reads are not supported, ReadBack drops the page cache now and reads through
// it; the result then depends on the kernel having dropped all pages. f must stay open.
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

// Direct reports whether reads bypass the page cache with certainty.
func (r *ReadBack) Direct() bool { return r.direct != nil }

// Size returns the section's length in bytes.
func (r *ReadBack) Size() int64 { return r.bytes.Size() }

// ReadAt implements io.ReaderAt. It returns io.EOF at the section's end.
func (r *ReadBack) ReadAt(p []byte, off int64) (int, error) { return r.bytes.ReadAt(p, off) }

// Close ends direct reading. The file stays open.
func (r *ReadBack) Close() error {
	if r.direct == nil {
		return nil
	}
	return r.direct.Close()
}
