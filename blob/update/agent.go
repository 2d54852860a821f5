package update

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/blob/trust"
)

// Agent brings a machine from the release that it runs to the one that its channel names. It holds the lock of the state
// until Close. Each of its jobs may be cut at any moment and called again.
type Agent struct {
	*Options
	system   System
	slots    []Slot
	policy   Policy
	record   Record
	build    Build // what the running system says of itself
	save     func(Record) error
	find     func(ctx context.Context) (Found, error)
	open     func(ctx context.Context, f Found) ([]Image, error) // without targets
	keep     func([]Image) error                                 // for recall
	recall   func() ([]Image, error)
	observed Observed
	end      func()
}

// Result is what a job has done, or why it did nothing.
type Result struct {
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason,omitempty"` // for people
	Slot    string  `json:"slot,omitempty"`   // that the outcome is about
	Version string  `json:"version,omitempty"`
	Serial  int64   `json:"serial,omitempty"`
}

// Outcome names what a job has done.
type Outcome string

// The outcomes. A Reason of a Verdict is one too.
const (
	DidStage        Outcome = "staged"           // the release is in the slot; switch is next
	DidSwitch       Outcome = "switched"         // the boot loader tries the slot; a reboot is next
	DidConfirm      Outcome = "confirmed"        // the running release stays
	DidRollBack     Outcome = "rolled-back"      // the boot loader tries the old slot; a reboot is next
	DidUndo         Outcome = "undone"           // what was staged or switched is not booted
	DidReboot       Outcome = "rebooting"        // the program for reboots was run
	NothingStaged   Outcome = "nothing-staged"   // there is nothing to switch to
	NothingToDo     Outcome = "nothing-to-do"    // no update is under way
	WaitsForWindow  Outcome = "waits-for-window" // the release is staged, and the window is closed
	WaitsForSwitch  Outcome = "waits-for-switch" // the release is staged, and the policy leaves the rest to the owner
	WaitsForReboot  Outcome = "waits-for-reboot" // the boot loader tries the slot at the next boot
	WaitsForConfirm Outcome = "waits-for-confirm"
)

// ErrUnconfirmed reports that the running release is not confirmed yet.
var ErrUnconfirmed = errors.New("the running release is not confirmed yet")

// FailedError reports that a release was booted, and is left again.
type FailedError struct {
	Slot    string
	Version string
	Err     error
}

func (e *FailedError) Error() string {
	return fmt.Sprintf("release %s in slot %s failed, and the next boot is from the slot before: %v", e.Version, e.Slot, e.Err)
}
func (e *FailedError) Unwrap() error { return e.Err }

// result returns a result about a slot.
func (a *Agent) result(o Outcome, slot, reason string) Result {
	c := a.record.Slots[slot]
	return Result{Outcome: o, Reason: reason, Slot: slot, Version: c.Version, Serial: c.Serial}
}

// settle finds out where an update under way stands. If the machine has fallen back, it records that and ends the update.
func (a *Agent) settle(ctx context.Context) (Situation, error) {
	if err := a.observe(ctx); err != nil {
		return "", err
	}
	p := a.record.Pending
	switch s := p.Assess(a.observed); {
	case p != nil && (slotOf(a.slots, p.Slot).Name == "" || slotOf(a.slots, p.From).Name == ""): // the configuration has changed
		return Idle, a.forget(p)
	case p != nil && a.isAbandoned(*p): // and the job that did so was cut
		if err := a.abandon(ctx, ""); err != nil {
			return "", err
		}
		if a.observed.Current == p.Slot {
			return GivenUp, a.observe(ctx)
		}
		return Idle, nil
	case s == AwaitsReboot && p.BootID != a.observed.BootID:
		return a.countBoot(ctx, p)
	case s == Foreign && p.Step == Staging && a.observed.Current == p.Slot:
		if err := a.returnTo(ctx, p.From); err != nil {
			return "", err
		}
		if err := a.system.MarkSlot(ctx, p.Slot, false); err != nil {
			return "", err
		}
		return "", fmt.Errorf("slot %s runs, and was written in part only; the next boot is from slot %s: reboot", p.Slot, p.From)
	case s == FellBack:
		reason := "it did not boot, or nothing confirmed it in time"
		a.Notes(FallenBack{p.Slot, a.record.Slots[p.Slot].Version, reason})
		return Idle, a.abandon(ctx, reason)
	case s == Foreign:
		return Idle, a.forget(p)
	default:
		return s, nil
	}
}

