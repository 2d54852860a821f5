package keep

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"cairn/blob"
	"cairn/internal/atomicfile"
)

// Checkpoint is the file that records the progress of a Verify, so that the next run resumes there.
// If it cannot be written or read, a Verify starts from the beginning. The zero value records
// nothing.
type Checkpoint struct{ path string }

// NewCheckpoint returns the checkpoint in dir of the runs with the same options. The stores are the
// store to verify and those to repair from. Each is named by a text that is the same in every run
// and holds no secret. If dir is empty, the checkpoint records nothing.
func NewCheckpoint(dir string, o VerifyOptions, stores ...string) Checkpoint {
	if dir == "" {
		return Checkpoint{}
	}
	var algorithm blob.Algorithm
	if o.Algorithm != nil {
		algorithm = *o.Algorithm
	}
	same := append([]string{fmt.Sprint(o.Algorithm != nil, algorithm, o.Remove)}, stores...)
	for _, x := range o.Indexes {
		same = append(same, x.Digest().String())
	}
	sum := sha256.Sum256([]byte(strings.Join(same, "\x00")))
	return Checkpoint{filepath.Join(dir, "verify-"+hex.EncodeToString(sum[:16])+".json")}
}

// Load returns the saved mark, or nil.
func (c Checkpoint) Load() *Mark {
	if c.path == "" {
		return nil
	}
	var m Mark
	data, err := os.ReadFile(c.path)
	if err != nil || json.Unmarshal(data, &m) != nil {
		return nil
	}
	return &m
}

// Save replaces the saved mark by m.
func (c Checkpoint) Save(m Mark) error {
	if c.path == "" {
		return nil
	}
	data, err := json.Marshal(m)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(c.path), 0o755)
	}
	if err == nil {
		err = atomicfile.Write(c.path, data, 0o600)
	}
	return err
}

// Remove deletes the saved mark.
func (c Checkpoint) Remove() {
	if c.path != "" {
		os.Remove(c.path)
	}
}
