package keep

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	"cairn/internal/atomicfile"
)

// Checkpoint is the file that keeps how far a job came, so that the next run goes on from there. What cannot be kept
// costs a new beginning, and no job. The zero value keeps nothing.
type Checkpoint struct{ path string }

// NewCheckpoint returns the checkpoint in a directory of the jobs that have all of same in common. Without a directory
// it keeps nothing.
func NewCheckpoint(dir string, same ...string) Checkpoint {
	if dir == "" {
		return Checkpoint{}
	}
	sum := sha256.Sum256([]byte(strings.Join(same, "\x00")))
	return Checkpoint{filepath.Join(dir, "verify-"+hex.EncodeToString(sum[:16])+".json")}
}

// Load reads into v what was saved. It reports whether there was something.
func (c Checkpoint) Load(v any) bool {
	if c.path == "" {
		return false
	}
	data, err := os.ReadFile(c.path)
	return err == nil && json.Unmarshal(data, v) == nil
}

// Save replaces what was saved by v.
func (c Checkpoint) Save(v any) error {
	if c.path == "" {
		return nil
	}
	data, err := json.Marshal(v)
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
