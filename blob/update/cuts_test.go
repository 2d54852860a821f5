package update

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"cairn/blob/trust"
)

// A model of a machine with two slots and a boot loader, to run an Agent on. Each change that the agent makes is a step.
// The power is cut before or after a step, or the agent is killed there. Then the boot loader boots what it would.

// modelRelease is a release as the model knows it.
type modelRelease struct {
	serial, minSerial int64
	boots, healthy    bool
}

func (r modelRelease) sum() trust.Sum { return trust.Sum{byte(r.serial)} }

// torn is the serial of a slot that is written in part.
const torn = -1

// modelLoader is a boot loader with the rules of the backends: a slot is good, bad, or has tries left.
type modelLoader struct {
	order []string
	good  map[string]bool
	tries map[string]int
}

func (l *modelLoader) next() string {
	for _, s := range l.order {
		if l.good[s] {
			return s
		}
		if l.tries[s] > 0 {
			l.tries[s]--
			return s
		}
	}
	return l.order[0]
}

type (
	powerCut  struct{}
	killed    struct{}
	rebooting struct{}
)

// cut is when the machine loses its power, or the agent is killed.
type cut struct {
	step  int
	after bool // the step has its effect
	kill  bool // only the agent ends
}

// model is a System, and the channel that its machine follows.
type model struct {
	t        *testing.T
	name     string // of the case, for messages
	channel  modelRelease
	releases map[int64]modelRelease
	content  map[string]int64 // serials in the slots
	loader   modelLoader
	current  string
	boots    int
	record   []byte // JSON
	cuts     []cut  // the steps count from the cut before on
	step     int
	proven   map[int64]bool // releases that were healthy when they were confirmed
}

func (m *model) fail(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("%s: %s", m.name, fmt.Sprintf(format, args...))
}

// do does a step, unless the machine is cut there.
func (m *model) do(effect func()) {
	m.step++
	if len(m.cuts) == 0 || m.cuts[0].step != m.step {
		effect()
		return
	}
	c := m.cuts[0]
	m.cuts, m.step = m.cuts[1:], 0
	if c.after {
		effect()
	}
	if c.kill {
		panic(killed{})
	}
	panic(powerCut{})
}

// boot boots the machine until a release runs.
func (m *model) boot() {
	for range 10 {
		m.boots++
		m.current = m.loader.next()
		serial := m.content[m.current]
		if serial == torn {
			m.fail("slot %s is booted, and is written in part", m.current)
		}
		if !m.proven[serial] && m.loader.good[m.current] {
			m.fail("the release %d is booted as a good one, and was never confirmed", serial)
		}
		if m.releases[serial].boots {
			return
		}
	}
	m.fail("nothing boots")
}

func (m *model) CurrentSlot(context.Context) (string, error) { return m.current, nil }
func (m *model) PrimarySlot(context.Context) (string, error) { return m.loader.order[0], nil }
func (m *model) SetPrimarySlot(_ context.Context, slot string) error {
	m.do(func() {
		m.loader.order = append([]string{slot}, slices.DeleteFunc(m.loader.order, func(s string) bool { return s == slot })...)
		if !m.loader.good[slot] {
			m.loader.tries[slot] = 3
		}
	})
	return nil
}

func (m *model) IsSlotBad(_ context.Context, slot string) (bool, error) {
	return !m.loader.good[slot] && m.loader.tries[slot] == 0, nil
}

func (m *model) MarkSlot(_ context.Context, slot string, good bool) error {
	m.do(func() { m.loader.good[slot], m.loader.tries[slot] = good, 0 })
	return nil
}

func (m *model) BootID() (string, error) { return fmt.Sprint(m.boots), nil }

func (m *model) Install(_ context.Context, i Image) error {
	if i.Target == m.current {
		m.fail("the running slot is written")
	}
	if !m.proven[m.content[m.current]] {
		m.fail("release %d is installed while an unconfirmed one runs", m.channel.serial)
	}
	m.do(func() { m.content[i.Target] = torn })
	m.do(func() { m.content[i.Target] = m.channel.serial })
	return nil
}

