package update

import (
	"slices"
	"time"

	"cairn/blob/trust"
)

// Record is what a machine remembers of its updates.
type Record struct {
	Seen    Seen               `json:"seen"`
	Slots   map[string]Content `json:"slots,omitempty"`   // by name; a slot that is missing has unknown content
	Pending *Pending           `json:"pending,omitempty"` // nil if no update is under way
	Failed  []Failure          `json:"failed,omitempty"`  // oldest first
}

// Content is the release in a slot.
type Content struct {
	Release   trust.Sum `json:"release"` // of the release's file
	Version   string    `json:"version"`
	Serial    int64     `json:"serial"`
	MinSerial int64     `json:"min_serial,omitempty"`
	Created   time.Time `json:"created"`
	Confirmed bool      `json:"confirmed"` // it has run, and was healthy
}

// Pending is an update that has begun and is not confirmed.
type Pending struct {
	Step     Step   `json:"step"`
	Slot     string `json:"slot"`              // that the update is written to
	From     string `json:"from"`              // that ran when the update began
	BootID   string `json:"boot_id,omitempty"` // of the boot in which the step Switching began
	Rollback bool   `json:"rollback,omitempty"`
	LastBoot string `json:"last_boot,omitempty"` // the last boot that was not of the slot after the switch
	Boots    int    `json:"boots,omitempty"`     // so many such boots were seen
}

// maxOtherBoots is the number of boots after which a boot loader that should try a slot, and boots another one, is taken for
// one that never will.
const maxOtherBoots = 5

// Step is how far an update has come.
type Step string

// The steps, in order.
const (
	Staging   Step = "staging"   // the slot is being written, and is marked bad
	Staged    Step = "staged"    // the slot holds the release, and is marked bad
	Switching Step = "switching" // the boot loader is being told
	Switched  Step = "switched"  // the boot loader tries the slot at the next boot
)

// Failure is a release that was tried and did not stay.
type Failure struct {
	Release trust.Sum `json:"release"`
	Version string    `json:"version"`
	Serial  int64     `json:"serial"`
	Reason  string    `json:"reason"`
	Time    time.Time `json:"time"` // by the machine's clock
}

// maxFailures limits the remembered failures.
const maxFailures = 16

// addFailure remembers that a release failed. The first reason stays, since it is nearest to the cause.
func (r *Record) addFailure(c Content, reason string, now time.Time) {
	if c == (Content{}) || r.hasFailed(c.Release, c.Serial) {
		return
	}
	r.Failed = append(r.Failed, Failure{c.Release, c.Version, c.Serial, reason, now.UTC()})
	r.Failed = r.Failed[max(len(r.Failed)-maxFailures, 0):]
}

func (r *Record) hasFailed(release trust.Sum, serial int64) bool {
	return slices.ContainsFunc(r.Failed, func(f Failure) bool { return f.is(release, serial) })
}

// is reports whether the failure is about a release. One that came with the machine is known by its serial only.
func (f Failure) is(release trust.Sum, serial int64) bool {
	if f.Release == (trust.Sum{}) || release == (trust.Sum{}) {
		return f.Serial == serial
	}
	return f.Release == release
}

// confirm records that the release in a slot runs and is healthy. Only here does the floor rise.
func (r *Record) confirm(slot string) {
	c := r.Slots[slot]
	c.Confirmed = true
	r.setSlot(slot, c)
	r.Seen.Floor = max(r.Seen.Floor, c.MinSerial)
	r.forgetFailure(c)
	r.Pending = nil
}

func (r *Record) forgetFailure(c Content) {
	r.Failed = slices.DeleteFunc(r.Failed, func(f Failure) bool { return f.is(c.Release, c.Serial) })
}

func (r *Record) setSlot(slot string, c Content) {
	if r.Slots == nil {
		r.Slots = map[string]Content{}
	}
	r.Slots[slot] = c
}

// Observed is what the machine tells about its slots.
type Observed struct {
	BootID  string // changes with each boot
	Current string // the slot that runs
	Primary string // the slot that the boot loader tries first
	Failed  bool   // the running release has failed, and the boot loader passes its slot over from now on
	Bad     bool   // the boot loader passes the slot of the pending update over
}

// Situation is what an update under way waits for.
type Situation string

// The situations.
const (
	Idle          Situation = "idle"            // no update is under way
	AwaitsStage   Situation = "awaits-stage"    // the slot is written in part
	AwaitsSwitch  Situation = "awaits-switch"   // the slot is complete
	AwaitsReboot  Situation = "awaits-reboot"   // the next boot tries the slot
	AwaitsConfirm Situation = "awaits-confirm"  // the slot runs, and nothing says yet that it is healthy
	FellBack      Situation = "fell-back"       // the slot was tried, and the old one runs again
	GivenUp       Situation = "given-up"        // the running release has failed, and the next boot leaves it
	Foreign       Situation = "unknown-current" // another slot runs than the update knows
)

// Assess returns the situation. A cut of the power between any two steps leads to one of them.
func (p *Pending) Assess(o Observed) Situation {
	rebooted := o.BootID != "" && p != nil && p.BootID != o.BootID
	switch {
	case p == nil && o.Failed && o.Primary != o.Current:
		return GivenUp
	case p == nil:
		return Idle
	case o.Current == p.Slot && p.Step == Staging:
		return Foreign // somebody booted a half-written slot, or wrote it by hand
	case o.Current == p.Slot:
		return AwaitsConfirm
	case o.Current != p.From:
		return Foreign
	case p.Step == Staging:
		return AwaitsStage
	case p.Step == Staged, p.Step == Switching:
		return AwaitsSwitch
	case !rebooted, o.Primary == p.Slot && !o.Bad:
		return AwaitsReboot
	}
	return FellBack
}
