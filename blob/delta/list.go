package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"cairn/blob"
)

const (
	listMagic     = "cairndll"
	listHeadSize  = 56
	listEntrySize = 57 // without samples
	sampleSize    = 8

	// MaxBases limits the entries of a list.
	MaxBases = 64
	// MaxSamples limits the samples of an entry.
	MaxSamples = 32
	// MaxList is the size of the largest list in bytes.
	MaxList = listHeadSize + MaxBases*(listEntrySize+MaxSamples*sampleSize) + sha256.Size
)

// Base is an old image from which there is a delta. It is an entry of the list of a new image.
type Base struct {
	Index     blob.Digest // of the old image
	ImageSize int64       // of the old image, bytes
	FileSize  int64       // of the delta, bytes
	HeadSize  int64       // of head and table of the delta, bytes
	// Samples are the first bytes of the digests of at most MaxSamples chunks of the old image. By them, a
	// client that holds a similar image finds the most similar old image.
	Samples [][8]byte
}

// NewBase returns the entry for a delta from the image of an index. The sizes are those of the delta's
// file, and of its head and table.
func NewBase(old *blob.Index, fileSize, headSize int64) Base {
	var distinct []int // chunks that are not zeros
	table := blob.NewTable(old)
	for i, c := range old.All() {
		if !old.IsZero(i) && table.Find(c.Digest) == i {
			distinct = append(distinct, i)
		}
	}
	b := Base{Index: old.Digest(), ImageSize: old.Size(), FileSize: fileSize, HeadSize: headSize}
	n := min(len(distinct), MaxSamples)
	for i := range n { // spread over the image
		d := old.At(distinct[i*len(distinct)/n]).Digest
		b.Samples = append(b.Samples, [8]byte(d[:8]))
	}
	return b
}

// EncodeList returns the list of the deltas to the image of an index, in the format of its file. There
// are at most MaxBases bases. The newest one is first.
func EncodeList(to *blob.Index, bases []Base) []byte {
	digest := to.Digest()
	b := append(make([]byte, 0, MaxList), listMagic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, uint32(to.Algorithm()))
	b = append(b, digest[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(bases)))
	for _, base := range bases {
		b = append(b, base.Index[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(base.ImageSize))
		b = binary.LittleEndian.AppendUint64(b, uint64(base.FileSize))
		b = binary.LittleEndian.AppendUint64(b, uint64(base.HeadSize))
		b = append(b, byte(len(base.Samples)))
		for _, s := range base.Samples {
			b = append(b, s[:]...)
		}
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// DecodeList decodes the list of the deltas to the image of an index. Its errors wrap ErrInvalid.
func DecodeList(b []byte, to *blob.Index) ([]Base, error) {
	if len(b) < listHeadSize+sha256.Size || string(b[:8]) != listMagic {
		return nil, fmt.Errorf("%w: not a list of deltas", ErrInvalid)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != version {
		return nil, fmt.Errorf("%w: the version of its list is %d, and %d is known", ErrInvalid, v, version)
	}
	body, digest := b[:len(b)-sha256.Size], to.Digest()
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[len(body):]) {
		return nil, fmt.Errorf("%w: its list is damaged (the checksum is wrong)", ErrInvalid)
	}
	n := binary.LittleEndian.Uint64(b[48:])
	switch {
	case binary.LittleEndian.Uint32(b[12:]) != uint32(to.Algorithm()) || !bytes.Equal(b[16:48], digest[:]):
		return nil, fmt.Errorf("%w: its list is for the image of another index", ErrInvalid)
	case n > MaxBases:
		return nil, fmt.Errorf("%w: a list of %d deltas, and %d are the limit", ErrInvalid, n, MaxBases)
	}
	return decodeBases(body[listHeadSize:], int(n), digest)
}

func decodeBases(b []byte, n int, to blob.Digest) ([]Base, error) {
	seen := map[blob.Digest]bool{to: true} // nothing is a delta from itself
	var bases []Base
	for range n {
		if len(b) < listEntrySize {
			return nil, fmt.Errorf("%w: its list ends early", ErrInvalid)
		}
		u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
		digest, samples := blob.Digest(b[:32]), int(b[56])
		switch {
		case seen[digest]:
			return nil, fmt.Errorf("%w: its list names an image twice", ErrInvalid)
		case u64(32) > 1<<62 || u64(40) > 1<<62 || u64(48) > u64(40):
			return nil, fmt.Errorf("%w: its list has an image of %d bytes, and a delta of %d", ErrInvalid, u64(32), u64(40))
		case samples > MaxSamples || len(b) < listEntrySize+samples*sampleSize:
			return nil, fmt.Errorf("%w: its list has %d samples of an image", ErrInvalid, samples)
		}
		seen[digest] = true
		base := Base{Index: digest, ImageSize: int64(u64(32)), FileSize: int64(u64(40)), HeadSize: int64(u64(48))}
		b = b[listEntrySize:]
		for range samples {
			base.Samples = append(base.Samples, [8]byte(b[:8]))
			b = b[sampleSize:]
		}
		bases = append(bases, base)
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("%w: its list has %d bytes too many", ErrInvalid, len(b))
	}
	return bases, nil
}