func (m *model) Holds(_ context.Context, i Image) error {
	if m.content[i.Target] != i.Size { // the model keeps the serial there
		return fmt.Errorf("it holds %d", m.content[i.Target])
	}
	return nil
}

func (m *model) CheckHealth(context.Context) error {
	if !m.releases[m.content[m.current]].healthy {
		return errors.New("it is not healthy")
	}
	m.proven[m.content[m.current]] = true
	return nil
}

func (m *model) RunHook(_ context.Context, name Hook, _ any) error {
	if name == Reboot {
		panic(rebooting{})
	}
	return nil
}

// agent returns an agent for the machine.
func (m *model) agent() *Agent {
	o := &Options{Now: func() time.Time { return day }}
	o.setDefaults()
	a := &Agent{
		Options: o, system: m, policy: Policy{Switch: true, Reboot: true},
		slots: []Slot{{"a", map[string]string{"root": "a"}}, {"b", map[string]string{"root": "b"}}},
		build: Build{Serial: m.content[m.current], MinSerial: m.releases[m.content[m.current]].minSerial},
	}
	if m.record != nil {
		if err := json.Unmarshal(m.record, &a.record); err != nil {
			m.fail("%v", err)
		}
	}
	a.save = func(r Record) error {
		text, err := json.Marshal(r)
		m.do(func() { m.record = text })
		proven := int64(0)
		for serial := range m.proven {
			proven = max(proven, m.releases[serial].minSerial)
		}
		if r.Seen.Floor > proven {
			m.fail("the floor is %d, and the confirmed releases have at most %d", r.Seen.Floor, proven)
		}
		return err
	}
	a.find = func(context.Context) (Found, error) {
		f := Found{
			Channel: channel(), Running: a.running(),
			Release: &trust.Release{Name: "example.com/os", Serial: m.channel.serial, MinSerial: m.channel.minSerial, Compatible: []string{"box"}, Created: day},
		}
		f.Channel.Release = trust.Pointer{Serial: m.channel.serial, File: trust.File{SHA256: m.channel.sum()}}
		d := machine()
		d.Running, d.Seen, d.HasFailed = a.running(), a.record.Seen, a.record.hasFailed
		var err error
		f.Verdict, err = d.Decide(f.Channel, f.Release)
		return f, err
	}
	image := func() []Image { return []Image{{Image: trust.Image{Role: "root", Size: m.channel.serial}}} }
	a.open = func(context.Context, Found) ([]Image, error) { return image(), nil }
	a.keep = func([]Image) error { return nil }
	a.recall = func() ([]Image, error) {
		return []Image{{Image: trust.Image{Role: "root", Size: a.record.Slots[a.record.Pending.Slot].Serial}}}, nil
	}
	return a
}

// run runs a job of the agent until it returns. A cut or a reboot boots the machine, and ended is false.
func (m *model) run(job func(*Agent) (Result, error)) (r Result, err error, ended bool) {
	defer func() {
		switch e := recover().(type) {
		case nil:
		case powerCut, rebooting:
			m.boot()
			ended = false
		case killed:
			ended = false
		default:
			panic(e)
		}
	}()
	r, err = job(m.agent())
	return r, err, true
}

// settle runs the agent as a timer does, until it has nothing more to do.
func (m *model) settle() (Result, error) {
	for range 30 {
		r, err, ended := m.run(func(a *Agent) (Result, error) { return a.Run(context.Background()) })
		if failed := new(FailedError); ended && errors.As(err, &failed) {
			m.fail("%v, and there was no reboot", err)
		}
		if ended && r.Outcome != DidReboot {
			return r, err
		}
	}
	m.fail("the agent does not come to an end")
	return Result{}, nil
}

var oldRelease = modelRelease{serial: 10, minSerial: 5, boots: true, healthy: true}

