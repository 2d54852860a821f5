package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/chunker"
	"cairn/internal/disk"
	"cairn/internal/openfile"
)

// What Open takes in place of a number of bytes.
const (
	Whole      = -1 // the image is all that its location holds
	FileSystem = -2 // it is as large as its file system's superblock claims
)

var (
	// ErrNoClaim means that no superblock claims a size.
	ErrNoClaim = errors.New("it holds no file system that tells its size (squashfs, ext2/3/4, erofs)")
	// ErrStream means that a size was given for a stream.
	ErrStream = errors.New("a stream has the size that it has")
)

// Source is an image that is open to be cut.
type Source struct {
	*chunker.Source
	Size    int64         // of the image; -1 for a stream, which tells it in the end
	Held    int64         // bytes at its location, of which the image is the first; -1 for a stream
	Device  bool          // its location is a device
	Kind    string        // of the file system at its beginning; "" when that tells no size
	Claimed int64         // the file system's size
	Replay  []disk.Replay // file systems in it whose journal waits for a replay
	input   openfile.Input
}

// Open opens an image at a location as openfile.OpenInput takes it. Its first size bytes are cut, or Whole or FileSystem.
func Open(ctx context.Context, location string, size int64) (*Source, error) {
	in, err := openfile.OpenInput(ctx, location)
	if err != nil {
		return nil, err
	}
	s := &Source{input: in}
	if in.Stream != nil {
		err = s.openStream(in.Stream, size)
	} else {
		err = s.openFile(size)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close closes the image.
func (s *Source) Close() { s.input.Close() }

func (s *Source) openFile(size int64) error {
	f := s.input.File
	s.Held, s.Device = f.Size(), f.IsDevice()
	s.Kind, s.Claimed, _ = disk.FilesystemSize(f)
	switch {
	case size == Whole:
		size = s.Held
	case size == FileSystem && s.Claimed == 0:
		return ErrNoClaim
	case size == FileSystem:
		size = s.Claimed
	}
	if size > s.Held {
		return fmt.Errorf("it has %d bytes, fewer than the %d wanted", s.Held, size)
	}
	s.Size, s.Source = size, chunker.FromReaderAt(f, size)
	s.Replay = disk.NeedReplay(io.NewSectionReader(f, 0, size), size)
	return nil
}

// headSize is how much of a stream is looked at: the superblocks of ext and btrfs are in it.
const headSize = 128 << 10

func (s *Source) openStream(stream io.Reader, size int64) error {
	if size != Whole {
		return ErrStream
	}
	head := make([]byte, headSize)
	n, _ := io.ReadFull(stream, head) // a stream that fails does so again
	s.Size, s.Held = -1, -1
	s.Source = chunker.FromReader(io.MultiReader(bytes.NewReader(head[:n]), stream))
	s.Replay = disk.NeedReplay(bytes.NewReader(head[:n]), int64(n))
	return nil
}
