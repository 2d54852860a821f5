package imagecache

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cairn/blob"
	"cairn/internal/atomicfile"
)

// locationsName is the directory that records the last index of each location. Its files are named by the hash of the
// location, which may contain a secret, and hold the digest of the index. The index is in the directory of its image.
const locationsName = "locations"

// Remember records x as the last index of a location. The image of x must have been opened in this Dir.
func (d *Dir) Remember(location [sha256.Size]byte, x *blob.Index) error {
	name, text := d.locationFile(location), []byte(x.Digest().String()+"\n")
	if before, err := os.ReadFile(name); err == nil && bytes.Equal(before, text) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return fmt.Errorf("remembering an index: %w", err)
	}
	return atomicfile.Write(name, text, 0o600)
}

// Recall returns the last index of a location, or nil if it is unknown or its image was evicted. The index has the
// recorded digest.
func (d *Dir) Recall(location [sha256.Size]byte) *blob.Index {
	digest := readRecord(d.locationFile(location))
	if digest == "" {
		return nil
	}
	return readIndex(filepath.Join(d.path, digest))
}

func (d *Dir) locationFile(location [sha256.Size]byte) string {
	return filepath.Join(filepath.Dir(d.path), locationsName, hex.EncodeToString(location[:]))
}

// readRecord returns the digest in a location's file, or "".
func readRecord(name string) string {
	text, err := os.ReadFile(name)
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
func (d *Dir) removeStaleRecords() {
	dir := filepath.Join(filepath.Dir(d.path), locationsName)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		digest := readRecord(name)
		if _, err := os.Stat(filepath.Join(d.path, digest, indexName)); digest == "" || errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(name) // the next Open tries again
		}
	}
}

// readIndex returns the index in the directory of an image, or nil if it is missing or damaged.
func readIndex(dir string) *blob.Index {
	f, err := os.Open(filepath.Join(dir, indexName))
	if err != nil {
		return nil
	}
	defer f.Close()
	x, err := blob.Decode(bufio.NewReader(f))
	if err != nil || x.Digest().String() != filepath.Base(dir) {
		return nil
	}
	return x
}
