package imagecache

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"cairn/blob"
	"cairn/internal/atomicfile"
	"cairn/internal/owndir"
)

// locationsName is the directory that records the last index of each location. Its files are named by the hash of the
// location, which may contain a secret, and hold the digest of the index. The index is in the directory of its image.
const locationsName = "locations"

// Remember records x as the last index of a location. The image of x must have been opened in this Dir.
func (d *Dir) Remember(location [sha256.Size]byte, x *blob.Index) error {
	root, name, text := d.root.Load(), locationFile(location), []byte(x.Digest().String()+"\n")
	if before, err := owndir.ReadFile(root, name, maxRecord); err == nil && bytes.Equal(before, text) {
		return nil
	}
	if err := owndir.CreateDir(root, locationsName); err != nil {
		return fmt.Errorf("remembering an index: %w", err)
	}
	return atomicfile.WriteIn(root, name, text, 0o600)
}

// Recall returns the last index of a location, or nil if it is unknown or its image was evicted. The index has the
// recorded digest.
func (d *Dir) Recall(location [sha256.Size]byte) *blob.Index {
	root := d.root.Load()
	digest := readRecord(root, locationFile(location))
	if digest == "" {
		return nil
	}
	return readIndex(root, path.Join(imagesName, digest))
}

func locationFile(location [sha256.Size]byte) string {
	return path.Join(locationsName, hex.EncodeToString(location[:]))
}

const maxRecord = 4096 // bytes

// readRecord returns the digest in a location's file, or "".
func readRecord(root *os.Root, name string) string {
	if owndir.CheckDir(root, path.Dir(name)) != nil {
		return ""
	}
	text, err := owndir.ReadFile(root, name, maxRecord)
	if err != nil {
		return ""
	}
	digest := strings.TrimSuffix(string(text), "\n")
	if raw, err := hex.DecodeString(digest); err != nil || len(raw) != len(blob.Digest{}) {
		return ""
	}
	return digest
}

// removeStaleRecords removes the files of locations whose image was evicted.
func removeStaleRecords(root *os.Root) {
	entries, _ := owndir.ReadDir(root, locationsName)
	for _, e := range entries {
		name := path.Join(locationsName, e)
		digest := readRecord(root, name)
		if _, err := root.Lstat(path.Join(imagesName, digest, indexName)); digest == "" || errors.Is(err, os.ErrNotExist) {
			_ = root.Remove(name) // the next Open tries again
		}
	}
}

// readIndex returns the index in the directory of an image, or nil if it is missing, damaged or not trusted.
func readIndex(root *os.Root, name string) *blob.Index {
	if owndir.CheckDir(root, name) != nil {
		return nil
	}
	f, err := owndir.OpenFile(root, path.Join(name, indexName), os.O_RDONLY)
	if err != nil {
		return nil
	}
	defer f.Close()
	x, err := blob.Decode(bufio.NewReader(f))
	if err != nil || x.Digest().String() != path.Base(name) {
		return nil
	}
	return x
}
