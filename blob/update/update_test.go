package update

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/blob/trust"
)

var day = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)

// machine returns a machine that runs release 10 at a time within the life of the channel.
func machine() *Machine {
	return &Machine{
		Name: "example.com/os", Compatible: "box", ID: "m", Now: day.Add(time.Hour),
		Running: Build{Serial: 10, MinSerial: 5, Created: day.Add(-24 * time.Hour)}, Seen: Seen{Channel: 3, Floor: 6, Newest: day},
	}
}

func channel() *trust.Channel {
	return &trust.Channel{
		Name: "example.com/os", Channel: "stable", Serial: 4, NotAfter: day.Add(48 * time.Hour),
		Release: trust.Pointer{Serial: 11}, Rollout: trust.Rollout{Percent: 100},
	}
}

func newRelease() *trust.Release {
	return &trust.Release{Name: "example.com/os", Serial: 11, Compatible: []string{"crate", "box"}, Created: day}
}

// TestDecide: each reason to install a release, not to install it, and to refuse it.
func TestDecide(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(m *Machine, c *trust.Channel, r *trust.Release)
		want    Reason
		refused string // a part of the reason
	}{
		"newer":                      {func(*Machine, *trust.Channel, *trust.Release) {}, Newer, ""},
		"the same channel again":     {func(m *Machine, c *trust.Channel, _ *trust.Release) { m.Seen.Channel = c.Serial }, Newer, ""},
		"nothing seen yet":           {func(m *Machine, _ *trust.Channel, _ *trust.Release) { m.Seen = Seen{} }, Newer, ""},
		"nothing known of what runs": {func(m *Machine, _ *trust.Channel, _ *trust.Release) { m.Running = Build{} }, Newer, ""},
		"it runs":                    {func(_ *Machine, _ *trust.Channel, r *trust.Release) { r.Serial = 10 }, UpToDate, ""},
		"it runs, paused":            {func(_ *Machine, c *trust.Channel, r *trust.Release) { r.Serial = 10; c.Pause = true }, UpToDate, ""},
		"paused":                     {func(_ *Machine, c *trust.Channel, _ *trust.Release) { c.Pause = true }, Paused, ""},
		"rollout to nobody":          {func(_ *Machine, c *trust.Channel, _ *trust.Release) { c.Rollout.Percent = 0 }, NotInTurn, ""},
		"an older channel":           {func(m *Machine, _ *trust.Channel, _ *trust.Release) { m.Seen.Channel = 5 }, "", "holds it back"},
		"expired":                    {func(m *Machine, _ *trust.Channel, _ *trust.Release) { m.Now = day.Add(49 * time.Hour) }, "", "expired"},
		"a clock at 1970":            {func(m *Machine, _ *trust.Channel, _ *trust.Release) { m.Now = time.Unix(0, 0) }, Newer, ""},
		"a clock at 1970, and an old channel": {func(m *Machine, c *trust.Channel, _ *trust.Release) {
			m.Now, c.NotAfter = time.Unix(0, 0), day.Add(-time.Hour)
		}, "", "expired"},
		"a clock at 1970, and an image newer than the channel": {func(m *Machine, _ *trust.Channel, _ *trust.Release) {
			m.Now, m.Seen.Newest, m.Running.Created = time.Unix(0, 0), time.Time{}, day.Add(72*time.Hour)
		}, "", "expired"},
		"a channel of another product": {func(_ *Machine, c *trust.Channel, _ *trust.Release) { c.Name = "example.com/x" }, "", "product"},
		"a release of another product": {func(_ *Machine, _ *trust.Channel, r *trust.Release) { r.Name = "example.com/x" }, "", "product"},
		"other hardware":               {func(m *Machine, _ *trust.Channel, _ *trust.Release) { m.Compatible = "bo" }, "", "this machine is bo"},
		"older than what runs":         {func(_ *Machine, _ *trust.Channel, r *trust.Release) { r.Serial = 9 }, "", "runs 10"},
		"below the floor":              {func(_ *Machine, _ *trust.Channel, r *trust.Release) { r.Serial = 5 }, "", "none below 6"},
		"below the floor of what runs": {func(m *Machine, _ *trust.Channel, r *trust.Release) { m.Seen.Floor = 0; r.Serial = 4 }, "", "none below 5"},
		"an older one, allowed":        {func(m *Machine, _ *trust.Channel, r *trust.Release) { m.AllowDowngrade = true; r.Serial = 6 }, Downgrade, ""},
		"below the floor, allowed":     {func(m *Machine, _ *trust.Channel, r *trust.Release) { m.AllowDowngrade = true; r.Serial = 5 }, "", "none below 6"},
		"an older one, allowed, but not here": {func(m *Machine, c *trust.Channel, r *trust.Release) {
			m.AllowDowngrade = true
			r.Serial = 6
			c.Rollout.Percent = 0
		}, NotInTurn, ""},
	} {
		m, ch, r := machine(), channel(), newRelease()
		c.change(m, ch, r)
		got := Verdict{}
		err := m.CheckChannel(ch)
		if err == nil {
			got, err = m.Decide(ch, r)
		}
		_, refused := errors.AsType[*trust.RefusedError](err)
		switch {
		case c.refused == "" && (err != nil || got.Reason != c.want || got.Install != (c.want == Newer || c.want == Downgrade)):
			t.Errorf("%s: %+v, %v, want %s", name, got, err, c.want)
		case c.refused != "" && (!refused || !strings.Contains(err.Error(), c.refused)):
			t.Errorf("%s: %+v, %v, want a RefusedError with %q", name, got, err, c.refused)
		}
	}
}

