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

// locationsName is the directory with the last index of each location: a file named by the location's hash, which may
// hold a secret, with the index's digest in it. The index itself lies beside its image.
const locationsName = "locations"

// Remember keeps that a location last had the index x, whose image has been opened here.
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

// Recall returns the index that a location last had, or nil if it is not known any more. It has the digest that it was
// remembered by.
func (d *Dir) Recall(location [sha256.Size]byte) *blob.Index {
	digest := recorded(d.locationFile(location))
	if digest == "" {
		return nil
	}
	return readIndex(filepath.Join(d.path, digest))
}

func (d *Dir) locationFile(location [sha256.Size]byte) string {
	return filepath.Join(filepath.Dir(d.path), locationsName, hex.EncodeToString(location[:]))
}

// recorded returns the digest in a location's file, or "".
func recorded(name string) string {
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

// forgetEvicted removes the files of locations whose image is not here any more, so that they do not pile up.
func (d *Dir) forgetEvicted() {
	dir := filepath.Join(filepath.Dir(d.path), locationsName)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		digest := recorded(name)
		if _, err := os.Stat(filepath.Join(d.path, digest, indexName)); digest == "" || errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(name) // the next start tries again
		}
	}
}

// readIndex returns the index beside the image in a directory, or nil if it is not there or damaged.
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
