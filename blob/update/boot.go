package update

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"cairn/internal/childenv"
)

// backends are the boot backends of this program: shell scripts with five verbs.
//
//go:embed backends
var backends embed.FS

// Backend returns the text of the boot backend of a name, or fs.ErrNotExist.
func Backend(name string) ([]byte, error) { return backends.ReadFile("backends/" + name) }

// BackendNames returns the names of the boot backends, sorted.
func BackendNames() (names []string) {
	all, err := fs.ReadDir(backends, "backends")
	if err != nil {
		panic(err) // the directory is embedded
	}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// backendCommand returns the command of the configured backend, without its verb.
func (c *Config) backendCommand() ([]string, error) {
	if strings.Contains(c.Boot.Backend, "/") {
		return []string{c.Boot.Backend}, nil
	}
	script, err := Backend(c.Boot.Backend)
	if err != nil {
		return nil, fmt.Errorf("the boot backend %q is neither a path nor one of %s", c.Boot.Backend, strings.Join(BackendNames(), ", "))
	}
	return []string{"/bin/sh", "-euc", string(script), c.Boot.Backend}, nil
}

// callBackend runs the backend with a verb, and returns its output without the line's end.
func (m *Machinery) callBackend(ctx context.Context, verb ...string) (string, error) {
	command, err := m.backendCommand()
	if err != nil {
		return "", err
	}
	env := []string{"CAIRN_SLOTS=" + strings.Join(m.slotNames(), " ")}
	for name, value := range m.Boot.Env {
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	ctx, cancel := context.WithTimeoutCause(ctx, backendTime, fmt.Errorf("it has not ended within %v", backendTime))
	defer cancel()
	out, err := m.runProgram(ctx, slices.Concat(command, verb), program{env: env})
	if err != nil {
		return "", fmt.Errorf("the boot backend %s: %s: %w", m.Boot.Backend, strings.Join(verb, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}

// CurrentSlot implements Boot.
func (m *Machinery) CurrentSlot(ctx context.Context) (string, error) {
	return m.readSlot(ctx, "get-current")
}

// PrimarySlot implements Boot.
func (m *Machinery) PrimarySlot(ctx context.Context) (string, error) {
	return m.readSlot(ctx, "get-primary")
}

func (m *Machinery) readSlot(ctx context.Context, verb string) (string, error) {
	slot, err := m.callBackend(ctx, verb)
	if err == nil && !slices.Contains(m.slotNames(), slot) {
		err = fmt.Errorf("the boot backend %s: %s: it answers %.40q, which is not one of the slots %s", m.Boot.Backend, verb, slot, strings.Join(m.slotNames(), ", "))
	}
	return slot, err
}

// SetPrimarySlot implements Boot.
func (m *Machinery) SetPrimarySlot(ctx context.Context, slot string) error {
	_, err := m.callBackend(context.WithoutCancel(ctx), "set-primary", slot) // a change is not interrupted
	return err
}

// IsSlotBad implements Boot.
func (m *Machinery) IsSlotBad(ctx context.Context, slot string) (bool, error) {
	state, err := m.callBackend(ctx, "get-state", slot)
	if err == nil && state != "good" && state != "bad" {
		err = fmt.Errorf("the boot backend %s: get-state %s: it answers %.40q, want good or bad", m.Boot.Backend, slot, state)
	}
	return state == "bad", err
}

// MarkSlot implements Boot.
func (m *Machinery) MarkSlot(ctx context.Context, slot string, good bool) error {
	state := "bad"
	if good {
		state = "good"
	}
	_, err := m.callBackend(context.WithoutCancel(ctx), "set-state", slot, state)
	return err
}

// program is how a program runs.
type program struct {
	input []byte
	env   []string
}

// Limits of a program: of its output in bytes, of the time between SIGTERM and SIGKILL, and of the time of a boot backend.
const (
	maxOutput    = 64 << 10
	programGrace = 10 * time.Second
	backendTime  = 2 * time.Minute
)

// runProgram runs a command without a shell, and returns its output. A signal of the terminal does not reach it. When ctx
// ends, it gets SIGTERM.
func (m *Machinery) runProgram(ctx context.Context, command []string, p program) ([]byte, error) {
	run := exec.CommandContext(ctx, command[0], command[1:]...)
	var out limitedBuffer
	run.Stdin, run.Stdout, run.Env = bytes.NewReader(p.input), &out, append(childenv.Environ(), p.env...)
	if m.Messages != nil {
		run.Stderr = m.Messages
	}
	run.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	run.Cancel = func() error {
		group := -run.Process.Pid
		time.AfterFunc(programGrace, func() { _ = syscall.Kill(group, syscall.SIGKILL) })
		return syscall.Kill(group, syscall.SIGTERM)
	}
	run.WaitDelay = programGrace
	err := run.Run()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case errors.Is(err, exec.ErrWaitDelay): // it left a child behind that has its output open
		err = nil
	case err == nil && out.full:
		err = fmt.Errorf("it printed more than %d bytes", maxOutput)
	}
	return out.kept.Bytes(), err
}

// limitedBuffer keeps the first maxOutput bytes.
type limitedBuffer struct {
	kept bytes.Buffer // not embedded: io.Copy would use its ReadFrom
	full bool
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	n := min(len(p), maxOutput-b.kept.Len())
	b.full = b.full || n < len(p)
	b.kept.Write(p[:n])
	return len(p), nil
}
