// Package profile lists the chunks of an image that a workload reads, usually a boot, in the order of
// their first reads. A server of the image prefetches these chunks. An entry has the chunk's digest, so
// the profile of a release also serves the next one, and its offset, which helps to find changed
// chunks. A profile is a hint: a wrong one costs time but never gives wrong bytes. The package knows
// nothing of stores or of servers.
package profile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"cairn/blob"
)

// Suffix ends the name of a profile's file, which lies beside the index: NAME.caprf for NAME.caibx.
const Suffix = ".caprf"

const (
	magic      = "cairnprf"
	version    = 1
	headerSize = 72
	rowSize    = 16
	// Block is the unit of offsets in bytes.
	Block = 4096
	// MaxEntries limits the chunks of a profile. So many are 16 MiB of file, or 64 GiB of image at the
	// default sizes.
	MaxEntries = 1 << 20
	// MaxSize is the size of the largest profile file in bytes.
	MaxSize = headerSize + rowSize*MaxEntries + sha256.Size
)

// ErrInvalid is wrapped by every error about a profile that breaks the format.
var ErrInvalid = errors.New("invalid profile")

// Prefix is the first 8 bytes of a digest, which distinguish the chunks of an image.
type Prefix [8]byte

// Entry is a chunk that was read.
type Entry struct {
	Prefix Prefix
	Block  uint32 // offset of the chunk in the image, in whole blocks of 4096 bytes
	After  uint32 // milliseconds from the first read of the recording to the first of this chunk
}

// Profile is a list of chunks in the order of their first reads, each digest once. It is immutable.
type Profile struct {
	algorithm  blob.Algorithm
	index      blob.Digest // of the index whose image was read
	size       int64       // of that image, bytes
	recordings int         // number of merged recordings
	entries    []Entry
}

// Read is a chunk of an image that was read.
type Read struct {
	Chunk blob.Chunk
	After time.Duration // since the first read
}

// New returns the profile of reads of x's image. It counts only the first read of each chunk, and drops
// chunks beyond MaxEntries.
func New(x *blob.Index, reads []Read) *Profile {
	p := &Profile{algorithm: x.Algorithm(), index: x.Digest(), size: x.Size(), recordings: 1}
	seen := map[Prefix]bool{}
	for _, r := range reads {
		after := min(max(r.After.Milliseconds(), 0), 1<<32-1)
		e := Entry{Prefix(r.Chunk.Digest[:8]), uint32(min(r.Chunk.Offset/Block, 1<<32-1)), uint32(after)}
		if !seen[e.Prefix] && len(p.entries) < MaxEntries {
			seen[e.Prefix] = true
			p.entries = append(p.entries, e)
		}
	}
	return p
}

// Entries returns the chunks in order. The caller must not modify them.
func (p *Profile) Entries() []Entry { return p.entries }

// Summary describes a profile.
type Summary struct {
	Index      blob.Digest `json:"index"` // of the image that was read
	Algorithm  string      `json:"digest"`
	ImageBytes int64       `json:"image_bytes"`
	Recordings int         `json:"recordings"`
	Chunks     int         `json:"chunks"`
	Seconds    float64     `json:"seconds"` // from the first read of the recording to the first read of the last chunk
	// The profile's Plan for another image; nil without one.
	Known   *int   `json:"known_chunks,omitempty"`
	Guessed *int   `json:"guessed_chunks,omitempty"`
	Bytes   *int64 `json:"bytes,omitempty"`
}

// Summarize returns the profile's summary. If x is not nil, it includes the profile's Plan for the
// image of x.
func (p *Profile) Summarize(x *blob.Index) Summary {
	s := Summary{Index: p.index, Algorithm: p.algorithm.String(), ImageBytes: p.size, Recordings: p.recordings, Chunks: len(p.entries)}
	for _, e := range p.entries {
		s.Seconds = max(s.Seconds, (time.Duration(e.After) * time.Millisecond).Seconds())
	}
	if x == nil {
		return s
	}
	plan, sum := p.Plan(x), int64(0)
	for _, i := range plan.Chunks {
		sum += x.At(i).Size
	}
	s.Known, s.Guessed, s.Bytes = &plan.Known, &plan.Guessed, &sum
	return s
}

