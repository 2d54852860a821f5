package update

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"cairn/blob"
	"cairn/blob/trust"
	"cairn/internal/atomicfile"
	"cairn/internal/owndir"
)

// Names in the directory of the state.
const (
	stateName = "state"
	lockName  = "lock"
)

// ErrBusy reports that another process checks or installs updates.
var ErrBusy = errors.New("another process is at work on this machine's updates")

// state is the file of what a machine remembers.
type state struct {
	Version int    `json:"version"`
	Machine string `json:"machine"`
	Product string `json:"product"`
	Channel string `json:"channel"` // the name; Seen.Channel is a serial of that channel
	Keys    string `json:"keys"`    // fingerprint of the keys that may sign it
	Record
}

// seen returns what was seen before a verified channel. Each channel has its own serials. They begin again with other keys:
// somebody who had stolen the old ones may have driven the serial to the end.
func (s *state) seen(channel, keys string) Seen {
	seen := s.Seen
	if s.Channel != channel || s.Keys != keys {
		seen.Channel = 0
	}
	return seen
}

// stateDir is the directory of the state, locked.
type stateDir struct {
	root *os.Root
	lock *os.File
}

// openState opens and locks the directory. It must belong to root or the user, and no other user may write it.
func openState(path string) (*stateDir, error) {
	root, err := owndir.Create(path)
	if err != nil {
		return nil, fmt.Errorf("opening the state of updates: %w", err)
	}
	lock, err := owndir.OpenFile(root, lockName, os.O_RDWR|os.O_CREATE)
	if err == nil {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			lock.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = ErrBusy
			}
		}
	}
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("locking the state of updates in %s: %w", path, err)
	}
	return &stateDir{root, lock}, nil
}

// readState opens the directory without a lock. A directory that is missing is an empty one.
func readState(path string) (*stateDir, error) {
	root, err := owndir.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return new(stateDir), nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the state of updates: %w", err)
	}
	return &stateDir{root: root}, nil
}

// close unlocks the directory.
func (d *stateDir) close() {
	d.lock.Close() // nil without a lock
	if d.root != nil {
		_ = d.root.Close()
	}
}

// Note is an event that does not end the job: one of the types of this file.
type Note any

// StateIgnored reports that what an earlier run has seen is not used. The floor is that of the running system then.
type StateIgnored struct{ Reason string }

// FallenBack reports that a release was tried, and that the slot before runs again.
type FallenBack struct{ Slot, Version, Reason string }

// Confirmed reports that Run has confirmed the running release, before it went on.
type Confirmed struct {
	Slot, Version string
	Serial        int64
}

// Abandoned reports that an update under way is forgotten, since a slot runs that it does not know.
type Abandoned struct{ Slot, Current string }

// read returns the state. One that is damaged, or of another machine or product, is ignored with a note.
func (d *stateDir) read(machine, product string, notes func(Note)) (state, error) {
	none := state{Version: 1, Machine: machine, Product: product}
	if d.root == nil {
		return none, nil
	}
	file, err := owndir.ReadFile(d.root, stateName, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, fmt.Errorf("reading the state of updates: %w", err)
	}
	var s state
	reason := ""
	switch err := json.Unmarshal(file, &s); {
	case err != nil:
		reason = fmt.Sprintf("it is damaged: %v", err)
	case s.Version != 1:
		reason = fmt.Sprintf("it is of version %d", s.Version)
	case s.Machine != machine:
		reason = "it is of another machine"
	case s.Product != product:
		reason = fmt.Sprintf("it is of the product %s", s.Product)
	default:
		return s, nil
	}
	notes(StateIgnored{reason})
	return none, nil
}

// write replaces the state, durably.
func (d *stateDir) write(s state) error {
	file, err := json.MarshalIndent(s, "", " ")
	if err == nil {
		err = atomicfile.WriteIn(d.root, stateName, append(file, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("recording the state of updates: %w", err)
	}
	return nil
}

// stagedDir has the indexes of the staged images, and stagedName the list of them.
const (
	stagedDir  = "staged"
	stagedName = "images"
	maxStaged  = 1 << 30 // of an index in bytes
)

// keepImages keeps the indexes of images until they are kept again.
func (d *stateDir) keepImages(images []Image) error {
	err := owndir.CreateDir(d.root, stagedDir)
	var list []trust.Image
	for n, i := range images {
		if err != nil {
			break
		}
		err = atomicfile.WriteIn(d.root, stagedIndex(n), i.Data.Encode(), 0o600)
		list = append(list, i.Image)
	}
	var text []byte
	if err == nil {
		text, err = json.Marshal(list)
	}
	if err == nil {
		err = atomicfile.WriteIn(d.root, path.Join(stagedDir, stagedName), text, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keeping the indexes of the staged release: %w", err)
	}
	return nil
}

func stagedIndex(n int) string { return path.Join(stagedDir, fmt.Sprintf("%d.caibx", n)) }

// recallImages returns the images that were kept, without targets.
func (d *stateDir) recallImages() (images []Image, err error) {
	var list []trust.Image
	file, err := owndir.ReadFile(d.root, path.Join(stagedDir, stagedName), maxFile)
	if err == nil {
		err = json.Unmarshal(file, &list)
	}
	for n, m := range list {
		if err == nil {
			file, err = owndir.ReadFile(d.root, stagedIndex(n), maxStaged)
		}
		var x *blob.Index
		if err == nil {
			x, err = blob.Decode(bytes.NewReader(file))
		}
		images = append(images, Image{Image: m, Data: x})
	}
	if err != nil {
		return nil, fmt.Errorf("reading the indexes of the staged release: %w", err)
	}
	return images, nil
}
