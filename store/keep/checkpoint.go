package keep

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"cairn/blob"
	"cairn/internal/atomicfile"
	"cairn/internal/owndir"
)

// Checkpoint is the file that records the progress of a Verify, so that the next run resumes there.
// If it cannot be written or read, or if other users may change it, a Verify starts from the
// beginning. The zero value records nothing.
type Checkpoint struct{ dir, name string }

// maxMark limits the bytes of a saved mark.
const maxMark = 64 << 20

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
	return Checkpoint{dir, "verify-" + hex.EncodeToString(sum[:16]) + ".json"}
}

// Load returns the saved mark, or nil.
func (c Checkpoint) Load() *Mark {
	if c.dir == "" {
		return nil
	}
	root, err := owndir.Open(c.dir)
	if err != nil {
		return nil
	}
	defer root.Close()
	var m Mark
	data, err := owndir.ReadFile(root, c.name, maxMark)
	if err != nil || json.Unmarshal(data, &m) != nil {
		return nil
	}
	return &m
}

// Save replaces the saved mark by m.
func (c Checkpoint) Save(m Mark) error {
	if c.dir == "" {
		return nil
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	root, err := owndir.Create(c.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return atomicfile.WriteIn(root, c.name, data, 0o600)
}

// Remove deletes the saved mark.
func (c Checkpoint) Remove() {
	if c.dir == "" {
		return
	}
	if root, err := owndir.Open(c.dir); err == nil {
		defer root.Close()
		_ = root.Remove(c.name)
	}
}