// Encode returns the profile in its file format.
func (p *Profile) Encode() []byte {
	b := make([]byte, 0, headerSize+rowSize*len(p.entries)+sha256.Size)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint32(b, version)
	b = binary.LittleEndian.AppendUint32(b, uint32(p.algorithm))
	b = append(b, p.index[:]...)
	for _, v := range []uint64{uint64(p.size), uint64(p.recordings), uint64(len(p.entries))} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	for _, e := range p.entries {
		b = append(b, e.Prefix[:]...)
		b = binary.LittleEndian.AppendUint32(b, e.Block)
		b = binary.LittleEndian.AppendUint32(b, e.After)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// Decode reads a profile's file to its end. Its memory grows with the bytes read, not with the sizes
// that the file claims. An error about the content wraps ErrInvalid; any other comes from r.
func Decode(r io.Reader) (*Profile, error) {
	first := make([]byte, len(magic))
	switch n, err := io.ReadFull(r, first); {
	case err != nil && err != io.EOF && err != io.ErrUnexpectedEOF:
		return nil, err
	case n < len(magic) || string(first) != magic:
		return nil, fmt.Errorf("%w: not a profile", ErrInvalid)
	}
	data, err := io.ReadAll(io.MultiReader(bytes.NewReader(first), io.LimitReader(r, MaxSize+1-int64(len(magic)))))
	if err != nil {
		return nil, err
	}
	return decodeBytes(data)
}

func decodeBytes(data []byte) (*Profile, error) {
	if len(data) < headerSize+sha256.Size || string(data[:8]) != magic {
		return nil, fmt.Errorf("%w: not a profile", ErrInvalid)
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(data[at:]) }
	if v := binary.LittleEndian.Uint32(data[8:]); v != version {
		return nil, fmt.Errorf("%w: its version is %d, and %d is known", ErrInvalid, v, version)
	}
	body := data[:len(data)-sha256.Size]
	if sha256.Sum256(body) != [sha256.Size]byte(data[len(body):]) {
		return nil, fmt.Errorf("%w: damaged (its checksum is wrong)", ErrInvalid)
	}
	algorithm, n := binary.LittleEndian.Uint32(data[12:]), u64(64)
	switch {
	case algorithm > uint32(blob.SHA256):
		return nil, fmt.Errorf("%w: unknown digest algorithm %d", ErrInvalid, algorithm)
	case n > MaxEntries || len(body) != headerSize+rowSize*int(n):
		return nil, fmt.Errorf("%w: %d bytes for %d chunks", ErrInvalid, len(data), n)
	case u64(48) > 1<<62 || u64(56) < 1 || u64(56) > 1<<20:
		return nil, fmt.Errorf("%w: an image of %d bytes, %d recordings", ErrInvalid, u64(48), u64(56))
	}
	p := &Profile{algorithm: blob.Algorithm(algorithm), index: blob.Digest(data[16:48]), size: int64(u64(48)), recordings: int(u64(56))}
	return p, p.decodeRows(body[headerSize:])
}

func (p *Profile) decodeRows(rows []byte) error {
	seen := make(map[Prefix]bool, len(rows)/rowSize)
	for ; len(rows) > 0; rows = rows[rowSize:] {
		e := Entry{Prefix(rows[:8]), binary.LittleEndian.Uint32(rows[8:]), binary.LittleEndian.Uint32(rows[12:])}
		if seen[e.Prefix] {
			return fmt.Errorf("%w: a chunk comes twice", ErrInvalid)
		}
		seen[e.Prefix] = true
		p.entries = append(p.entries, e)
	}
	return nil
}