// givenUp returns the result for a running release that has failed.
func (a *Agent) givenUp() Result {
	return a.result(WaitsForReboot, a.observed.Primary, "the running release has failed, and the next boot leaves it")
}

// countBoot counts a boot of another slot than the boot loader should try.
func (a *Agent) countBoot(ctx context.Context, p *Pending) (Situation, error) {
	if p.LastBoot == a.observed.BootID {
		return AwaitsReboot, nil
	}
	p.LastBoot = a.observed.BootID
	p.Boots++
	if p.Boots < maxOtherBoots {
		return AwaitsReboot, a.save(a.record)
	}
	reason := "the boot loader does not try it: see the boot backend"
	a.Notes(FallenBack{p.Slot, a.record.Slots[p.Slot].Version, reason})
	return Idle, a.abandon(ctx, reason)
}

// forget ends an update that does not fit the slots of the machine any more.
func (a *Agent) forget(p *Pending) error {
	a.Notes(Abandoned{p.Slot, a.observed.Current})
	a.record.Pending = nil
	delete(a.record.Slots, p.Slot)
	return a.save(a.record)
}

// isAbandoned reports whether the release of an update has failed. A release that is installed once more has not.
func (a *Agent) isAbandoned(p Pending) bool {
	c, known := a.record.Slots[p.Slot]
	return known && a.record.hasFailed(c.Release, c.Serial)
}

func (a *Agent) observe(ctx context.Context) (err error) {
	o := &a.observed
	if o.BootID, err = a.system.BootID(); err != nil {
		return err
	}
	if o.Current, err = a.system.CurrentSlot(ctx); err != nil {
		return err
	}
	if o.Primary, err = a.system.PrimarySlot(ctx); err != nil {
		return err
	}
	// A loader that counts each boot may have counted down the last one of a healthy slot, so a bad slot alone says little.
	bad, err := a.system.IsSlotBad(ctx, o.Current)
	if err != nil {
		return err
	}
	c, known := a.record.Slots[o.Current]
	o.Failed = bad && known && a.record.hasFailed(c.Release, c.Serial)
	if p := a.record.Pending; p != nil && slotOf(a.slots, p.Slot).Name != "" {
		o.Bad, err = a.system.IsSlotBad(ctx, p.Slot)
	}
	return err
}

// abandon ends the update under way: its release has failed, its slot is bad, and the slot before is the first one. The
// failure is recorded first, so that its reason outlives a cut.
func (a *Agent) abandon(ctx context.Context, reason string) error {
	p := a.record.Pending
	c := a.record.Slots[p.Slot]
	a.record.addFailure(c, reason, a.Now())
	c.Confirmed = false // no rollback leads to it
	a.record.setSlot(p.Slot, c)
	if err := a.save(a.record); err != nil {
		return err
	}
	if err := a.returnTo(ctx, p.From); err != nil {
		return err
	}
	if err := a.system.MarkSlot(ctx, p.Slot, false); err != nil {
		return err
	}
	a.record.Pending = nil
	return a.save(a.record)
}

// returnTo makes a slot the first one that has run before.
func (a *Agent) returnTo(ctx context.Context, slot string) error {
	primary, err := a.system.PrimarySlot(ctx)
	if err != nil {
		return err
	}
	bad, err := a.system.IsSlotBad(ctx, slot)
	if err != nil {
		return err
	}
	if primary != slot || bad {
		if err := a.system.SetPrimarySlot(ctx, slot); err != nil {
			return err
		}
	}
	return a.system.MarkSlot(ctx, slot, true) // it needs no trial
}

// Check reads the channel and its release, verifies them, decides, and records what it has seen. It changes nothing else.
// What must not be followed or installed is a *trust.RefusedError, or trust.ErrUntrusted.
func (a *Agent) Check(ctx context.Context) (Found, error) {
	if len(a.slots) > 0 {
		if err := a.observe(ctx); err != nil {
			return Found{}, err
		}
	}
	return a.find(ctx)
}

// Stage writes the release that the channel names to a slot that does not run. The boot loader passes the slot over until
// Switch.
func (a *Agent) Stage(ctx context.Context) (Result, error) {
	s, err := a.settle(ctx)
	if err != nil {
		return Result{}, err
	}
	return a.stageFrom(ctx, s)
}

