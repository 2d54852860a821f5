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

// Checkpoint is the file that keeps how far a Verify came, so that the next run goes on from there. What cannot be kept
// costs a new beginning, and no job. The zero value keeps nothing.
type Checkpoint struct{ path string }

// NewCheckpoint returns the checkpoint in a directory of the runs with the same options. The stores, to verify and to
// repair from, are named by texts that are the same in each run and hold no secret. Without a directory it keeps nothing.
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

// Load returns what was saved, or nil.
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

// Save replaces what was saved by m.
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

// Remove forgets what was saved.
func (c Checkpoint) Remove() {
	if c.path != "" {
		os.Remove(c.path)
	}
}