func newModel(t *testing.T, name string, next modelRelease, cuts []cut) *model {
	m := &model{
		t: t, name: name, channel: next, content: map[string]int64{"a": oldRelease.serial, "b": torn}, cuts: cuts,
		releases: map[int64]modelRelease{oldRelease.serial: oldRelease, next.serial: next}, proven: map[int64]bool{oldRelease.serial: true},
		loader: modelLoader{order: []string{"a", "b"}, good: map[string]bool{"a": true}, tries: map[string]int{}},
	}
	m.boot()
	return m
}

// count returns how many steps a scenario has.
func count(scenario func(cuts []cut) *model) int {
	const never = 1 << 30
	return scenario([]cut{{step: never}}).step
}

// allCuts calls f with all cuts at up to two of n steps.
func allCuts(n int, f func([]cut)) {
	var one []cut
	for step := 1; step <= n; step++ {
		one = append(one, cut{step, false, false}, cut{step, true, false}, cut{step, false, true}, cut{step, true, true})
	}
	f(nil)
	for _, a := range one {
		f([]cut{a})
		for _, b := range one {
			f([]cut{a, b})
		}
	}
}

// TestCuts: wherever the power is cut or the agent is killed, once or twice, the machine boots a confirmed release or one
// on trial, and ends on the new release if that is good, and else on the old one.
func TestCuts(t *testing.T) {
	ways := 0
	for name, next := range map[string]modelRelease{
		"a good release":          {11, 11, true, true},
		"one that does not boot":  {11, 11, false, false},
		"one that is not healthy": {11, 11, true, false},
	} {
		good := next.boots && next.healthy
		scenario := func(cuts []cut) *model {
			m := newModel(t, fmt.Sprintf("%s, %+v", name, cuts), next, cuts)
			r, err := m.settle()
			want, floor := int64(10), int64(0)
			if good {
				want, floor = 11, 11
			}
			var rec Record
			if err := json.Unmarshal(m.record, &rec); err != nil {
				m.fail("%v", err)
			}
			switch {
			case err != nil:
				m.fail("%v", err)
			case m.content[m.current] != want || m.loader.order[0] != m.current || !m.loader.good[m.current]:
				m.fail("release %d runs, want %d; the loader has %+v", m.content[m.current], want, m.loader)
			case rec.Pending != nil || rec.Seen.Floor != floor:
				m.fail("the record is %+v", rec)
			case good && r.Outcome != Outcome(UpToDate) || !good && r.Outcome != Outcome(HasFailed):
				m.fail("the outcome is %+v", r)
			case good == rec.hasFailed(next.sum(), next.serial):
				m.fail("failures: %+v", rec.Failed)
			}
			return m
		}
		allCuts(count(scenario)+4, func(cuts []cut) {
			scenario(slices.Clone(cuts))
			ways++
		})
	}
	if ways < 5000 {
		t.Errorf("%d ways", ways)
	}
	t.Logf("%d ways", ways)
}

// TestNextRelease: after a release that failed, the next one is installed.
func TestNextRelease(t *testing.T) {
	m := newModel(t, "next", modelRelease{11, 11, false, false}, nil)
	if r, err := m.settle(); err != nil || r.Outcome != Outcome(HasFailed) {
		t.Fatalf("%+v, %v", r, err)
	}
	m.channel = modelRelease{12, 12, true, true}
	m.releases[12] = m.channel
	if r, err := m.settle(); err != nil || r.Outcome != Outcome(UpToDate) || m.content[m.current] != 12 {
		t.Fatalf("%+v, %v", r, err)
	}
	m.channel = modelRelease{13, 10, true, true} // a release whose floor is below what was confirmed
	m.releases[13] = m.channel
	if r, err := m.settle(); err != nil || m.content[m.current] != 13 {
		t.Fatalf("%+v, %v", r, err)
	}
	// The old slot is below the floor, so there is no way back.
	_, err, _ := m.run(func(a *Agent) (Result, error) { return a.Rollback(context.Background()) })
	if err != nil { // 12 was confirmed with the floor 12, and the slot holds 12
		t.Fatalf("rolling back to 12: %v", err)
	}
}