// TestRollout: about so many machines are in a rollout as it says, the same ones and more as it grows, and others with
// another seed.
func TestRollout(t *testing.T) {
	const machines = 10_000
	in := func(percent int, seed string) (selected map[int]bool) {
		selected = map[int]bool{}
		for i := range machines {
			if InRollout(trust.Rollout{Percent: percent, Seed: seed}, fmt.Sprint(i)) {
				selected[i] = true
			}
		}
		return selected
	}
	before := map[int]bool{}
	for _, percent := range []int{0, 1, 10, 50, 99, 100} {
		now := in(percent, "a")
		if n, want := len(now), machines*percent/100; n < want-200 || n > want+200 || percent%100 == 0 && n != want {
			t.Errorf("%d %%: %d of %d machines", percent, n, machines)
		}
		for i := range before {
			if !now[i] {
				t.Fatalf("%d %%: machine %d is not in the rollout any more", percent, i)
			}
		}
		before = now
	}
	both := 0
	other := in(10, "b")
	for i := range in(10, "a") {
		if other[i] {
			both++
		}
	}
	if both > 200 {
		t.Errorf("%d machines of 1000 are first with both seeds", both)
	}
}

// TestState: the state is locked, durable, and ignored if it is damaged or of another machine.
func TestState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	d, err := openState(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openState(path); !errors.Is(err, ErrBusy) {
		t.Errorf("a second process: %v, want ErrBusy", err)
	}
	var notes []Note
	read := func(machine, product, channel string) Seen {
		t.Helper()
		notes = nil
		s, err := d.read(machine, product, func(n Note) { notes = append(notes, n) })
		if err != nil {
			t.Fatal(err)
		}
		return s.seen(channel, "keys")
	}
	if got := read("m", "p", "stable"); got != (Seen{}) || notes != nil {
		t.Errorf("without a state: %+v, %v", got, notes)
	}
	want := Seen{Channel: 7, Floor: 3, Newest: day}
	if err := d.write(state{1, "m", "p", "stable", "keys", Record{Seen: want}}); err != nil {
		t.Fatal(err)
	}
	if got := read("m", "p", "stable"); got != want || notes != nil {
		t.Errorf("the state: %+v, %v", got, notes)
	}
	if got := read("m", "p", "beta"); got != (Seen{Floor: 3, Newest: day}) || notes != nil {
		t.Errorf("for another channel: %+v, %v", got, notes)
	}
	if got := read("other", "p", "stable"); got != (Seen{}) || len(notes) != 1 {
		t.Errorf("for another machine: %+v, %v", got, notes)
	}
	if got := read("m", "q", "stable"); got != (Seen{}) || len(notes) != 1 {
		t.Errorf("for another product: %+v, %v", got, notes)
	}
	d.close()
	if err := os.WriteFile(filepath.Join(path, stateName), []byte(`{"version": 1, "machine": "m"`), 0o600); err != nil {
		t.Fatal(err)
	}
	if d, err = openState(path); err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if got := read("m", "p", "stable"); got != (Seen{}) || len(notes) != 1 {
		t.Errorf("damaged: %+v, %v", got, notes)
	}
	if err := os.Chmod(path, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := openState(path); err == nil {
		t.Error("a directory that all may write is opened")
	}
}

// TestReadConfig: mistakes in a configuration are told with their place.
func TestReadConfig(t *testing.T) {
	const good = "channel = \"https://example.com/stable.channel\"\nname = \"example.com/os\"\ncompatible = \"box\"\n"
	path := filepath.Join(t.TempDir(), "update.toml")
	for text, want := range map[string]string{
		good:                          "",
		good + "keys = [\"/a\"]\n":    "",
		good + "colour = \"red\"\n":   "line 4: unknown key colour",
		good + "[boot]\nx = 1\n":      "unknown key boot.x",
		good + "name = \"twice\"\n":   "line 4",
		"channel = 7\n":               "line 1",
		"channel = \"x\n":             "line 1",
		"name = \"example.com/os\"\n": "lacks",
		strings.Replace(good, "https://example.com/stable.channel", "-", 1):          "no place of a channel",
		strings.Replace(good, "https://example.com/stable.channel", "gopher://x", 1): "channel: ",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := ReadConfig(path)
		switch {
		case want == "" && (err != nil || c.State == "" || len(c.Keys) == 0):
			t.Errorf("%q: %+v, %v", text, c, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	if _, err := ReadConfig(filepath.Dir(path)); err == nil {
		t.Error("a directory is read as a configuration")
	}
}