func (a *Agent) stageFrom(ctx context.Context, s Situation) (Result, error) {
	p := a.record.Pending
	switch s {
	case AwaitsConfirm:
		return Result{}, ErrUnconfirmed
	case GivenUp:
		return a.givenUp(), nil
	case AwaitsReboot:
		return a.result(WaitsForReboot, p.Slot, "the next boot tries another release"), nil
	}
	found, err := a.find(ctx)
	if err != nil {
		return Result{}, err
	}
	wanted := contentOf(found)
	if !found.Install {
		return Result{Outcome: Outcome(found.Reason), Version: wanted.Version, Serial: wanted.Serial}, nil
	}
	if s == AwaitsSwitch && !p.Rollback && a.record.Slots[p.Slot].Release == wanted.Release {
		return a.result(DidStage, p.Slot, "it was staged before"), nil
	}
	slot, images, err := a.planStage(ctx, found)
	if err != nil {
		return Result{}, err
	}
	if err := a.keepRunning(ctx); err != nil {
		return Result{}, err
	}
	if err := a.system.RunHook(ctx, BeforeStage, wanted); err != nil {
		return Result{}, err
	}
	if err := a.clear(ctx, slot.Name, wanted); err != nil {
		return Result{}, err
	}
	for _, i := range images {
		if err := a.system.Install(ctx, i); err != nil {
			return Result{}, fmt.Errorf("staging %s in slot %s: %w", i.Role, slot.Name, err)
		}
	}
	if err := a.keep(images); err != nil {
		return Result{}, err
	}
	a.record.setSlot(slot.Name, wanted)
	a.record.Pending.Step = Staged
	return a.result(DidStage, slot.Name, ""), a.save(a.record)
}

// keepRunning makes sure that the running slot stays, before the only other one is overwritten. A record that was lost while
// a release was on trial does not tell of the trial.
func (a *Agent) keepRunning(ctx context.Context) error {
	if a.record.Slots[a.observed.Current].Confirmed {
		return nil
	}
	if err := a.system.CheckHealth(ctx); err != nil {
		return fmt.Errorf("the other slot is not overwritten while this system is not healthy: %w", err)
	}
	return a.system.MarkSlot(ctx, a.observed.Current, true)
}

func contentOf(f Found) Content {
	r := f.Release
	return Content{Release: f.Channel.Release.SHA256, Version: r.Version, Serial: r.Serial, MinSerial: r.MinSerial, Created: r.Created}
}

// planStage chooses the slot, and opens the indexes of all images before the first one is written.
func (a *Agent) planStage(ctx context.Context, f Found) (slot Slot, images []Image, err error) {
	current := slotOf(a.slots, a.observed.Current)
	slot = a.chooseSlot()
	if images, err = a.open(ctx, f); err != nil {
		return slot, nil, err
	}
	wanted := map[string]bool{}
	for n := range images {
		i := &images[n]
		wanted[i.Role] = true
		i.Target, i.Seed = slot.Targets[i.Role], current.Targets[i.Role]
		if i.Target == "" {
			return slot, nil, fmt.Errorf("release %s has an image for the role %s, and slot %s has no target for it", f.Release.Version, i.Role, slot.Name)
		}
	}
	for role := range slot.Targets {
		if !wanted[role] {
			return slot, nil, fmt.Errorf("slot %s has a target for the role %s, and release %s has no image for it", slot.Name, role, f.Release.Version)
		}
	}
	slices.SortStableFunc(images, func(a, b Image) int { return a.Order - b.Order })
	return slot, images, nil
}

// chooseSlot returns the slot to write to: the one of an update that was cut, else the one with the oldest release, but not
// the one that runs. An unconfirmed release counts as older than all others.
func (a *Agent) chooseSlot() Slot {
	if p := a.record.Pending; p != nil && p.Slot != a.observed.Current {
		return slotOf(a.slots, p.Slot)
	}
	age := func(s Slot) int64 {
		if c := a.record.Slots[s.Name]; c.Confirmed {
			return c.Serial
		}
		return -1
	}
	others := slices.DeleteFunc(slices.Clone(a.slots), func(s Slot) bool { return s.Name == a.observed.Current })
	return slices.MinFunc(others, func(a, b Slot) int { return int(min(max(age(a)-age(b), -1), 1)) })
}

