package update

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"cairn/blob/trust"
	"cairn/internal/owndir"
	"cairn/store/locate"
)

// Defaults of a Config.
const (
	DefaultConfig = "/etc/cairn/update.toml"
	defaultState  = "/var/lib/cairn/update"
	defaultBuild  = "/usr/lib/cairn/build.toml"
	defaultID     = "/etc/machine-id"
	defaultBootID = "/proc/sys/kernel/random/boot_id"

	defaultDeadline = 5 * time.Minute
)

// Config is the configuration of a machine's updates.
type Config struct {
	Channel    string   `toml:"channel"`    // location of the channel
	Name       string   `toml:"name"`       // the product
	Compatible string   `toml:"compatible"` // the hardware
	Keys       []string `toml:"keys"`       // directories of trusted keys; empty for trust.KeyDirs
	State      string   `toml:"state"`      // directory of what the machine remembers; all slots see the same one
	Build      string   `toml:"build"`      // file with the Build of the running system
	MachineID  string   `toml:"machine_id"` // file whose content tells machines apart
	BootIDFile string   `toml:"boot_id"`    // file whose content tells boots apart

	Stores   []string `toml:"stores"` // as --store of assemble
	Seeds    []string `toml:"seeds"`  // as --seed of assemble, besides the running slot
	Cache    string   `toml:"cache"`  // as --cache of assemble
	Download Download `toml:"download"`

	Slots  []Slot            `toml:"slot"`
	Boot   BootConfig        `toml:"boot"`
	Policy Policy            `toml:"policy"`
	Health Health            `toml:"health"`
	Hooks  map[Hook][]string `toml:"hooks"` // programs with arguments

	channel locate.Location
}

// Download limits what staging takes.
type Download struct {
	Rate string `toml:"rate"` // bytes per second, as --rate-limit of assemble
	Most string `toml:"most"` // bytes in all for an image, as --max-download of assemble
	Idle bool   `toml:"idle"` // as --idle of assemble
}

// Slot is a place for a release.
type Slot struct {
	Name    string            `toml:"name"`
	Targets map[string]string `toml:"targets"` // by role, as TARGET of assemble
}

// slotOf returns the slot of a name, or an empty one.
func slotOf(slots []Slot, name string) Slot {
	for _, s := range slots {
		if s.Name == name {
			return s
		}
	}
	return Slot{}
}

func (c *Config) slotNames() (names []string) {
	for _, s := range c.Slots {
		names = append(names, s.Name)
	}
	return names
}

// BootConfig selects the boot backend.
type BootConfig struct {
	Backend string            `toml:"backend"` // one of BackendNames, or the path of a program with the same verbs
	Env     map[string]string `toml:"env"`     // for the backend
}

// Policy says how much Run does by itself.
type Policy struct {
	Switch bool   `toml:"switch"` // after staging
	Reboot bool   `toml:"reboot"` // after switching, by the hook reboot
	Window string `toml:"window"` // HH:MM-HH:MM, the local time in which Run switches and reboots; "" for always

	begin, end int // minutes of the day
}

// isOpen reports whether a time is in the window.
func (p *Policy) isOpen(now time.Time) bool {
	minute := now.Hour()*60 + now.Minute()
	switch {
	case p.Window == "" || p.begin == p.end:
		return true
	case p.begin < p.end:
		return p.begin <= minute && minute < p.end
	}
	return minute >= p.begin || minute < p.end // over midnight
}

func (p *Policy) check() (err error) {
	if p.Window == "" {
		return nil
	}
	begin, end, _ := strings.Cut(p.Window, "-")
	if p.begin, err = parseMinute(begin); err == nil {
		p.end, err = parseMinute(end)
	}
	if err != nil {
		return fmt.Errorf("policy: window %q: want HH:MM-HH:MM", p.Window)
	}
	return nil
}

func parseMinute(text string) (int, error) {
	t, err := time.Parse("15:04", strings.TrimSpace(text))
	return t.Hour()*60 + t.Minute(), err
}

// Health says when a running system is healthy.
type Health struct {
	Units    []string `toml:"units"`    // of systemd, which are active
	Check    []string `toml:"check"`    // a program with arguments, which succeeds
	Deadline string   `toml:"deadline"` // for both, such as 5m

	deadline time.Duration
}

// maxFile limits the size of a configuration and of a machine's other files.
const maxFile = 1 << 20

// ReadConfig reads a configuration. An unknown key is an error.
func ReadConfig(path string) (*Config, error) {
	c := &Config{
		State: defaultState, Build: defaultBuild, MachineID: defaultID, BootIDFile: defaultBootID, Policy: Policy{Switch: true},
		Hooks: map[Hook][]string{Reboot: {"systemctl", "reboot"}},
	}
	if err := readTOML(path, c); err != nil {
		return nil, fmt.Errorf("reading the configuration of updates: %w", err)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("the configuration of updates %s: %w", path, err)
	}
	if len(c.Keys) == 0 {
		c.Keys = trust.KeyDirs()
	}
	return c, nil
}

