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

// Special values for the size that Open takes.
const (
	Whole      = -1 // the image is the whole content of its location
	FileSystem = -2 // the image has the size in its file system's superblock
)

var (
	// ErrNoClaim reports that no superblock has a size.
	ErrNoClaim = errors.New("it holds no file system that tells its size (squashfs, ext2/3/4, erofs)")
	// ErrStream reports that a size was given for a stream.
	ErrStream = errors.New("the size of a stream cannot be given")
)

// Source is an open image.
type Source struct {
	*chunker.Source
	Size    int64         // of the image; -1 for a stream, whose size is unknown
	Held    int64         // bytes at the location, which begin with the image; -1 for a stream
	Device  bool          // the location is a device
	Kind    string        // of the file system at the beginning; "" if its size is unknown
	Claimed int64         // size of the file system
	Replay  []disk.Replay // file systems in the image that need a journal replay
	input   openfile.Input
}

// Open opens the image at a location in the form that openfile.OpenInput accepts. The image is the
// first size bytes; size may be Whole or FileSystem.
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

// ReaderAt returns the bytes of the image at offsets, or nil for a stream.
func (s *Source) ReaderAt() io.ReaderAt {
	if s.input.File == nil {
		return nil
	}
	return s.input.File
}

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

// headSize is the length of the part of a stream that is searched for superblocks, in bytes. It
// includes those of ext and btrfs.
const headSize = 128 << 10

func (s *Source) openStream(stream io.Reader, size int64) error {
	if size != Whole {
		return ErrStream
	}
	head := make([]byte, headSize)
	n, _ := io.ReadFull(stream, head) // the next read of the stream returns the error again
	s.Size, s.Held = -1, -1
	s.Source = chunker.FromReader(io.MultiReader(bytes.NewReader(head[:n]), stream))
	s.Replay = disk.NeedReplay(bytes.NewReader(head[:n]), int64(n))
	return nil
}
