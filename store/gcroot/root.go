package gcroot

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"cairn/blob"
	"cairn/store"
)

// Root is a gc root: a published index, whose chunks stay.
type Root struct {
	// Name is the location of the index. It is relative to the directory that holds the store if the index lies
	// there or below, so that it stays true when the directory moves.
	Name      string
	Published time.Time // by the clock of the store
	Digest    blob.Digest
	Index     *blob.Index // nil if only the head was read
	// Map is the file of the index's map of packs, which this package does not parse. Empty for none, and if only the
	// head was read.
	Map []byte
}

const (
	magic    = "cairngcr"
	version  = 1
	headSize = 0x48
	maxName  = 4096
	maxIndex = 104 + 40*blob.MaxChunks // size of the largest index
	maxMap   = 1 << 30                 // size of the largest map
	maxRoot  = headSize + maxName + sha256.Size + maxIndex + maxMap
)

// rootName returns a new name for the gc root of an index.
func rootName(index blob.Digest, number uint32) string {
	return fmt.Sprintf("%v-%08x-%s%s", index, number, newID(), Suffix)
}

var rootPattern = regexp.MustCompile(`^([0-9a-f]{64})-([0-9a-f]{8})-[0-9a-f]{16}\.caroot$`)

func parseRootName(name string) (e Entry, ok bool) {
	parts := rootPattern.FindStringSubmatch(name)
	if parts == nil {
		return e, false
	}
	index, err := blob.ParseDigest(parts[1])
	number, numberErr := strconv.ParseUint(parts[2], 16, 32)
	return Entry{Name: name, Index: index, Number: uint32(number)}, err == nil && numberErr == nil
}

// Encode returns the file of a gc root.
func (r *Root) Encode() ([]byte, error) {
	if err := checkName(r.Name); err != nil {
		return nil, err
	}
	size := r.Index.EncodedSize()
	out := bytes.NewBuffer(make([]byte, 0, headSize+len(r.Name)+sha256.Size+int(size)+len(r.Map)))
	head := make([]byte, headSize)
	copy(head, magic)
	binary.LittleEndian.PutUint32(head[0x08:], version)
	binary.LittleEndian.PutUint32(head[0x0c:], uint32(len(r.Name)))
	digest := r.Index.Digest()
	copy(head[0x10:], digest[:])
	binary.LittleEndian.PutUint64(head[0x30:], uint64(r.Published.UnixNano()))
	binary.LittleEndian.PutUint64(head[0x38:], uint64(size))
	binary.LittleEndian.PutUint64(head[0x40:], uint64(len(r.Map)))
	out.Write(head)
	out.WriteString(r.Name)
	sum := sha256.Sum256(out.Bytes())
	out.Write(sum[:])
	_, err := r.Index.WriteTo(out)
	out.Write(r.Map)
	return out.Bytes(), err
}

func checkName(name string) error {
	if name == "" || len(name) > maxName || !utf8.ValidString(name) || strings.ContainsRune(name, 0) {
		return fmt.Errorf("%w: the name of its index has %d bytes; want 1 to %d of UTF-8", ErrInvalid, len(name), maxName)
	}
	return nil
}

// Decode reads a gc root, or only its head. Every error of its content is an ErrInvalid.
func Decode(in io.Reader, headOnly bool) (*Root, error) {
	head := make([]byte, headSize)
	if _, err := io.ReadFull(in, head); err != nil {
		return nil, invalidEnd(err)
	}
	if string(head[:8]) != magic {
		return nil, fmt.Errorf("%w: it does not begin with %s", ErrInvalid, magic)
	}
	if v := binary.LittleEndian.Uint32(head[0x08:]); v != version {
		return nil, fmt.Errorf("%w: it has version %d, and this program knows version %d", ErrInvalid, v, version)
	}
	n := binary.LittleEndian.Uint32(head[0x0c:])
	if n == 0 || n > maxName {
		return nil, fmt.Errorf("%w: the name of its index has %d bytes; want 1 to %d", ErrInvalid, n, maxName)
	}
	rest := make([]byte, n+sha256.Size)
	if _, err := io.ReadFull(in, rest); err != nil {
		return nil, invalidEnd(err)
	}
	h := sha256.New()
	h.Write(head)
	h.Write(rest[:n])
	if !bytes.Equal(h.Sum(nil), rest[n:]) {
		return nil, fmt.Errorf("%w: its head has another checksum", ErrInvalid)
	}
	r := &Root{Name: string(rest[:n]), Published: time.Unix(0, int64(binary.LittleEndian.Uint64(head[0x30:])))}
	copy(r.Digest[:], head[0x10:])
	if err := checkName(r.Name); err != nil {
		return nil, err
	}
	size, mapSize := binary.LittleEndian.Uint64(head[0x38:]), binary.LittleEndian.Uint64(head[0x40:])
	if size > maxIndex || mapSize > maxMap {
		return nil, fmt.Errorf("%w: its index has %d bytes, and its map %d", ErrInvalid, size, mapSize)
	}
	if headOnly {
		return r, nil
	}
	if err := r.decodeIndex(in, int64(size)); err != nil {
		return r, err
	}
	return r, r.readMap(in, int64(mapSize))
}

