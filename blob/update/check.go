package update

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/blob/release"
	"cairn/blob/trust"
	"cairn/store/locate"
)

// Options are the settings of a Check.
type Options struct {
	Access         release.Access
	AllowDowngrade bool
	Notes          func(Note)       // called with StateIgnored; may be nil
	Now            func() time.Time // nil is time.Now
}

// Found is what a Check has found.
type Found struct {
	Verdict
	Running   Build
	Channel   *trust.Channel
	Release   *trust.Release
	ReleaseAt locate.Location
}

// Check reads the channel and its release, verifies them, decides, and records what it has seen. It changes nothing else.
// What must not be followed or installed is a *trust.RefusedError, or trust.ErrUntrusted. Another process at work is ErrBusy.
func (c *Config) Check(ctx context.Context, o Options) (found Found, err error) {
	if o.Notes == nil {
		o.Notes = func(Note) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	keys, err := trust.LoadKeys(c.Keys...)
	if err != nil {
		return found, err
	}
	if keys.IsEmpty() {
		return found, errors.New("no key is trusted: put the publisher's public key into /etc/cairn/keys.d/NAME.pub")
	}
	m := Machine{Name: c.Name, Compatible: c.Compatible, Now: o.Now(), AllowDowngrade: o.AllowDowngrade}
	if m.Running, err = c.readBuild(); err != nil {
		return found, err
	}
	if m.ID, err = c.readID(); err != nil {
		return found, err
	}
	dir, err := openState(c.State)
	if err != nil {
		return found, err
	}
	defer dir.close()
	found.Running = m.Running
	file, err := release.ReadNote(ctx, o.Access, c.channel)
	if err != nil {
		return found, err
	}
	if found.Channel, err = keys.OpenChannel(file); err != nil {
		return found, fmt.Errorf("channel %s: %w", c.channel, err)
	}
	if m.Seen, err = dir.read(m.ID, c.Name, found.Channel.Channel, o.Notes); err != nil {
		return found, err
	}
	if err := m.CheckChannel(found.Channel); err != nil {
		return found, fmt.Errorf("channel %s: %w", c.channel, err)
	}
	if found.Release, found.ReleaseAt, err = release.OpenReleaseOf(ctx, o.Access, keys, c.channel, found.Channel); err != nil {
		return found, err
	}
	if seen := m.Seen.Note(found.Channel, found.Release); seen != m.Seen {
		if err := dir.write(m.ID, found.Channel, seen); err != nil {
			return found, err
		}
	}
	if found.Verdict, err = m.Decide(found.Channel, found.Release); err != nil {
		return found, fmt.Errorf("release %s: %w", found.ReleaseAt, err)
	}
	return found, nil
}
