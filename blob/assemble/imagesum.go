package assemble

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
)

// ImageSum is the SHA-256 of a whole image.
type ImageSum [sha256.Size]byte

// ImageSumError reports that the image of an index is not the wanted one.
type ImageSumError struct{ Want, Got ImageSum }

func (e *ImageSumError) Error() string {
	return fmt.Sprintf("the SHA-256 of the image is %x, not %x", e.Got, e.Want)
}

// CheckImageSum compares the first size bytes of r with a sum. Another sum is an *ImageSumError.
func CheckImageSum(ctx context.Context, r io.ReaderAt, size int64, want ImageSum) error {
	sum := sha256.New()
	if err := hashBytes(ctx, sum, r, 0, size); err != nil {
		return err
	}
	return want.compare(sum)
}

func (want ImageSum) compare(sum hash.Hash) error {
	if got := ImageSum(sum.Sum(nil)); got != want {
		return &ImageSumError{want, got}
	}
	return nil
}

// hashBytes adds the bytes [from, to) of r to a sum.
func hashBytes(ctx context.Context, sum hash.Hash, r io.ReaderAt, from, to int64) error {
	buf := make([]byte, min(to-from, 1<<20))
	for from < to {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(to-from, int64(len(buf)))]
		if n, err := r.ReadAt(p, from); n < len(p) {
			return fmt.Errorf("reading %d bytes at %d for the SHA-256 of the image: %w", len(p), from, err)
		}
		sum.Write(p)
		from += int64(len(p))
	}
	return ctx.Err()
}

// checkImageSum compares the image with Options.ImageSum: the head in memory, and the rest on the target. It reads the
// rest past all caches if the target allows it and Verify is set.
func (j *job) checkImageSum(ctx context.Context, head *segment) error {
	sum := sha256.New()
	for i := head.lo; i < head.hi; i++ {
		p := head.finalBytes(i)
		if *head.state(i) == zero {
			clear(p)
		}
		sum.Write(p)
	}
	rest := io.ReaderAt(j.target)
	if medium, ok := j.target.(Rereader); ok && j.options.Verify != Nothing {
		rest = readerAtFunc(medium.ReadBack)
	}
	if err := hashBytes(ctx, sum, rest, head.start+int64(len(head.buf)), j.plan.Index.Size()); err != nil {
		return err
	}
	return j.options.ImageSum.compare(sum)
}

type readerAtFunc func(p []byte, off int64) (int, error)

func (f readerAtFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// hashSegment adds the segment to the sum of a stream, in which all earlier segments are. It compares the sum when it
// adds the last one.
func (s *segment) hashSegment() error {
	j := s.job
	if j.streamSum == nil {
		return nil
	}
	s.clearZeros(s.lo, s.hi)
	j.streamSum.Write(s.buf)
	if s.hi < j.plan.Index.Len() {
		return nil
	}
	return j.options.ImageSum.compare(j.streamSum)
}