// TestRollbackCuts: a rollback that is cut anywhere leads to the old or the new release, and its repetition to the old one.
// The release that is left is not installed again.
func TestRollbackCuts(t *testing.T) {
	next := modelRelease{11, 7, true, true}
	rollBack := func(a *Agent) (Result, error) { return a.Rollback(context.Background()) }
	scenario := func(cuts []cut) *model {
		m := newModel(t, fmt.Sprintf("rollback, %+v", cuts), next, nil)
		if _, err := m.settle(); err != nil || m.content[m.current] != 11 {
			m.fail("release %d runs: %v", m.content[m.current], err)
		}
		m.cuts, m.step = cuts, 0
		for m.content[m.current] == 11 {
			r, err, ended := m.run(rollBack)
			switch {
			case ended && err != nil:
				m.fail("%v", err)
			case ended && r.Outcome == DidRollBack, ended && r.Outcome == DidSwitch:
				m.boot()
			}
		}
		if r, err := m.settle(); err != nil || m.content[m.current] != 10 || r.Outcome != Outcome(HasFailed) {
			m.fail("release %d runs, %+v, %v", m.content[m.current], r, err)
		}
		return m
	}
	allCuts(count(scenario)+2, func(cuts []cut) { scenario(slices.Clone(cuts)) })
}

// TestRollback: what a rollback does at each moment.
func TestRollback(t *testing.T) {
	ctx := context.Background()
	must := func(m *model, job func(*Agent) (Result, error), want Outcome) {
		t.Helper()
		r, err, ended := m.run(job)
		if err != nil || !ended || r.Outcome != want {
			t.Fatalf("%+v, %v, want %s", r, err, want)
		}
	}
	stage := func(a *Agent) (Result, error) { return a.Stage(ctx) }
	doSwitch := func(a *Agent) (Result, error) { return a.Switch(ctx) }
	confirm := func(a *Agent) (Result, error) { return a.Confirm(ctx) }
	rollBack := func(a *Agent) (Result, error) { return a.Rollback(ctx) }
	good := modelRelease{11, 11, true, true}

	m := newModel(t, "nothing", good, nil)
	_, err, _ := m.run(rollBack)
	if way := new(NoWayBackError); !errors.As(err, &way) {
		t.Errorf("with one release only: %v", err)
	}
	must(m, doSwitch, NothingStaged)
	must(m, confirm, NothingToDo)
	must(m, stage, DidStage)
	must(m, stage, DidStage)
	must(m, rollBack, DidUndo)
	must(m, doSwitch, NothingStaged)
	must(m, stage, Outcome(HasFailed))

	m = newModel(t, "switched", good, nil)
	must(m, stage, DidStage)
	must(m, doSwitch, DidSwitch)
	must(m, doSwitch, DidSwitch)
	must(m, confirm, WaitsForReboot)
	must(m, stage, WaitsForReboot)
	must(m, rollBack, DidUndo)
	m.boot()
	if m.current != "a" || m.loader.order[0] != "a" {
		t.Errorf("after the undone switch, %s runs", m.current)
	}

	m = newModel(t, "on trial", good, nil)
	must(m, stage, DidStage)
	must(m, doSwitch, DidSwitch)
	m.boot()
	for _, job := range []func(*Agent) (Result, error){stage, doSwitch} {
		if _, err, _ := m.run(job); !errors.Is(err, ErrUnconfirmed) {
			t.Errorf("on trial: %v, want ErrUnconfirmed", err)
		}
	}
	must(m, rollBack, DidRollBack)
	m.boot()
	if m.current != "a" {
		t.Errorf("after the rollback of the trial, %s runs", m.current)
	}

	m = newModel(t, "confirmed", good, nil) // its floor is above the old release
	must(m, stage, DidStage)
	must(m, doSwitch, DidSwitch)
	m.boot()
	must(m, confirm, DidConfirm)
	must(m, confirm, NothingToDo)
	_, err, _ = m.run(rollBack)
	if refused := new(trust.RefusedError); !errors.As(err, &refused) {
		t.Errorf("below the floor: %v", err)
	}

	m = newModel(t, "overwritten", good, nil)
	must(m, stage, DidStage)
	m.content["b"] = torn
	if _, err, _ := m.run(doSwitch); err == nil || m.loader.order[0] != "a" {
		t.Errorf("a slot that changed after staging: %v", err)
	}
	must(m, doSwitch, NothingStaged)
	must(m, stage, DidStage)
	must(m, doSwitch, DidSwitch)
}

