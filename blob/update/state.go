package update

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

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

// state is the file of what a machine has seen.
type state struct {
	Version int    `json:"version"`
	Machine string `json:"machine"`
	Product string `json:"product"`
	Channel string `json:"channel"` // the name; the largest serial is that of this channel
	Seen    Seen   `json:"seen"`
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

// close unlocks the directory.
func (d *stateDir) close() {
	d.lock.Close()
	_ = d.root.Close()
}

// Note is an event that does not end the job: StateIgnored.
type Note any

// StateIgnored reports that what an earlier run has seen is not used. The floor is that of the running system then.
type StateIgnored struct{ Reason string }

// read returns what the machine has seen. A state that is damaged, or of another machine, is ignored with a note.
func (d *stateDir) read(machine, product, channel string, notes func(Note)) (Seen, error) {
	file, err := owndir.ReadFile(d.root, stateName, maxFile)
	if errors.Is(err, fs.ErrNotExist) {
		return Seen{}, nil
	}
	if err != nil {
		return Seen{}, fmt.Errorf("reading the state of updates: %w", err)
	}
	var s state
	switch err := json.Unmarshal(file, &s); {
	case err != nil:
		notes(StateIgnored{fmt.Sprintf("it is damaged: %v", err)})
		return Seen{}, nil
	case s.Version != 1:
		notes(StateIgnored{fmt.Sprintf("it is of version %d", s.Version)})
		return Seen{}, nil
	case s.Machine != machine:
		notes(StateIgnored{"it is of another machine"})
		return Seen{}, nil
	case s.Product != product:
		notes(StateIgnored{fmt.Sprintf("it is of the product %s", s.Product)})
		return Seen{}, nil
	case s.Channel != channel: // each channel has its own serials
		s.Seen.Channel = 0
	}
	return s.Seen, nil
}

// write replaces the state, durably.
func (d *stateDir) write(machine string, c *trust.Channel, seen Seen) error {
	file, err := json.MarshalIndent(state{1, machine, c.Name, c.Channel, seen}, "", " ")
	if err == nil {
		err = atomicfile.WriteIn(d.root, stateName, append(file, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("recording what was seen: %w", err)
	}
	return nil
}
