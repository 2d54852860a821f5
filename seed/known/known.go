// Package known records in a directory what is known of devices. The index of a device's content makes
// another scan unnecessary. A record of unfinished work shows an interrupted job. All records are
// hints, since chunks are hashed when they are used. The package does not know how devices are found or
// read.
package known

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cairn/blob"
	"cairn/internal/atomicfile"
)

// Dir is the path of the directory. It is created with the first record. Several processes may use it.
type Dir string

// Content identifies the content of a device. A device with other content must be scanned again.
type Content struct {
	Size       int64  // bytes
	Filesystem string // identifies the content of a file system; "" if unknown
	Algorithm  blob.Algorithm
	Params     blob.Params
}

// Work is the assembly of an image onto a device.
type Work struct {
	Index  string      `json:"index"`        // as the user named it
	Digest blob.Digest `json:"index_digest"` // of the index
	Target string      `json:"target"`       // as the user named it
	Begun  time.Time   `json:"begun"`
}

// maxDevices limits the recorded devices. The oldest records are evicted.
const maxDevices = 64

const (
	indexSuffix = ".caibx"
	workSuffix  = ".unfinished"
)

// hashName returns a short name for a text of any length.
func hashName(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:32] }

func (d Dir) indexPath(device string, c Content) string {
	return filepath.Join(string(d), hashName(device)+"-"+hashName(fmt.Sprintf("%+v", c))+indexSuffix)
}

func (d Dir) workPath(device string) string {
	return filepath.Join(string(d), hashName(device)+workSuffix)
}

// Recall returns the recorded index of the device with this content, or nil.
func (d Dir) Recall(device string, c Content) *blob.Index {
	f, err := os.ReadFile(d.indexPath(device, c))
	if err != nil {
		return nil
	}
	x, err := blob.Decode(bytes.NewReader(f))
	if err != nil || x.Algorithm() != c.Algorithm || x.Params() != c.Params || x.Size() > c.Size {
		return nil
	}
	return x
}

// Remember records the index of a device's content. It replaces earlier records of the device.
func (d Dir) Remember(device string, c Content, x *blob.Index) error {
	if err := d.forgetIndex(device); err != nil {
		return err
	}
	if err := d.writeFile(d.indexPath(device, c), x.Encode()); err != nil {
		return err
	}
	return d.evictOldest()
}

func (d Dir) writeFile(path string, data []byte) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

// forgetIndex removes the recorded index of a device.
func (d Dir) forgetIndex(device string) error {
	paths, err := filepath.Glob(filepath.Join(escapePattern(string(d)), hashName(device)+"-*"+indexSuffix))
	for _, path := range paths {
		err = errors.Join(err, ignoreAbsent(os.Remove(path)))
	}
	return err
}

// escapePattern returns a pattern that matches only path.
func escapePattern(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// evictOldest removes the oldest records beyond maxDevices.
func (d Dir) evictOldest() error {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return err
	}
	type aged struct {
		name string
		time time.Time
	}
	var found []aged
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), indexSuffix) {
			found = append(found, aged{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(found, func(a, b aged) int {
		return cmp.Or(b.time.Compare(a.time), strings.Compare(a.name, b.name))
	})
	for _, old := range found[min(maxDevices, len(found)):] {
		err = errors.Join(err, ignoreAbsent(os.Remove(filepath.Join(string(d), old.name))))
	}
	return err
}

// Begin records durably that work on a device begins, and removes its recorded index.
func (d Dir) Begin(device string, w Work) error {
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if err := d.writeFile(d.workPath(device), text); err != nil {
		return err
	}
	return d.forgetIndex(device)
}

// Unfinished returns the work on a device that began and did not finish, or nil.
func (d Dir) Unfinished(device string) *Work {
	text, err := os.ReadFile(d.workPath(device))
	if err != nil {
		return nil
	}
	var w Work
	if json.Unmarshal(text, &w) != nil {
		return nil
	}
	return &w
}

// Finish records that the work on a device has finished.
func (d Dir) Finish(device string) error { return ignoreAbsent(os.Remove(d.workPath(device))) }