func (r *Root) decodeIndex(in io.Reader, size int64) (err error) {
	body := &io.LimitedReader{R: in, N: size}
	if r.Index, err = blob.Decode(bufio.NewReaderSize(body, 1<<16)); err != nil {
		if errors.Is(err, blob.ErrInvalid) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		return err
	}
	switch {
	case r.Index.EncodedSize() != size:
		return fmt.Errorf("%w: its index has %d bytes instead of %d", ErrInvalid, r.Index.EncodedSize(), size)
	case r.Index.Digest() != r.Digest:
		return fmt.Errorf("%w: its index has another digest", ErrInvalid)
	}
	return nil
}

// readMap reads the map, which is the last part. Its memory grows with the bytes that are there.
func (r *Root) readMap(in io.Reader, size int64) (err error) {
	if size > 0 {
		if r.Map, err = io.ReadAll(io.LimitReader(in, size)); err != nil {
			return err
		}
	}
	if int64(len(r.Map)) < size {
		return invalidEnd(io.EOF)
	}
	if n, err := io.ReadFull(in, make([]byte, 1)); n > 0 {
		return fmt.Errorf("%w: bytes follow its last part", ErrInvalid)
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func invalidEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is too short", ErrInvalid)
	}
	return err
}

// Read reads a gc root, or only its head. A damaged one is an ErrInvalid.
func (d *Dir) Read(ctx context.Context, e Entry, headOnly bool) (r *Root, err error) {
	err = store.Stream(ctx, d.reader, e.Name, maxRoot, func(in io.Reader) error {
		r, err = Decode(in, headOnly)
		return err
	})
	if errors.Is(err, store.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err == nil && r.Digest != e.Index {
		err = fmt.Errorf("%w: it is of another index than its name says", ErrInvalid)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the gc root %v/%s: %w", d, e.Name, err)
	}
	return r, nil
}

// Write writes the gc root of an index under a new name. From then on, the chunks of the index stay. number is that of
// the publication; see Listing.Next.
func (d *Dir) Write(ctx context.Context, r *Root, number uint32) (Entry, error) {
	data, err := r.Encode()
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Name: rootName(r.Index.Digest(), number), Index: r.Index.Digest(), Number: number}
	if err := d.bucket.Write(ctx, e.Name, data); err != nil {
		return Entry{}, fmt.Errorf("writing a gc root: %w", err)
	}
	return e, nil
}

// Retire marks a gc root whose index is gone. Its chunks stay for the grace of gc, for clients that are reading
// them.
func (d *Dir) Retire(ctx context.Context, e Entry) error {
	if err := d.bucket.Write(ctx, retiredPrefix+e.Name, nil); err != nil {
		return fmt.Errorf("retiring the gc root %s: %w", e.Name, err)
	}
	return nil
}

// Remove removes a retired gc root.
func (d *Dir) Remove(ctx context.Context, e Entry) error {
	for _, name := range []string{e.Name, retiredPrefix + e.Name} { // a mark alone is harmless
		if err := d.remove(ctx, name); err != nil {
			return fmt.Errorf("removing the gc root %s: %w", e.Name, err)
		}
	}
	return nil
}
