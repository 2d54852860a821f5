package imagecache

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cairn/blob"
)

const (
	sampleRate  = 128 << 10       // bytes a second that are sampled while the disk is idle
	sampleIdle  = 2 * time.Second // time without a read or write of a file after which the disk counts as idle
	sampleWait  = time.Minute     // time between two chunks while the disk is not idle
	samplePiece = 256 << 10       // bytes that are read at once
)

// sampler reads proven chunks of open files from the medium and hashes them again, to find damage that the disk does
// not report. It walks over the chunks of a file, then over those of the file that it has not sampled for the longest
// time. A pass begins at a random chunk, so it also reaches the last chunks of a file that is often closed. It looks at
// no closed file: the chunks of a donor are verified at each copy.
type sampler struct {
	dir    *Dir
	file   *File       // nil before the first pass
	medium io.ReaderAt // of file; nil until the first read
	next   int         // the file's next chunk
	left   int         // chunks until the end of the pass
	piece  []byte
}

// runLoop runs until ctx ends.
func (s *sampler) runLoop(ctx context.Context) {
	defer s.leaveFile()
	last, pause := time.Now(), sampleIdle
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = sampleIdle
		if s.dir.health.isHealthy() && (s.dir.isIdle() || time.Since(last) >= sampleWait) {
			last = time.Now()
			pause = s.sampleNext()
		}
	}
}

// noteUse records the time of a read or write of a file by others than the sampler.
func (d *Dir) noteUse() { d.lastUse.Store(int64(time.Since(d.began))) }

// isIdle reports whether no file was read or written within sampleIdle.
func (d *Dir) isIdle() bool { return time.Since(d.began)-time.Duration(d.lastUse.Load()) >= sampleIdle }

// sampleNext samples the next proven chunk of the file, if the pass has not ended. It returns the pause before the next
// chunk.
func (s *sampler) sampleNext() (pause time.Duration) {
	if s.left == 0 {
		s.beginPass()
	}
	for s.left > 0 {
		f, i := s.file, s.next
		s.next = (i + 1) % f.index.Len()
		s.left--
		if !f.Has(i) || f.index.IsZero(i) {
			continue
		}
		open, damage := s.sampleChunk(f, i)
		if !open {
			s.left = 0
			break
		}
		size := f.index.At(i).Size
		s.dir.sampled.Add(size)
		if damage != nil && !errors.Is(damage, errWrongDigest) {
			return retryTime
		}
		return time.Duration(float64(size) / sampleRate * float64(time.Second))
	}
	s.leaveFile()
	return sampleIdle
}

// beginPass selects the open file whose last pass began before those of all others, and a chunk to begin with.
func (s *sampler) beginPass() {
	s.leaveFile()
	files := slices.DeleteFunc(s.dir.listFiles(), func(f *File) bool { return f.index.Len() == 0 })
	if len(files) == 0 {
		return
	}
	s.file = slices.MinFunc(files, func(a, b *File) int { return a.sampled.Compare(b.sampled) })
	s.file.sampled = time.Now()
	s.left = s.file.index.Len()
	s.next = rand.IntN(s.left)
}

// leaveFile ends the pass.
func (s *sampler) leaveFile() {
	if c, is := s.medium.(io.Closer); is {
		_ = c.Close()
	}
	s.file, s.medium, s.left = nil, nil, 0
}

// sampleChunk reads chunk i of f from the medium and verifies it. A damaged chunk becomes missing: reads in progress
// fail and fetch it, and so do later ones. The next flush removes it from the map. open is false if the file was closed.
// damage is nil if the chunk is intact or may have changed meanwhile.
func (s *sampler) sampleChunk(f *File, i int) (open bool, damage error) {
	f.reading.RLock() // as all reads do; Close waits for them
	defer f.reading.RUnlock()
	if f.closed {
		return false, nil
	}
	if s.medium == nil {
		s.medium = f.data.openMedium()
		if s.piece == nil {
			s.piece = make([]byte, samplePiece)
		}
	}
	mark, ok := f.chunks.beginRead(i, i+1)
	if !ok {
		return true, nil
	}
	damage = verifyChunk(s.medium, f.index, i, s.piece)
	if damage == nil || !errors.Is(damage, errWrongDigest) && !isUnreadable(damage) {
		return true, damage
	}
	if !f.chunks.markDamaged(i, mark, isUnreadable(damage)) {
		return true, nil
	}
	s.dir.damaged.Add(1)
	c := f.index.At(i)
	s.dir.health.log.Warn("a chunk in the image cache is damaged; it is fetched again when it is needed",
		"directory", f.path, "offset", c.Offset, "chunk", c.Digest.String(), "error", damage)
	return true, damage
}

var errWrongDigest = errors.New("its bytes have another digest")

// verifyChunk reads chunk i of an image in pieces and hashes it.
func verifyChunk(from io.ReaderAt, x *blob.Index, i int, piece []byte) error {
	c, h := x.At(i), x.Algorithm().NewHash()
	if _, err := io.CopyBuffer(h, io.NewSectionReader(from, c.Offset, c.Size), piece); err != nil {
		return err
	}
	if blob.Digest(h.Sum(nil)) != c.Digest {
		return errWrongDigest
	}
	return nil
}

// isUnreadable reports whether an error of a read means that the medium has lost the bytes.
func isUnreadable(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EILSEQ)
}
