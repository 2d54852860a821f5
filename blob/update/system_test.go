package update

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/blob/trust"
)

// shellMachine returns a machine whose boot backend is a shell script.
func shellMachine(t *testing.T, script string) *Machinery {
	t.Helper()
	path := filepath.Join(t.TempDir(), "backend")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Machinery{Messages: os.Stderr, Config: &Config{
		Slots: []Slot{{Name: "a"}, {Name: "b"}}, Boot: BootConfig{Backend: path}, Hooks: map[Hook][]string{},
	}}
}

// TestProgramLimits: a backend that prints without end, fails, hangs or leaves a child behind ends with a clear error, or
// does no harm.
func TestProgramLimits(t *testing.T) {
	for name, c := range map[string]struct{ script, want string }{
		"prints much":     {"head -c 100000 /dev/zero", "printed more than 65536 bytes"},
		"fails":           {"exit 3", "get-current: exit status 3"},
		"another slot":    {"echo c", `it answers "c"`},
		"several lines":   {"echo a; echo b", "it answers"},
		"nothing":         {"", `it answers ""`},
		"a word too many": {"echo a b", `it answers "a b"`},
		"what is wanted":  {"echo a", ""},
		"hangs":           {"sleep 100", "deadline exceeded"},
		"hangs deeply":    {"(trap '' HUP; sleep 100) | cat", "deadline exceeded"},
	} {
		m := shellMachine(t, c.script) // before any program starts, which would have the script open for writing (ETXTBSY)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			begun := time.Now()
			slot, err := m.CurrentSlot(ctx)
			if c.want == "" && (err != nil || slot != "a") || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%q, %v, want %q", slot, err, c.want)
			}
			if took := time.Since(begun); took > 9*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
	if _, err := shellMachine(t, "echo maybe").IsSlotBad(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "want good or bad") {
		t.Errorf("an unknown state: %v", err)
	}
}

// TestHealth: the health is checked until it is well, or the deadline has passed. An interrupted check says nothing.
func TestHealth(t *testing.T) {
	m := shellMachine(t, "")
	dir := t.TempDir()
	m.Health = Health{Check: []string{"/bin/sh", "-c", "[ -e " + dir + "/well ]"}, deadline: 30 * time.Second}
	time.AfterFunc(300*time.Millisecond, func() { _ = os.WriteFile(filepath.Join(dir, "well"), nil, 0o600) })
	if err := m.CheckHealth(t.Context()); err != nil {
		t.Errorf("a system that gets well: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "well")); err != nil {
		t.Fatal(err)
	}
	m.Health.deadline = 100 * time.Millisecond
	if err := m.CheckHealth(t.Context()); err == nil || !strings.Contains(err.Error(), "not healthy within 100ms") {
		t.Errorf("a sick system: %v", err)
	}
	m.Health.deadline = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := m.CheckHealth(ctx); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), "not healthy") {
		t.Errorf("an interrupted check: %v", err)
	}
	m.Health = Health{}
	if err := m.CheckHealth(t.Context()); err != nil {
		t.Errorf("without a check: %v", err)
	}
}

// TestHooks: a hook gets the event, and its failure is told.
func TestHooks(t *testing.T) {
	m := shellMachine(t, "")
	file := filepath.Join(t.TempDir(), "out")
	m.Hooks[BeforeStage] = []string{"/bin/sh", "-c", `echo "$CAIRN_HOOK" >"$1"; cat >>"$1"`, "hook", file}
	if err := m.RunHook(t.Context(), BeforeStage, Content{Version: "v1", Serial: 1}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(got), "before_stage\n{") || !strings.Contains(string(got), `"version":"v1"`) {
		t.Errorf("the hook got %q, %v", got, err)
	}
	m.Hooks[Reboot] = []string{"/nowhere/reboot"}
	if err := m.RunHook(t.Context(), Reboot, nil); err == nil || !strings.Contains(err.Error(), "the hook reboot") {
		t.Errorf("a hook that does not exist: %v", err)
	}
	if err := m.RunHook(t.Context(), AfterSwitch, nil); err != nil {
		t.Errorf("no hook: %v", err)
	}
}

// TestFailures: the last failures are remembered, each release once, with its first reason.
func TestFailures(t *testing.T) {
	var r Record
	for n := range 20 {
		c := Content{Release: trust.Sum{byte(n + 1)}, Serial: int64(n + 1), Version: strconv.Itoa(n)}
		r.addFailure(c, "first", day)
		r.addFailure(c, "second", day)
	}
	if len(r.Failed) != maxFailures || r.Failed[0].Serial != 5 || r.Failed[0].Reason != "first" {
		t.Errorf("%d failures, the oldest is %+v", len(r.Failed), r.Failed[0])
	}
	if r.hasFailed(trust.Sum{1}, 1) || !r.hasFailed(trust.Sum{20}, 20) || !r.hasFailed(trust.Sum{}, 20) || r.hasFailed(trust.Sum{99}, 20) {
		t.Error("other releases have failed than remembered")
	}
	r.addFailure(Content{}, "unknown", day)
	if len(r.Failed) != maxFailures {
		t.Error("a slot with unknown content is remembered")
	}
}
