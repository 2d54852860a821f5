// Package update brings a machine from the release that it runs to the one that its channel names, and back if that one is
// not healthy. It decides, stages a release in a slot that does not run, has the boot loader try it, and confirms it. It
// keeps what the machine has seen, so that nobody can lead it back. The machine itself is a System.
package update

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"cairn/blob/trust"
)

// Machine is what a decision depends on, besides the channel and the release.
type Machine struct {
	Name       string // the product, as in releases
	Compatible string // the hardware
	ID         string // tells machines apart, for rollouts
	Running    Build
	Seen       Seen
	Now        time.Time // by the machine's clock, which may be wrong
	// AllowDowngrade lets an older release be installed, but none below the floor.
	AllowDowngrade bool
	// HasFailed reports whether a release was tried before and did not stay. May be nil.
	HasFailed func(release trust.Sum, serial int64) bool
}

// Build says which release the running system is. The image has it in a file.
type Build struct {
	Version   string    `toml:"version"`
	Serial    int64     `toml:"serial"`
	MinSerial int64     `toml:"min_serial"`
	Created   time.Time `toml:"created"`
}

// Seen is what a machine remembers of earlier runs.
type Seen struct {
	Channel int64     `json:"channel"` // the largest serial of the channel
	Floor   int64     `json:"floor"`   // no release below it is installed
	Newest  time.Time `json:"newest"`  // the latest time in a verified release
}

// Verdict says what a machine does, and why.
type Verdict struct {
	Install bool   `json:"install"`
	Reason  Reason `json:"reason"`
}

// Reason is why a machine installs a release or does not.
type Reason string

// The reasons.
const (
	Newer     Reason = "newer"       // install it
	Downgrade Reason = "downgrade"   // install it, since the owner allows that
	UpToDate  Reason = "up-to-date"  // the machine runs it
	Paused    Reason = "paused"      // the channel keeps machines at what they run
	NotInTurn Reason = "not-in-turn" // the rollout has not reached this machine
	HasFailed Reason = "has-failed"  // the machine tried it before, and it did not stay
)

// Floor returns the serial below which no release is installed.
func (m *Machine) Floor() int64 { return max(m.Seen.Floor, m.Running.MinSerial) }

// now returns a time that is not before what the machine knows to have passed, since a clock may begin in 1970.
func (m *Machine) now() time.Time {
	now := m.Now
	for _, t := range []time.Time{m.Running.Created, m.Seen.Newest} {
		if t.After(now) {
			now = t
		}
	}
	return now
}

// CheckChannel returns a *trust.RefusedError if a verified channel must not be followed.
func (m *Machine) CheckChannel(c *trust.Channel) error {
	switch {
	case c.Name != m.Name:
		return trust.Refuse("the channel is of the product %s, and this machine's is %s", c.Name, m.Name)
	case c.Serial < m.Seen.Channel:
		return trust.Refuse("the channel has the serial %d, and this machine has seen %d: somebody holds it back", c.Serial, m.Seen.Channel)
	case c.IsExpired(m.now()):
		return trust.Refuse("the channel expired at %s: its publisher must set it again, or somebody holds it back", c.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// Decide returns what the machine does about the verified release of a channel that CheckChannel accepts. A release that
// must not be installed is a *trust.RefusedError.
func (m *Machine) Decide(c *trust.Channel, r *trust.Release) (Verdict, error) {
	switch {
	case r.Name != m.Name:
		return Verdict{}, trust.Refuse("the release is of the product %s, and this machine's is %s", r.Name, m.Name)
	case !slices.Contains(r.Compatible, m.Compatible):
		return Verdict{}, trust.Refuse("the release is for %v, and this machine is %s", r.Compatible, m.Compatible)
	case r.Serial == m.Running.Serial:
		return Verdict{false, UpToDate}, nil
	case r.Serial < m.Floor():
		return Verdict{}, trust.Refuse("the release has the serial %d, and this machine takes none below %d", r.Serial, m.Floor())
	case r.Serial < m.Running.Serial && !m.AllowDowngrade:
		return Verdict{}, trust.Refuse("the release has the serial %d, and this machine runs %d", r.Serial, m.Running.Serial)
	case c.Pause:
		return Verdict{false, Paused}, nil
	case !InRollout(c.Rollout, m.ID):
		return Verdict{false, NotInTurn}, nil
	case m.HasFailed != nil && m.HasFailed(c.Release.SHA256, r.Serial):
		return Verdict{false, HasFailed}, nil
	case r.Serial < m.Running.Serial:
		return Verdict{true, Downgrade}, nil
	}
	return Verdict{true, Newer}, nil
}

// InRollout reports whether a machine is in a rollout. The same seed selects the same machines and more as the percentage
// grows.
func InRollout(r trust.Rollout, machine string) bool {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s", r.Seed, machine))
	place := float64(binary.BigEndian.Uint64(sum[:8])) / (1 << 63) / 2 // 0 to 1
	return r.Percent >= 100 || place*100 < float64(r.Percent)
}

// Note returns what a machine has seen after a verified channel and its release.
func (s Seen) Note(c *trust.Channel, r *trust.Release) Seen {
	s.Channel = max(s.Channel, c.Serial)
	if r.Created.After(s.Newest) {
		s.Newest = r.Created
	}
	return s
}
