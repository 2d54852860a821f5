package update

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"cairn/blob"
	"cairn/blob/trust"
	"cairn/store/locate"
)

// System is the machine that an Agent updates. All methods that change something may be repeated.
type System interface {
	Boot
	// BootID returns a text that changes with each boot.
	BootID() (string, error)
	// Install writes an image onto its target. When it returns nil, the image is verified and on the medium.
	Install(ctx context.Context, i Image) error
	// Holds returns an error unless the target of an image holds it.
	Holds(ctx context.Context, i Image) error
	// CheckHealth returns an error if the running system is not healthy.
	CheckHealth(ctx context.Context) error
	// RunHook runs the owner's program for an event, if there is one. The event is JSON on its stdin.
	RunHook(ctx context.Context, name Hook, event any) error
}

// Boot is the boot loader of a machine.
type Boot interface {
	// CurrentSlot returns the slot that runs.
	CurrentSlot(ctx context.Context) (string, error)
	// PrimarySlot returns the slot that the boot loader tries first.
	PrimarySlot(ctx context.Context) (string, error)
	// SetPrimarySlot makes a slot the first one. If it is not marked good in one of the next boots, the boot loader boots
	// another slot again.
	SetPrimarySlot(ctx context.Context, slot string) error
	// IsSlotBad reports whether the boot loader does not try a slot.
	IsSlotBad(ctx context.Context, slot string) (bool, error)
	// MarkSlot marks a slot as good, which keeps it, or as bad, which makes the boot loader pass it over.
	MarkSlot(ctx context.Context, slot string, good bool) error
}

// Image is an image of a release and its target in a slot.
type Image struct {
	trust.Image
	At     locate.Location // of the index
	Data   *blob.Index
	Target string
	Seed   string // the target of the same role in the running slot; "" for none
}

// Hook is an event that the owner's programs are told of.
type Hook string

// The hooks. A failure of the first two stops the job.
const (
	BeforeStage  Hook = "before_stage"
	BeforeSwitch Hook = "before_switch"
	AfterSwitch  Hook = "after_switch"
	Reboot       Hook = "reboot"
)

// Machinery is a System by the programs that a Config names. Put and Check are the caller's.
type Machinery struct {
	*Config
	// Put writes an image onto its target, verifies it and makes it durable.
	Put func(ctx context.Context, i Image) error
	// Check returns an error unless a target holds an image.
	Check func(ctx context.Context, i Image) error
	// Messages gets the output of the programs.
	Messages *os.File
}

var _ System = (*Machinery)(nil)

// BootID implements System.
func (m *Machinery) BootID() (string, error) {
	id, err := readSmall(m.BootIDFile)
	if err != nil {
		return "", fmt.Errorf("reading the ID of this boot: %w", err)
	}
	text := strings.TrimSpace(string(id))
	if text == "" {
		return "", fmt.Errorf("reading the ID of this boot: %s is empty", m.BootIDFile)
	}
	return text, nil
}

// Install implements System.
func (m *Machinery) Install(ctx context.Context, i Image) error { return m.Put(ctx, i) }

// Holds implements System.
func (m *Machinery) Holds(ctx context.Context, i Image) error { return m.Check(ctx, i) }

// RunHook implements System.
func (m *Machinery) RunHook(ctx context.Context, name Hook, event any) error {
	command := m.Hooks[name]
	if len(command) == 0 {
		return nil
	}
	input, err := json.Marshal(event)
	if err != nil {
		return err
	}
	if _, err := m.runProgram(ctx, command, program{input: input, env: []string{"CAIRN_HOOK=" + string(name)}}); err != nil {
		return fmt.Errorf("the hook %s: %w", name, err)
	}
	return nil
}

// healthPause is the time between two checks of the health.
const healthPause = time.Second

// CheckHealth implements System. It checks until all is well, at most until the deadline.
func (m *Machinery) CheckHealth(ctx context.Context) error {
	if len(m.Health.Units) == 0 && len(m.Health.Check) == 0 {
		return nil
	}
	within, cancel := context.WithTimeout(ctx, m.Health.deadline)
	defer cancel()
	var last error
	for {
		err := m.checkHealthOnce(within)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			return nil
		case within.Err() != nil && last != nil: // the check was interrupted
			err = last
		}
		last = err
		select {
		case <-within.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("not healthy within %v: %w", m.Health.deadline, err)
		case <-time.After(healthPause):
		}
	}
}

func (m *Machinery) checkHealthOnce(ctx context.Context) error {
	for _, unit := range m.Health.Units {
		if _, err := m.runProgram(ctx, []string{"systemctl", "is-active", "--quiet", unit}, program{}); err != nil {
			return fmt.Errorf("the unit %s is not active: %w", unit, err)
		}
	}
	if len(m.Health.Check) == 0 {
		return nil
	}
	if _, err := m.runProgram(ctx, m.Health.Check, program{}); err != nil {
		return fmt.Errorf("the check of the health: %w", err)
	}
	return nil
}