// TestLostRecord: a machine whose record is lost at any moment goes on, and never boots what was not confirmed as good.
func TestLostRecord(t *testing.T) {
	ctx := context.Background()
	jobs := map[string]func(*Agent) (Result, error){
		"stage":  func(a *Agent) (Result, error) { return a.Stage(ctx) },
		"switch": func(a *Agent) (Result, error) { return a.Switch(ctx) },
	}
	for n, names := range [][]string{{}, {"stage"}, {"stage", "switch"}} {
		m := newModel(t, fmt.Sprint("lost after ", names), modelRelease{11, 11, true, true}, nil)
		for _, name := range names {
			if _, err, _ := m.run(jobs[name]); err != nil {
				t.Fatal(err)
			}
		}
		if n == 2 {
			m.boot()
		}
		m.record = nil
		r, err := m.settle()
		if err != nil || m.content[m.current] != 11 {
			t.Errorf("%s: release %d runs, %+v, %v", m.name, m.content[m.current], r, err)
		}
	}
}

// TestCountedDown: a boot loader that counts each boot may have counted down the last try of the running slot. Confirm makes it
// good again. A slot that is not in the configuration any more ends the update in it.
func TestCountedDown(t *testing.T) {
	ctx := context.Background()
	m := newModel(t, "counted down", modelRelease{11, 11, true, true}, nil)
	if r, err := m.settle(); err != nil || m.content[m.current] != 11 {
		t.Fatalf("%+v, %v", r, err)
	}
	m.loader.good[m.current] = false
	r, err, _ := m.run(func(a *Agent) (Result, error) { return a.Confirm(ctx) })
	if err != nil || r.Outcome != NothingToDo || !m.loader.good[m.current] {
		t.Errorf("confirming: %+v, %v, %+v", r, err, m.loader)
	}

	m = newModel(t, "renamed", modelRelease{11, 11, true, true}, nil)
	if _, err, _ := m.run(func(a *Agent) (Result, error) { return a.Stage(ctx) }); err != nil {
		t.Fatal(err)
	}
	r, err, _ = m.run(func(a *Agent) (Result, error) {
		a.slots[1].Name = "c"
		return a.Switch(ctx)
	})
	if err != nil || r.Outcome != NothingStaged || m.loader.order[0] != "a" {
		t.Errorf("switching to a slot with another name: %+v, %v", r, err)
	}
}

// TestRollbackTwice: two rollbacks lead to and fro, since the owner wants it, and a release that failed its trial is not rolled
// back to.
func TestRollbackTwice(t *testing.T) {
	rollBack := func(a *Agent) (Result, error) { return a.Rollback(context.Background()) }
	m := newModel(t, "twice", modelRelease{11, 7, true, true}, nil)
	if _, err := m.settle(); err != nil {
		t.Fatal(err)
	}
	for n, want := range []int64{10, 11, 10} {
		if r, err, _ := m.run(rollBack); err != nil || r.Outcome != DidRollBack {
			t.Fatalf("rollback %d: %+v, %v", n, r, err)
		}
		m.boot()
		if _, err, _ := m.run(func(a *Agent) (Result, error) { return a.Confirm(context.Background()) }); err != nil {
			t.Fatal(err)
		}
		if m.content[m.current] != want {
			t.Fatalf("after rollback %d, release %d runs, want %d", n, m.content[m.current], want)
		}
	}
	broken := m.releases[11]
	broken.healthy = false
	m.releases[11] = broken
	if _, err, _ := m.run(rollBack); err != nil {
		t.Fatal(err)
	}
	m.boot()
	if _, _, ended := m.run(func(a *Agent) (Result, error) { return a.Confirm(context.Background()) }); ended {
		t.Fatal("a release that is not healthy is kept")
	}
	_, err, _ := m.run(rollBack)
	if way := new(NoWayBackError); !errors.As(err, &way) || m.content[m.current] != 10 {
		t.Errorf("back to a release that failed: %v; %d runs", err, m.content[m.current])
	}
}

