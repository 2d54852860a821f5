package update

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"cairn/blob/trust"
	"cairn/store/locate"
)

// Defaults of a Config.
const (
	DefaultConfig = "/etc/cairn/update.toml"
	defaultState  = "/var/lib/cairn/update"
	defaultBuild  = "/usr/lib/cairn/build.toml"
	defaultID     = "/etc/machine-id"
)

// Config is the configuration of a machine's updates.
type Config struct {
	Channel    string   `toml:"channel"`    // location of the channel
	Name       string   `toml:"name"`       // the product
	Compatible string   `toml:"compatible"` // the hardware
	Keys       []string `toml:"keys"`       // directories of trusted keys; empty for trust.KeyDirs
	State      string   `toml:"state"`      // directory of what the machine has seen; all slots see the same one
	Build      string   `toml:"build"`      // file with the Build of the running system
	MachineID  string   `toml:"machine_id"` // file whose content tells machines apart

	channel locate.Location
}

// maxFile limits the size of a configuration and of a machine's other files.
const maxFile = 1 << 20

// ReadConfig reads a configuration. An unknown key is an error.
func ReadConfig(path string) (*Config, error) {
	c := &Config{State: defaultState, Build: defaultBuild, MachineID: defaultID}
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
	return nil
}

// readTOML reads a file strictly into v.
func readTOML(path string, v any) error {
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
