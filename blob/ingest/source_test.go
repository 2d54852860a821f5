package ingest

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/test/mem"
	"cairn/store"
)

// squashfs returns an image of all bytes, whose superblock claims size bytes.
func squashfs(size, all int) []byte {
	image := lumpy(1, all)
	head := make([]byte, 96)
	copy(head, "hsqs")
	binary.LittleEndian.PutUint16(head[0x1c:], 4)
	binary.LittleEndian.PutUint64(head[0x28:], uint64(size))
	return append(head, image[len(head):]...)
}

// TestOpen: the requested part of a file is cut, and at most the whole file.
func TestOpen(t *testing.T) {
	image := squashfs(8192, 3<<20)
	path, none := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "none")
	mustWrite(t, path, image)
	mustWrite(t, none, image[96:])
	for _, c := range []struct {
		path       string
		size, want int64
		err        error
	}{
		{path, Whole, 3 << 20, nil}, {path, FileSystem, 8192, nil}, {path, 100_000, 100_000, nil}, {path, 0, 0, nil},
		{none, Whole, 3<<20 - 96, nil}, {none, FileSystem, 0, ErrNoClaim}, {path + "x", Whole, 0, os.ErrNotExist},
	} {
		s, err := Open(t.Context(), c.path, c.size)
		if !errors.Is(err, c.err) || err != nil && c.err == nil {
			t.Errorf("Open(%s, %d) = %v, want %v", c.path, c.size, err, c.err)
		}
		if err != nil {
			continue
		}
		if s.Size != c.want || c.path == path && (s.Kind != "squashfs" || s.Claimed != 8192 || s.Held != 3<<20) {
			t.Errorf("Open(%s, %d) = %+v, want %d bytes", c.path, c.size, s, c.want)
		}
		b := new(mem.Bucket)
		x, _ := mustBuild(t, s.Source, newWriter(t, b, store.WriterOptions{}), Options{Params: fixed})
		s.Close()
		checkStored(t, x, b, mustRead(t, c.path)[:c.want])
	}
	if s, err := Open(t.Context(), path, 3<<20+1); err == nil {
		t.Errorf("more than there is is cut: %+v", s)
	}
}

// TestOpenStream: the head of a stream is searched for superblocks, and the whole stream is cut.
func TestOpenStream(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1000, headSize, 1 << 20} {
		image := needsReplay(size)
		written := make(chan error, 1)
		go func() { written <- os.WriteFile(fifo, image, 0) }()
		s, err := Open(t.Context(), fifo, Whole)
		if err != nil {
			t.Fatal(err)
		}
		if replays := size >= headSize; s.Size != -1 || s.Held != -1 || (len(s.Replay) > 0) != replays {
			t.Errorf("Open of a stream of %d bytes = %+v", size, s)
		}
		b := new(mem.Bucket)
		x, _ := mustBuild(t, s.Source, newWriter(t, b, store.WriterOptions{}), Options{Params: fixed})
		s.Close() // else the next image could be written for this reader
		checkStored(t, x, b, image)
		if err := <-written; err != nil {
			t.Error(err)
		}
	}
	go func() { _ = os.WriteFile(fifo, nil, 0) }()
	if _, err := Open(t.Context(), fifo, 1000); !errors.Is(err, ErrStream) {
		t.Errorf("Open of the first bytes of a stream = %v, want %v", err, ErrStream)
	}
}

// needsReplay returns an image that begins with an ext4 superblock whose journal needs a replay, if
// size permits.
func needsReplay(size int) []byte {
	image := lumpy(2, size)
	if size >= headSize {
		super := image[1024:2048]
		clear(super)
		binary.LittleEndian.PutUint16(super[0x38:], 0xef53)
		binary.LittleEndian.PutUint32(super[0x5c:], 4)      // it has a journal
		binary.LittleEndian.PutUint32(super[0x60:], 4|0x40) // the journal needs a replay; extents
	}
	return image
}
