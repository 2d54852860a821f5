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

// Options are the settings of an Agent.
type Options struct {
	Access         release.Access
	AllowDowngrade bool
	RetryFailed    bool             // install a release again that has failed
	Notes          func(Note)       // called with the notes of this package; may be nil
	Now            func() time.Time // nil is time.Now
}

func (o *Options) setDefaults() {
	if o.Notes == nil {
		o.Notes = func(Note) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Found is what a Check has found.
type Found struct {
	Verdict
	Running   Build
	Channel   *trust.Channel
	Release   *trust.Release
	ReleaseAt locate.Location
}

// Open locks the state of the updates, and returns an Agent. Another process at work is ErrBusy. system may be nil for an
// Agent that only checks.
func (c *Config) Open(system System, o Options) (*Agent, error) {
	dir, err := openState(c.State)
	if err != nil {
		return nil, err
	}
	a, err := c.newAgent(dir, system, o)
	if err != nil {
		dir.close()
		return nil, err
	}
	a.end = dir.close
	return a, nil
}

// OpenStatus returns an Agent for its Status only. It does not wait for another process.
func (c *Config) OpenStatus(system System, o Options) (*Agent, error) {
	dir, err := readState(c.State)
	if err != nil {
		return nil, err
	}
	defer dir.close()
	a, err := c.newAgent(dir, system, o)
	if err != nil {
		return nil, err
	}
	a.end = func() {}
	return a, nil
}

// Close unlocks the state.
func (a *Agent) Close() { a.end() }

func (c *Config) newAgent(dir *stateDir, system System, o Options) (*Agent, error) {
	o.setDefaults()
	a := &Agent{Options: &o, system: system, slots: c.Slots, policy: c.Policy}
	var err error
	if a.build, err = c.readBuild(); err != nil {
		return nil, err
	}
	id, err := c.readID()
	if err != nil {
		return nil, err
	}
	s, err := dir.read(id, c.Name, o.Notes)
	if err != nil {
		return nil, err
	}
	a.record = s.Record
	a.save = func(r Record) error {
		s.Record = r
		return dir.write(s)
	}
	a.find = func(ctx context.Context) (Found, error) { return c.find(ctx, a, &s) }
	a.open = func(ctx context.Context, f Found) ([]Image, error) { return openImages(ctx, o.Access, f) }
	a.keep, a.recall = dir.keepImages, dir.recallImages
	return a, nil
}

// find implements Check.
func (c *Config) find(ctx context.Context, a *Agent, s *state) (found Found, err error) {
	keys, err := trust.LoadKeys(c.Keys...)
	if err != nil {
		return found, err
	}
	if keys.IsEmpty() {
		return found, errors.New("no key is trusted: put the publisher's public key into /etc/cairn/keys.d/NAME.pub")
	}
	file, err := release.ReadNote(ctx, a.Access, c.channel)
	if err != nil {
		return found, err
	}
	if found.Channel, err = keys.OpenChannel(file); err != nil {
		return found, fmt.Errorf("channel %s: %w", c.channel, err)
	}
	m := Machine{
		Name: c.Name, Compatible: c.Compatible, ID: s.Machine, Now: a.Now(), AllowDowngrade: a.AllowDowngrade,
		Running: a.running(), Seen: s.seen(found.Channel.Channel, keys.Fingerprint(trust.Channels)), HasFailed: a.record.hasFailed,
	}
	if a.RetryFailed {
		m.HasFailed = nil
	}
	found.Running = m.Running
	if err := m.CheckChannel(found.Channel); err != nil {
		return found, fmt.Errorf("channel %s: %w", c.channel, err)
	}
	if found.Release, found.ReleaseAt, err = release.OpenReleaseOf(ctx, a.Access, keys, c.channel, found.Channel); err != nil {
		return found, err
	}
	if seen := m.Seen.Note(found.Channel, found.Release); seen != s.Seen || s.Channel != found.Channel.Channel || s.Keys != keys.Fingerprint(trust.Channels) {
		s.Channel, s.Keys = found.Channel.Channel, keys.Fingerprint(trust.Channels)
		a.record.Seen = seen
		if err := a.save(a.record); err != nil {
			return found, err
		}
	}
	if found.Verdict, err = m.Decide(found.Channel, found.Release); err != nil {
		return found, fmt.Errorf("release %s: %w", found.ReleaseAt, err)
	}
	return found, nil
}

// openImages opens the indexes of a release.
func openImages(ctx context.Context, a release.Access, f Found) (images []Image, err error) {
	for _, m := range f.Release.Images {
		x, at, err := release.OpenListed(ctx, a, f.ReleaseAt, m.Index)
		if err != nil {
			return nil, err
		}
		if x.Size() != m.Size {
			return nil, fmt.Errorf("%s: %w: its image %s has %d bytes, and the index %d", f.ReleaseAt, trust.ErrInvalid, m.Role, m.Size, x.Size())
		}
		images = append(images, Image{Image: m, At: at, Data: x})
	}
	return images, nil
}
