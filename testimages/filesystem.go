package testimages

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/ext4"
	"github.com/diskfs/go-diskfs/filesystem/squashfs"
	"github.com/google/uuid"
)

// epoch returns the time of all files, 2025-01-01. Image builders set a fixed time, too.
func epoch() time.Time { return time.Unix(1735689600, 0) }

// createFile creates a file that fill writes.
func createFile(path string, fill func(f *os.File) error) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := fill(f); err != nil {
		return fmt.Errorf("making %s: %w", path, err)
	}
	return nil
}

// Squashfs writes tree as a squashfs, compressed with zstd and padded to 4096 bytes. Equal trees give equal files.
func Squashfs(path string, tree []Entry) error {
	return createFile(path, func(f *os.File) error {
		image, err := squashfs.Create(file.New(f, false), 0, 0, 0)
		if err != nil {
			return err
		}
		workspace := image.Workspace() // Finalize does not remove it
		defer os.RemoveAll(workspace)
		if err := unpackTree(workspace, tree); err != nil {
			return err
		}
		var root uint32
		options := squashfs.FinalizeOptions{Compression: &squashfs.CompressorZstd{}, FileUID: &root, FileGID: &root}
		if err := image.Finalize(options); err != nil {
			return err
		}
		return finishSquashfs(f)
	})
}

// unpackTree writes tree into a directory.
func unpackTree(dir string, tree []Entry) error {
	for _, e := range tree {
		name := filepath.Join(dir, filepath.FromSlash(e.Path))
		var err error
		if e.Mode.IsDir() {
			err = os.Mkdir(name, 0o700)
		} else {
			err = os.WriteFile(name, e.Data, 0o600)
		}
		if err := errors.Join(err, os.Chmod(name, e.Mode.Perm())); err != nil {
			return err
		}
	}
	// Set times last and in reverse order: creating a file changes the time of its directory.
	for i := len(tree) - 1; i >= 0; i-- {
		if err := os.Chtimes(filepath.Join(dir, filepath.FromSlash(tree[i].Path)), epoch(), epoch()); err != nil {
			return err
		}
	}
	return errors.Join(os.Chmod(dir, 0o755), os.Chtimes(dir, epoch(), epoch()))
}

// finishSquashfs replaces the creation time, which go-diskfs takes from the clock, and pads the file.
func finishSquashfs(f *os.File) error {
	const madeAt, pad = 0x8, 4096
	stamp := binary.LittleEndian.AppendUint32(nil, uint32(epoch().Unix()))
	if _, err := f.WriteAt(stamp, madeAt); err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return f.Truncate((size + pad - 1) / pad * pad)
}

const (
	ext4Block = 4096
	ext4Group = 8 * ext4Block * ext4Block // bytes covered by one bitmap block
)

// Ext4 writes tree as an ext4 of size bytes, at most 128 MiB (one block group), without a journal. Equal
// arguments give equal files.
func Ext4(path string, tree []Entry, size int64) error {
	if size > ext4Group {
		return fmt.Errorf("an ext4 of %d bytes is larger than %d", size, ext4Group)
	}
	return createFile(path, func(f *os.File) error {
		if err := f.Truncate(size); err != nil {
			return err
		}
		id := uuid.NewSHA1(uuid.Nil, []byte("testimages"))
		image, err := ext4.Create(file.New(f, false), size, 0, 0, &ext4.Params{
			UUID:            &id,
			SectorsPerBlock: ext4Block / 512,
			Features: []ext4.FeatureOpt{
				ext4.WithFeatureHasJournal(false),
				ext4.WithFeatureReservedGDTBlocksForExpansion(false),
			},
		})
		if err != nil {
			return err
		}
		for _, e := range tree {
			if err := addExt4(image, e); err != nil {
				return fmt.Errorf("adding %s: %w", e.Path, err)
			}
		}
		if err := image.Close(); err != nil {
			return err
		}
		return finishExt4(f)
	})
}

func addExt4(image *ext4.FileSystem, e Entry) error {
	if e.Mode.IsDir() {
		return image.Mkdir(e.Path)
	}
	f, err := image.OpenFile(e.Path, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	if _, err := f.Write(e.Data); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return errors.Join(f.Close(), image.Chmod(e.Path, e.Mode.Perm()))
}

// finishExt4 replaces the values that go-diskfs takes from the clock and from a random source: times and the
// seed of the directory hashes. It clears the inode checksums over them, which have no meaning without the
// feature metadata_csum. Offsets are those of fs/ext4/ext4.h.
func finishExt4(f *os.File) error {
	const at = 1024
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, at); err != nil {
		return err
	}
	stamp := uint32(epoch().Unix())
	for _, field := range []int{0x2c, 0x30, 0x40, 0x108} { // times of mount, write, check and creation
		binary.LittleEndian.PutUint32(sb[field:], stamp)
	}
	clear(sb[0xec:0xfc])   // the hash seed
	clear(sb[0x3fc:0x400]) // the checksum
	if _, err := f.WriteAt(sb, at); err != nil {
		return err
	}
	return finishInodes(f, binary.LittleEndian.Uint32(sb[0x28:]))
}

// finishInodes does the same for the inode table of the only block group.
func finishInodes(f *os.File, count uint32) error {
	const inodeSize = 256
	var descriptor [64]byte
	if _, err := f.ReadAt(descriptor[:], ext4Block); err != nil {
		return err
	}
	table := make([]byte, inodeSize*count)
	at := int64(binary.LittleEndian.Uint32(descriptor[0x8:])) * ext4Block
	if _, err := f.ReadAt(table, at); err != nil {
		return err
	}
	for inode := range slices.Chunk(table, inodeSize) {
		finishInode(inode)
	}
	_, err := f.WriteAt(table, at)
	return err
}

func finishInode(inode []byte) {
	stamp := uint32(epoch().Unix())
	for _, field := range []int{0x8, 0xc, 0x10, 0x90} { // times of access, change, modification and creation
		if binary.LittleEndian.Uint32(inode[field:]) != 0 {
			binary.LittleEndian.PutUint32(inode[field:], stamp)
		}
	}
	for _, extra := range []int{0x84, 0x88, 0x8c, 0x94} { // their nanoseconds
		clear(inode[extra : extra+4])
	}
	clear(inode[0x7c:0x7e]) // the checksum,
	clear(inode[0x82:0x84]) // in two parts
}