func (c *Config) check() (err error) {
	for key, value := range map[string]string{"channel": c.Channel, "name": c.Name, "compatible": c.Compatible, "state": c.State} {
		if value == "" {
			return fmt.Errorf("it lacks %s = \"…\"", key)
		}
	}
	if c.channel, err = locate.Parse(c.Channel); err == nil && c.channel.IsStream() {
		err = errors.New("- is no place of a channel")
	}
	if err != nil {
		return fmt.Errorf("channel: %w", err)
	}
	if err := c.Policy.check(); err != nil {
		return err
	}
	c.Health.deadline = defaultDeadline
	if c.Health.Deadline != "" {
		if c.Health.deadline, err = time.ParseDuration(c.Health.Deadline); err != nil || c.Health.deadline <= 0 {
			return fmt.Errorf("health: deadline %q: want a time such as 5m", c.Health.Deadline)
		}
	}
	for name := range c.Hooks {
		if !slices.Contains([]Hook{BeforeStage, BeforeSwitch, AfterSwitch, Reboot}, name) {
			return fmt.Errorf("hooks: unknown hook %s", name)
		}
	}
	return c.checkSlots()
}

// checkSlots checks the slots, if there are any. A machine without slots can only check.
func (c *Config) checkSlots() error {
	if len(c.Slots) == 0 {
		return nil
	}
	if len(c.Slots) == 1 {
		return errors.New("slot: one slot is named; an update needs a second one, which does not run")
	}
	names, targets := map[string]bool{}, map[string]string{}
	for _, s := range c.Slots {
		if !slotName.MatchString(s.Name) {
			return fmt.Errorf("slot: the name %q: want letters, digits and _", s.Name)
		}
		if names[strings.ToLower(s.Name)] {
			return fmt.Errorf("slot: two are called %s", s.Name)
		}
		names[strings.ToLower(s.Name)] = true // FAT does not tell them apart
		if len(s.Targets) == 0 {
			return fmt.Errorf("slot %s: it lacks targets = { ROLE = \"…\" }", s.Name)
		}
		for role, target := range s.Targets {
			if target == "" || target == "-" || locate.IsURL(target) {
				return fmt.Errorf("slot %s: the target %q of %s is no place on this machine", s.Name, target, role)
			}
			if other := targets[target]; other != "" {
				return fmt.Errorf("slots %s and %s have the same target %s", other, s.Name, target)
			}
			targets[target] = s.Name
		}
	}
	if c.Boot.Backend == "" {
		return errors.New("boot: it lacks backend = \"…\"")
	}
	_, err := c.backendCommand()
	return err
}

// NeedSlots returns an error unless the configuration has slots.
func (c *Config) NeedSlots() error {
	if len(c.Slots) == 0 {
		return errors.New("it has no [[slot]]: say where releases are installed, and set boot.backend")
	}
	return nil
}

var slotName = regexp.MustCompile(`^[A-Za-z0-9_]{1,32}$`)

// readTOML reads a file strictly into v. Only its owner may write the file.
func readTOML(path string, v any) error {
	info, err := os.Stat(path)
	if err == nil {
		err = owndir.Check(path, info)
	}
	if err != nil {
		return err
	}
	text, err := readSmall(path)
	if err != nil {
		return err
	}
	d := toml.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err = d.Decode(v)
	if strict, is := errors.AsType[*toml.StrictMissingError](err); is {
		row, _ := strict.Errors[0].Position()
		return fmt.Errorf("%s: line %d: unknown key %s", path, row, strings.Join(strict.Errors[0].Key(), "."))
	}
	if bad, is := errors.AsType[*toml.DecodeError](err); is {
		row, column := bad.Position()
		return fmt.Errorf("%s: line %d, column %d: %w", path, row, column, bad)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("%s is no regular file of at most 1 MiB", path)
	}
	return os.ReadFile(path)
}

// readBuild reads the Build of the running system. Without the file, nothing is known of it.
func (c *Config) readBuild() (b Build, err error) {
	err = readTOML(c.Build, &b)
	if errors.Is(err, fs.ErrNotExist) {
		return Build{}, nil
	}
	if err != nil {
		return b, fmt.Errorf("reading which release runs: %w", err)
	}
	if b.Serial < 0 || b.MinSerial < 0 || b.MinSerial > b.Serial {
		return b, fmt.Errorf("reading which release runs: %s: serial %d, min_serial %d", c.Build, b.Serial, b.MinSerial)
	}
	return b, nil
}

// readID returns what tells this machine apart. It does not reveal the ID in the file.
func (c *Config) readID() (string, error) {
	text, err := readSmall(c.MachineID)
	if err != nil {
		return "", fmt.Errorf("reading the ID of the machine: %w", err)
	}
	id := strings.TrimSpace(string(text))
	if id == "" || id == "uninitialized" {
		return "", fmt.Errorf("reading the ID of the machine: %s has none yet", c.MachineID)
	}
	return fmt.Sprintf("%x", sha256.Sum256([]byte("cairn\n"+id)))[:32], nil
}