// clear begins an update: the boot loader passes the slot over before its first byte changes.
func (a *Agent) clear(ctx context.Context, slot string, wanted Content) error {
	a.record.Pending = &Pending{Step: Staging, Slot: slot, From: a.observed.Current}
	a.recordRunning()
	delete(a.record.Slots, slot)
	a.record.forgetFailure(wanted)
	if err := a.save(a.record); err != nil {
		return err
	}
	if err := a.returnTo(ctx, a.observed.Current); err != nil {
		return err
	}
	return a.system.MarkSlot(ctx, slot, false)
}

// Switch makes the boot loader try the staged release at the next boot. It first reads the slot again, since that may have
// been written long ago.
func (a *Agent) Switch(ctx context.Context) (Result, error) {
	s, err := a.settle(ctx)
	if err != nil {
		return Result{}, err
	}
	return a.switchFrom(ctx, s)
}

func (a *Agent) switchFrom(ctx context.Context, s Situation) (Result, error) {
	p := a.record.Pending
	switch s {
	case AwaitsReboot:
		return a.result(DidSwitch, p.Slot, "it was switched before"), nil
	case AwaitsConfirm:
		return Result{}, ErrUnconfirmed
	case GivenUp:
		return a.givenUp(), nil
	case AwaitsSwitch:
	default:
		return Result{Outcome: NothingStaged, Reason: "no release is staged"}, nil
	}
	if !p.Rollback {
		if err := a.recheck(ctx, p); err != nil {
			return Result{}, err
		}
	}
	if err := a.system.RunHook(ctx, BeforeSwitch, a.record.Slots[p.Slot]); err != nil {
		return Result{}, err
	}
	if err := a.tellLoader(ctx, p); err != nil {
		return Result{}, err
	}
	outcome := DidSwitch
	if p.Rollback {
		outcome = DidRollBack
	}
	if err := a.system.RunHook(ctx, AfterSwitch, a.record.Slots[p.Slot]); err != nil {
		return Result{}, err
	}
	return a.result(outcome, p.Slot, ""), nil
}

// recheck reads a staged slot again. Other content is staged anew.
func (a *Agent) recheck(ctx context.Context, p *Pending) error {
	slot := slotOf(a.slots, p.Slot)
	images, err := a.recall()
	if err == nil && len(images) != len(slot.Targets) {
		err = fmt.Errorf("the release has %d images, and the slot %d targets", len(images), len(slot.Targets))
	}
	for _, i := range images {
		if err != nil {
			break
		}
		i.Target = slot.Targets[i.Role]
		if err = a.system.Holds(ctx, i); err != nil {
			break
		}
	}
	if err == nil {
		return nil
	}
	if ctx.Err() == nil {
		p.Step = Staging
		if err := a.save(a.record); err != nil {
			return err
		}
	}
	return fmt.Errorf("slot %s does not hold the staged release any more: %w", p.Slot, err)
}

func (a *Agent) tellLoader(ctx context.Context, p *Pending) error {
	p.Step, p.BootID = Switching, a.observed.BootID
	if err := a.save(a.record); err != nil {
		return err
	}
	if err := a.system.MarkSlot(ctx, p.From, true); err != nil { // the way back
		return err
	}
	if p.Rollback { // a release that was good gets a trial like a new one
		if err := a.system.MarkSlot(ctx, p.Slot, false); err != nil {
			return err
		}
	}
	if err := a.system.SetPrimarySlot(ctx, p.Slot); err != nil {
		return err
	}
	primary, err := a.system.PrimarySlot(ctx)
	if err != nil {
		return err
	}
	bad, err := a.system.IsSlotBad(ctx, p.Slot)
	if err != nil {
		return err
	}
	if primary != p.Slot || bad {
		return fmt.Errorf("the boot loader was told to try slot %s, and its first slot is %s (slot %s is bad: %v)", p.Slot, primary, p.Slot, bad)
	}
	p.Step = Switched
	return a.save(a.record)
}

// Confirm makes the running release stay if it is healthy. If it is not, the boot loader goes back to the slot before, the
// program for reboots is run, and the error is a *FailedError.
func (a *Agent) Confirm(ctx context.Context) (Result, error) {
	s, err := a.settle(ctx)
	if err != nil {
		return Result{}, err
	}
	return a.confirmFrom(ctx, s)
}

