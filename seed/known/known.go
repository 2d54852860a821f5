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
	"slices"
	"strings"
	"time"

	"cairn/blob"
	"cairn/internal/atomicfile"
	"cairn/internal/owndir"
)

// Dir is the path of the directory. It is created with the first record. Several processes may use it. Records in a
// directory that other users may write are not believed, and none is written there.
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

func indexName(device string, c Content) string {
	return hashName(device) + "-" + hashName(fmt.Sprintf("%+v", c)) + indexSuffix
}

func workName(device string) string { return hashName(device) + workSuffix }

// Limits of the records that are read, in bytes. The largest index is smaller than maxIndex.
const (
	maxIndex = 4 << 30
	maxWork  = 64 << 10
)

// readRecord returns the content of a record.
func (d Dir) readRecord(name string, limit int64) ([]byte, error) {
	root, err := owndir.Open(string(d))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return owndir.ReadFile(root, name, limit)
}

// change calls do with the open directory, which it creates if it does not exist.
func (d Dir) change(do func(root *os.Root) error) error {
	root, err := owndir.Create(string(d))
	if err != nil {
		return err
	}
	defer root.Close()
	return do(root)
}

// Recall returns the recorded index of the device with this content, or nil.
func (d Dir) Recall(device string, c Content) *blob.Index {
	f, err := d.readRecord(indexName(device, c), maxIndex)
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
	return d.change(func(root *os.Root) error {
		if err := forgetIndex(root, device); err != nil {
			return err
		}
		if err := atomicfile.WriteIn(root, indexName(device, c), x.Encode(), 0o600); err != nil {
			return err
		}
		return evictOldest(root)
	})
}

// forgetIndex removes the recorded index of a device.
func forgetIndex(root *os.Root, device string) error {
	names, err := owndir.ReadDir(root, ".")
	for _, name := range names {
		if strings.HasPrefix(name, hashName(device)+"-") && strings.HasSuffix(name, indexSuffix) {
			err = errors.Join(err, ignoreAbsent(root.Remove(name)))
		}
	}
	return err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// evictOldest removes the oldest records beyond maxDevices.
func evictOldest(root *os.Root) error {
	names, err := owndir.ReadDir(root, ".")
	if err != nil {
		return err
	}
	type aged struct {
		name string
		time time.Time
	}
	var found []aged
	for _, name := range names {
		if info, err := root.Lstat(name); err == nil && strings.HasSuffix(name, indexSuffix) {
			found = append(found, aged{name, info.ModTime()})
		}
	}
	slices.SortFunc(found, func(a, b aged) int {
		return cmp.Or(b.time.Compare(a.time), strings.Compare(a.name, b.name))
	})
	for _, old := range found[min(maxDevices, len(found)):] {
		err = errors.Join(err, ignoreAbsent(root.Remove(old.name)))
	}
	return err
}

// Begin records durably that work on a device begins, and removes its recorded index.
func (d Dir) Begin(device string, w Work) error {
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return d.change(func(root *os.Root) error {
		if err := atomicfile.WriteIn(root, workName(device), text, 0o600); err != nil {
			return err
		}
		return forgetIndex(root, device)
	})
}

// Unfinished returns the work on a device that began and did not finish, or nil.
func (d Dir) Unfinished(device string) *Work {
	text, err := d.readRecord(workName(device), maxWork)
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
func (d Dir) Finish(device string) error {
	root, err := owndir.Open(string(d))
	if err != nil {
		return ignoreAbsent(err)
	}
	defer root.Close()
	return ignoreAbsent(root.Remove(workName(device)))
}