// TestLostOnTrial: a machine whose record is lost while a sick release is on trial does not overwrite the slot to fall back to.
func TestLostOnTrial(t *testing.T) {
	ctx := context.Background()
	m := newModel(t, "lost on trial", modelRelease{11, 11, true, false}, nil)
	for _, job := range []func(*Agent) (Result, error){
		func(a *Agent) (Result, error) { return a.Stage(ctx) }, func(a *Agent) (Result, error) { return a.Switch(ctx) },
	} {
		if _, err, _ := m.run(job); err != nil {
			t.Fatal(err)
		}
	}
	m.boot()
	m.record, m.channel = nil, modelRelease{12, 12, true, true}
	m.releases[12] = m.channel
	if _, err, _ := m.run(func(a *Agent) (Result, error) { return a.Stage(ctx) }); err == nil || m.content["a"] != 10 || m.loader.good["b"] {
		t.Errorf("staging: %v; slot a holds %d", err, m.content["a"])
	}
}

// TestIgnored: a boot loader that does not do what it was told is not rebooted for ever, and a half-written slot that somebody
// boots is not marked as good.
func TestIgnored(t *testing.T) {
	ctx := context.Background()
	m := newModel(t, "ignored", modelRelease{11, 11, true, true}, nil)
	reboots := 0
	for range 20 {
		r, err, ended := m.run(func(a *Agent) (Result, error) { return a.Run(ctx) })
		if ended {
			if err != nil || r.Outcome != Outcome(HasFailed) {
				t.Errorf("%+v, %v", r, err)
			}
			break
		}
		reboots++
		m.current, m.loader.tries["b"] = "a", 3 // it has booted a, whatever the variables say
	}
	if reboots != maxOtherBoots {
		t.Errorf("%d reboots, want %d", reboots, maxOtherBoots)
	}

	m = newModel(t, "half", modelRelease{11, 11, true, true}, []cut{{step: 6}})
	for m.content["b"] == 10 || len(m.cuts) > 0 {
		_, _, _ = m.run(func(a *Agent) (Result, error) { return a.Stage(ctx) })
	}
	m.current = "b"
	for _, job := range []func(*Agent) (Result, error){
		func(a *Agent) (Result, error) { return a.Confirm(ctx) }, func(a *Agent) (Result, error) { return a.Stage(ctx) },
	} {
		if _, err, _ := m.run(job); err == nil || m.loader.good["b"] || m.loader.order[0] != "a" {
			t.Errorf("a half-written slot runs: %v, %+v", err, m.loader)
		}
	}
}

// TestWindow: a window may go over midnight.
func TestWindow(t *testing.T) {
	for window, open := range map[string][]int{
		"": {0, 3, 12, 23}, "02:00-04:00": {2, 3}, "22:00-02:00": {22, 23, 0, 1}, "05:00-05:00": {0, 5, 23},
	} {
		p := Policy{Window: window}
		if err := p.check(); err != nil {
			t.Fatal(err)
		}
		got := map[int]bool{}
		for hour := range 24 {
			if p.isOpen(time.Date(2026, 12, 1, hour, 0, 0, 0, time.Local)) {
				got[hour] = true
			}
		}
		for _, hour := range open {
			if !got[hour] {
				t.Errorf("%q is closed at %d", window, hour)
			}
		}
		if want := len(open); window != "" && window != "05:00-05:00" && len(got) != want {
			t.Errorf("%q is open at %v", window, slices.Sorted(maps.Keys(got)))
		}
	}
	for _, bad := range []string{"2", "02:00", "02:00-25:00", "a-b"} {
		if err := (&Policy{Window: bad}).check(); err == nil {
			t.Errorf("the window %q is accepted", bad)
		}
	}
}