func (a *Agent) confirmFrom(ctx context.Context, s Situation) (Result, error) {
	switch s {
	case AwaitsReboot:
		return a.result(WaitsForReboot, a.record.Pending.Slot, "the next boot tries another release"), nil
	case GivenUp:
		return a.givenUp(), nil
	}
	p, current := a.record.Pending, a.observed.Current
	err := a.checkRunning(ctx, s)
	if ctx.Err() != nil {
		return Result{}, ctx.Err()
	}
	if err != nil && s != AwaitsConfirm {
		return Result{}, err
	}
	if err != nil {
		failed := &FailedError{p.Slot, a.record.Slots[p.Slot].Version, err}
		if err := a.abandon(ctx, err.Error()); err != nil {
			return Result{}, errors.Join(failed, err)
		}
		return Result{}, errors.Join(failed, a.system.RunHook(ctx, Reboot, a.record.Slots[p.Slot]))
	}
	if s == AwaitsConfirm && a.observed.Primary != current { // it was chosen by hand
		if err := a.system.SetPrimarySlot(ctx, current); err != nil {
			return Result{}, err
		}
	}
	if err := a.system.MarkSlot(ctx, current, true); err != nil {
		return Result{}, err
	}
	if s != AwaitsConfirm {
		return a.result(NothingToDo, current, "no new release runs"), nil
	}
	a.record.confirm(current)
	return a.result(DidConfirm, current, ""), a.save(a.record)
}

// checkRunning returns an error if the running system is not healthy, or is not the release that was switched to.
func (a *Agent) checkRunning(ctx context.Context, s Situation) error {
	want := a.record.Slots[a.observed.Current]
	if s == AwaitsConfirm && a.build.Serial != 0 && want.Serial != a.build.Serial {
		return fmt.Errorf("the running system says that its serial is %d, and the release has %d", a.build.Serial, want.Serial)
	}
	return a.system.CheckHealth(ctx)
}

// Rollback takes back what was staged or switched, or makes the boot loader try the release before the running one. The
// release that is left is not installed again by itself.
func (a *Agent) Rollback(ctx context.Context) (Result, error) {
	const reason = "it was rolled back"
	s, err := a.settle(ctx)
	if err != nil {
		return Result{}, err
	}
	p := a.record.Pending
	switch {
	case s == Idle:
		return a.rollBackTo(ctx, reason)
	case p != nil && p.Rollback && s == AwaitsSwitch: // it was cut
		return a.switchFrom(ctx, s)
	case p != nil && p.Rollback && s == AwaitsReboot:
		return a.result(DidRollBack, p.Slot, "it was rolled back before"), nil
	case s == GivenUp:
		return a.givenUp(), nil
	case s == AwaitsConfirm:
		result := a.result(DidRollBack, p.From, "the running release was not confirmed")
		return result, a.abandon(ctx, reason)
	}
	result := a.result(DidUndo, p.Slot, "")
	return result, a.abandon(ctx, reason)
}

func (a *Agent) rollBackTo(ctx context.Context, reason string) (Result, error) {
	current := a.observed.Current
	to, best := "", Content{}
	for _, s := range a.slots {
		c := a.record.Slots[s.Name]
		if s.Name == current || !c.Confirmed {
			continue
		}
		failed, bestFailed := a.record.hasFailed(c.Release, c.Serial), a.record.hasFailed(best.Release, best.Serial)
		if to == "" || bestFailed && !failed || bestFailed == failed && c.Serial > best.Serial {
			to, best = s.Name, c
		}
	}
	if to == "" {
		return Result{}, &NoWayBackError{current}
	}
	if floor := max(a.record.Seen.Floor, a.running().MinSerial); best.Serial < floor {
		return Result{}, trust.Refuse("slot %s holds a release with the serial %d, and this machine takes none below %d", to, best.Serial, floor)
	}
	a.recordRunning()
	a.record.forgetFailure(best) // the owner wants it again
	a.record.addFailure(a.record.Slots[current], reason, a.Now())
	a.record.Pending = &Pending{Step: Staged, Slot: to, From: current, Rollback: true}
	return a.switchFrom(ctx, AwaitsSwitch)
}

// NoWayBackError reports that no slot holds a release to go back to.
type NoWayBackError struct{ Current string }

func (e *NoWayBackError) Error() string {
	return fmt.Sprintf("slot %s runs, and no other slot holds a release that was confirmed", e.Current)
}

