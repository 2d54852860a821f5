// Package known remembers, in a directory, what was learnt of devices: the index of what a device holds, so
// that it need not be scanned again, and work on it that was begun and not finished. All of it is a hint:
// chunks are hashed anyway when they are used. It knows nothing of how devices are found or read.
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

// Dir is the directory. It need not exist before something is remembered. Several processes may use it.
type Dir string

// Content says what a device held when it was looked at. A device with other content is looked at anew.
type Content struct {
	Size       int64  // bytes
	Filesystem string // what tells one file system's content from another's, or ""
	Algorithm  blob.Algorithm
	Params     blob.Params
}

// Work is putting an image onto a device.
type Work struct {
	Index  string      `json:"index"`        // as the user named it
	Digest blob.Digest `json:"index_digest"` // of the index
	Target string      `json:"target"`       // as the user named it
	Begun  time.Time   `json:"begun"`
}

// most is how many devices are remembered; those of the longest ago are forgotten.
const most = 64

const (
	indexSuffix = ".caibx"
	workSuffix  = ".unfinished"
)

// key is a short name for a text of any length.
func key(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text)))[:32] }

func (d Dir) indexPath(device string, c Content) string {
	return filepath.Join(string(d), key(device)+"-"+key(fmt.Sprintf("%+v", c))+indexSuffix)
}

func (d Dir) workPath(device string) string { return filepath.Join(string(d), key(device)+workSuffix) }

// Recall is the index of what the device held when it had this content; nil if none is remembered.
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

// Remember keeps the index of what a device holds, in place of what was remembered of it.
func (d Dir) Remember(device string, c Content, x *blob.Index) error {
	if err := d.forget(device); err != nil {
		return err
	}
	if err := d.write(d.indexPath(device, c), x.Encode()); err != nil {
		return err
	}
	return d.prune()
}

func (d Dir) write(path string, data []byte) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(path, data, 0o600)
}

// forget removes the index of what the device held.
func (d Dir) forget(device string) error {
	paths, err := filepath.Glob(filepath.Join(escape(string(d)), key(device)+"-*"+indexSuffix))
	for _, path := range paths {
		err = errors.Join(err, absentIsFine(os.Remove(path)))
	}
	return err
}

// escape makes a path mean itself in a pattern.
func escape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func absentIsFine(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// prune forgets the devices of the longest ago.
func (d Dir) prune() error {
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
	for _, old := range found[min(most, len(found)):] {
		err = errors.Join(err, absentIsFine(os.Remove(filepath.Join(string(d), old.name))))
	}
	return err
}

// Begin notes that work on a device begins, durably, and forgets what it held.
func (d Dir) Begin(device string, w Work) error {
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	if err := d.write(d.workPath(device), text); err != nil {
		return err
	}
	return d.forget(device)
}

// Unfinished is the work on a device that was begun and not finished; nil if there is none.
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

// Finish notes that the work on a device is finished.
func (d Dir) Finish(device string) error { return absentIsFine(os.Remove(d.workPath(device))) }
