package pack

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"cairn/blob"
	"cairn/store"
	"cairn/store/chunkfile"
)

const (
	// maxGap is the largest gap between two chunk files of a request. Its bytes are read and dropped.
	maxGap = 32 << 10
	// maxSpan is the size up to which chunk files are joined to one request, in bytes.
	maxSpan = 4 << 20
	// maxGroup limits the chunks that are hashed together.
	maxGroup = 16
)

// Finder returns where a chunk lies, or false if it is in no pack.
type Finder func(d blob.Digest) (at Place, ok bool)

// located is a want whose chunk is in a pack.
type located struct {
	i  int // number of the want
	at Place
}

// span is a run of chunk files that one request reads.
type span struct {
	pack  Pack
	wants []located // in the order of the file
}

func (s *span) offset() int64 { return s.wants[0].at.Offset }
func (s *span) size() int64   { return s.wants[len(s.wants)-1].at.End() - s.offset() }

// joinSpans sorts the wants by their places, and joins those that lie together in a pack.
func joinSpans(wants []located) (spans []span) {
	slices.SortStableFunc(wants, func(a, b located) int {
		return cmp.Or(bytes.Compare(a.at.Pack.ID[:], b.at.Pack.ID[:]), cmp.Compare(a.at.Offset, b.at.Offset))
	})
	for n, w := range wants {
		if n > 0 {
			if s := &spans[len(spans)-1]; s.joins(w.at) {
				s.wants = append(s.wants, w)
				continue
			}
		}
		spans = append(spans, span{w.at.Pack, wants[n : n+1 : n+1]})
	}
	return spans
}

// joins reports whether the chunk file at a place, which is not before the others, belongs to the request of s. Files
// that overlap do not, unless they are the same.
func (s *span) joins(at Place) bool {
	last := s.wants[len(s.wants)-1].at
	if at == last {
		return true
	}
	gap := at.Offset - last.End()
	return at.Pack == s.pack && 0 <= gap && gap <= maxGap && at.End()-s.offset() <= maxSpan
}

// sink takes the chunk files of a span.
type sink interface {
	// receive gets the chunk files from read, in the order of the pack, until it has all or read fails. A file is valid
	// until the next call of read.
	receive(read func(at Place) ([]byte, error)) error
	// verified returns the bytes of the verified chunks so far.
	verified() int
}

// fileSink takes a single file.
type fileSink struct {
	at  Place
	dst []byte
	got bool
}

func (f *fileSink) receive(read func(at Place) ([]byte, error)) error {
	if f.got {
		return nil
	}
	file, err := read(f.at)
	if err == nil {
		f.dst, f.got = append(f.dst, file...), true
	}
	return err
}

func (f *fileSink) verified() int { return 0 }

// receiver decodes and verifies the chunks of a span.
type receiver struct {
	decoder *chunkfile.Decoder
	sum     blob.Algorithm
	wants   []store.Want
	left    []located // wants without an outcome
	corrupt []located // wants with wrong bytes
	failed  error     // the defect of the last of them
	bytes   int       // of the verified chunks
	done    func(i int)
}

func (r *receiver) verified() int { return r.bytes }

// receive implements sink. The first chunk is
// verified alone, since a reader may wait for it. Then more and more chunks are hashed together, which is cheaper.
func (r *receiver) receive(read func(at Place) ([]byte, error)) error {
	for group := 1; len(r.left) > 0; group = min(2*group, maxGroup) {
		if err := r.receiveGroup(min(group, len(r.left)), read); err != nil {
			return err
		}
	}
	return nil
}

func (r *receiver) receiveGroup(n int, read func(at Place) ([]byte, error)) (err error) {
	var decoded []located
	var data [][]byte
	for _, w := range r.left[:n] {
		var file []byte
		if file, err = read(w.at); err != nil {
			break
		}
		r.left = r.left[1:]
		dst := r.wants[w.i].Dst
		if bad := r.decoder.Decode(dst, file); bad != nil {
			r.addCorrupt(w, bad)
			continue
		}
		decoded, data = append(decoded, w), append(data, dst)
	}
	sums := make([]blob.Digest, len(data))
	r.sum.SumAll(sums, data)
	for n, w := range decoded {
		if sums[n] != r.wants[w.i].Digest {
			r.addCorrupt(w, fmt.Errorf("its %v digest is %v", r.sum, sums[n]))
			continue
		}
		r.bytes += len(data[n])
		r.done(w.i)
	}
	return err
}

func (r *receiver) addCorrupt(w located, err error) {
	r.corrupt = append(r.corrupt, w)
	r.failed = err
}

// fileReader returns a function that reads chunk files from in, whose first byte is at an offset of the pack. The
// places must be in order. The bytes are valid until the next call.
func fileReader(in io.Reader, position int64) func(at Place) ([]byte, error) {
	var file []byte
	var last Place
	return func(at Place) ([]byte, error) {
		if at == last {
			return file, nil
		}
		if _, err := io.CopyN(io.Discard, in, at.Offset-position); err != nil {
			return nil, noEOF(err)
		}
		if int64(cap(file)) < at.Size {
			file = make([]byte, at.Size)
		}
		file = file[:at.Size]
		n, err := io.ReadFull(in, file)
		position = at.Offset + int64(n)
		last = at
		return file, noEOF(err)
	}
}

// noEOF returns the error of a read. If the object ended early, and not the answer, the pack is shorter than its map says.
func noEOF(err error) error {
	ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if ended && !errors.Is(err, store.ErrUnavailable) {
		return fmt.Errorf("%w: it ends early", ErrInvalid)
	}
	return err
}