// Run does what is next, by the policy: it confirms, stages, switches and reboots.
func (a *Agent) Run(ctx context.Context) (Result, error) {
	s, err := a.settle(ctx)
	if err != nil {
		return Result{}, err
	}
	switch p := a.record.Pending; {
	case s == AwaitsConfirm:
		result, err := a.confirmFrom(ctx, s)
		if err != nil {
			return result, err
		}
		a.Notes(Confirmed{result.Slot, result.Version, result.Serial})
		s = Idle
	case s == GivenUp: // a reboot was due, whatever the policy
		result := a.givenUp()
		return result, a.system.RunHook(ctx, Reboot, a.record.Slots[result.Slot])
	case s == AwaitsReboot:
		return a.reboot(ctx, a.result(WaitsForReboot, p.Slot, "the next boot tries it"))
	case s == AwaitsSwitch && p.Rollback: // it was cut
		return a.switchAndReboot(ctx, s)
	}
	result, err := a.stageFrom(ctx, s)
	switch {
	case err != nil || result.Outcome != DidStage:
		return result, err
	case !a.policy.Switch:
		return a.result(WaitsForSwitch, result.Slot, "the policy leaves the switch to the owner"), nil
	case !a.policy.isOpen(a.Now()):
		return a.result(WaitsForWindow, result.Slot, "the window is "+a.policy.Window), nil
	}
	return a.switchAndReboot(ctx, AwaitsSwitch)
}

func (a *Agent) switchAndReboot(ctx context.Context, s Situation) (Result, error) {
	result, err := a.switchFrom(ctx, s)
	if err != nil {
		return result, err
	}
	return a.reboot(ctx, result)
}

// reboot runs the program for reboots if the policy says so, else it returns the result.
func (a *Agent) reboot(ctx context.Context, r Result) (Result, error) {
	if !a.policy.Reboot || !a.policy.isOpen(a.Now()) {
		return r, nil
	}
	if err := a.system.RunHook(ctx, Reboot, a.record.Slots[r.Slot]); err != nil {
		return r, err
	}
	r.Outcome, r.Reason = DidReboot, ""
	return r, nil
}

// Status is where a machine's updates stand.
type Status struct {
	Situation Situation    `json:"situation"`
	Current   string       `json:"current"` // the slot that runs
	Primary   string       `json:"primary"` // the slot that the next boot tries first
	Running   Build        `json:"running"`
	Floor     int64        `json:"floor"`
	Pending   *Pending     `json:"pending,omitempty"`
	Slots     []SlotStatus `json:"slots"`
	Failed    []Failure    `json:"failed"`
	Seen      Seen         `json:"seen"`
}

// SlotStatus is the state of a slot.
type SlotStatus struct {
	Name string `json:"name"`
	Bad  bool   `json:"bad"` // the boot loader passes it over
	*Content
}

// Status returns where the updates stand. It changes nothing.
func (a *Agent) Status(ctx context.Context) (s Status, err error) {
	if err := a.observe(ctx); err != nil {
		return s, err
	}
	r := &a.record
	s = Status{
		Situation: r.Pending.Assess(a.observed), Current: a.observed.Current, Primary: a.observed.Primary, Running: a.running(),
		Floor: max(r.Seen.Floor, a.running().MinSerial), Pending: r.Pending, Failed: r.Failed, Seen: r.Seen,
	}
	for _, slot := range a.slots {
		state := SlotStatus{Name: slot.Name}
		if state.Bad, err = a.system.IsSlotBad(ctx, slot.Name); err != nil {
			return s, err
		}
		if c, known := r.Slots[slot.Name]; known {
			state.Content = &c
		}
		s.Slots = append(s.Slots, state)
	}
	return s, nil
}

// running returns which release runs: what the system says of itself, or else what the record has of its slot.
func (a *Agent) running() Build {
	c, known := a.record.Slots[a.observed.Current]
	if a.build.Serial != 0 || !known {
		return a.build
	}
	return Build{c.Version, c.Serial, c.MinSerial, c.Created}
}

// recordRunning records the running release in its slot, if another one or none is recorded there. It is the one that a
// machine falls back to.
func (a *Agent) recordRunning() {
	c, known := a.record.Slots[a.observed.Current]
	if b := a.build; !known || b.Serial != 0 && b.Serial != c.Serial {
		c = Content{Version: b.Version, Serial: b.Serial, MinSerial: b.MinSerial, Created: b.Created}
	}
	c.Confirmed = true
	a.record.setSlot(a.observed.Current, c)
}
