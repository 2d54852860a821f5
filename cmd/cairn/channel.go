package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob/release"
	"cairn/blob/trust"
	"cairn/store/locate"
)

func newChannel() *cobra.Command {
	c := &cobra.Command{
		Use:   "channel",
		Short: "Set and show channels: which release a group of machines should run",
		Long: `channel acts on signed pointers to releases. A channel expires, so that nobody can hold machines back with an old
one: set it again before.`,
		Args: requireCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newChannelSet(), newChannelShow())
	return c
}

type channelSetFlags struct {
	access
	signerFlags
	keyDirs keyDirs
	to      locate.Location
	release string
	name    string
	expires time.Duration
	older   bool // the release may be older than that of the replaced channel
	own     bool // the release was signed by this process
	channel trust.Channel
}

func newChannelSet() *cobra.Command {
	f := channelSetFlags{channel: trust.Channel{Rollout: trust.Rollout{Percent: 100}}}
	c := &cobra.Command{
		Use:   "set CHANNEL",
		Short: "Point a channel to a release, and sign it",
		Long: `set writes the file CHANNEL, NAME.channel, which names a release in its directory or below. It takes the product's
name and the release's serial from the release, and a serial of its own that is one more than that of the CHANNEL
that it replaces.

The release and the channel that is replaced are verified: with the trusted keys of --keys or this machine, and a
channel also with the keys that sign the new one. Otherwise a server could choose what is signed. Without trusted keys,
the release is not verified. A channel that cannot be verified is replaced with --serial only.

--percent and --seed roll a release out to a part of the machines: the same seed selects the same machines and more,
as the percentage grows. --pause keeps all machines at what they run.`,
		Example: `  cairn channel set /srv/images/stable.channel --release 42.release --key channel.key
  cairn channel set /srv/images/stable.channel --release 43.release --percent 10 --key channel.key`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c.Context()) },
	}
	f.access.addFlags(c)
	f.addPatience(c)
	f.signerFlags.addFlags(c)
	noteArg(c, "CHANNEL", &f.to)
	flags := c.Flags()
	flags.StringVar(&f.release, "release", "", "`path` of the release from CHANNEL's directory")
	flags.StringVar(&f.name, "channel", "", "`name` of the channel (default: that of the file, without .channel)")
	flags.Int64Var(&f.channel.Serial, "serial", 0, "serial of the channel, larger than any that machines have seen (default: one more than the replaced one's)")
	flags.BoolVar(&f.channel.Pause, "pause", false, "keep all machines at what they run")
	flags.BoolVar(&f.older, "allow-older", false, "go back to a release that is older than the one that the channel names now")
	f.keyDirs.addFlags(c)
	f.addPolicy(c)
	if err := c.MarkFlagRequired("release"); err != nil {
		panic(err)
	}
	return c
}

// addPolicy adds the flags for how long a channel is followed, and by which machines.
func (f *channelSetFlags) addPolicy(c *cobra.Command) {
	flags := c.Flags()
	flags.DurationVar(&f.expires, "expires", 30*24*time.Hour, "`time` after which the channel is not followed any more")
	flags.IntVar(&f.channel.Rollout.Percent, "percent", 100, "`part` of the machines that take the release")
	flags.StringVar(&f.channel.Rollout.Seed, "seed", "", "`text` that selects the machines (default: the release's serial)")
	addCheck(c, func([]string) error {
		if f.expires <= 0 {
			return fmt.Errorf("--expires %v: want more than 0", f.expires)
		}
		return nil
	})
}

func (f *channelSetFlags) run(ctx context.Context) error {
	c := f.channel
	file, listed, err := release.ListFile(ctx, f.releaseAccess(), f.to, f.release, trust.MaxSize)
	if err != nil {
		return absentHint(err, "make the release first: 'cairn release make'")
	}
	keys, err := f.keyDirs.load()
	if err != nil {
		return err
	}
	open := keys.OpenRelease
	if keys.IsEmpty() {
		open = trust.DecodeRelease
	}
	r, err := open(file)
	if err != nil {
		return fmt.Errorf("release %s: %w", f.release, err)
	}
	if keys.IsEmpty() && !f.own {
		logf("note: no key is trusted here (--keys), so the signatures of release %s %s, serial %d, are not verified", f.release, r.Version, r.Serial)
	}
	if len(trust.Signers(file)) == 0 {
		return refusedError{fmt.Sprintf("release %s is not signed", f.release), "sign it first: 'cairn release sign'"}
	}
	c.Name, c.Release = r.Name, trust.Pointer{Serial: r.Serial, File: listed}
	if c.Channel = f.name; c.Channel == "" {
		_, base, err := f.to.Split()
		if err != nil {
			return err
		}
		c.Channel = strings.TrimSuffix(base, ".channel")
	}
	if c.Rollout.Seed == "" {
		c.Rollout.Seed = fmt.Sprint(r.Serial)
	}
	c.NotAfter = time.Now().Add(f.expires).UTC().Truncate(time.Second)
	next, err := f.nextSerial(ctx, keys, &c, r)
	if err != nil {
		return err
	}
	if c.Serial == 0 {
		c.Serial = next
	}
	if c.Serial < next {
		return usageError{fmt.Errorf("--serial %d: machines that have seen the present channel need %d or more", c.Serial, next)}
	}
	text, err := c.Encode()
	if err != nil {
		return usageError{fmt.Errorf("the channel cannot be written: %w", err)}
	}
	return f.write(ctx, text, &f.access, f.to, false)
}

// nextSerial returns the serial of a channel that replaces the one at its location. The serial of a channel that nobody
// vouches for is not used: the next one would have no room, or machines would not follow it.
func (f *channelSetFlags) nextSerial(ctx context.Context, keys *trust.Keys, c *trust.Channel, r *trust.Release) (int64, error) {
	file, err := release.ReadNote(ctx, f.releaseAccess(), f.to)
	if release.IsAbsent(err) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	old, err := f.openOld(file, keys)
	if errors.Is(err, trust.ErrUntrusted) && c.Serial > 0 {
		logf("warning: the channel that is replaced is not verified: %v", err)
		return c.Serial, nil
	}
	if errors.Is(err, trust.ErrUntrusted) {
		return 0, hintError{
			fmt.Errorf("channel %s, which would be replaced: %w", f.to, err),
			"verify it with --keys DIRECTORY, or give --serial with a number larger than any that machines have seen",
		}
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("channel %s, which would be replaced: %w", f.to, err)
	case old.Name != c.Name || old.Channel != c.Channel:
		return 0, refusedError{fmt.Sprintf("%s is the channel %s of %s, not %s of %s", f.to, old.Channel, old.Name, c.Channel, c.Name), ""}
	}
	if err := f.checkOrder(ctx, r, old); err != nil {
		return 0, err
	}
	if c.Release.Serial < old.Release.Serial && !f.older {
		return 0, refusedError{
			fmt.Sprintf("release %s has the serial %d, and %s names one with %d", f.release, c.Release.Serial, f.to, old.Release.Serial),
			"--allow-older goes back",
		}
	}
	if c.Release.Serial < old.Release.Serial {
		logf("warning: %s goes back from the release with serial %d to %d: machines that run a later one do not follow", f.to, old.Release.Serial, c.Release.Serial)
	}
	return old.Serial + 1, nil
}

// openOld opens the channel that is replaced, with the trusted keys or those that sign the new one.
func (f *channelSetFlags) openOld(file []byte, keys *trust.Keys) (*trust.Channel, error) {
	own, err := f.publicKeys()
	if err != nil {
		return nil, err
	}
	old, err := own.OpenChannel(file)
	if errors.Is(err, trust.ErrUntrusted) && !keys.IsEmpty() {
		old, err = keys.OpenChannel(file)
	}
	return old, err
}

func newChannelShow() *cobra.Command {
	var f struct {
		access
		keyDirs
		at     locate.Location
		asJSON bool
	}
	c := &cobra.Command{
		Use:   "show CHANNEL",
		Short: "Verify a channel and its release, and print them",
		Long: `show verifies CHANNEL and the release that it names with the trusted keys, and prints them. Exit status 3 says that
one of them is not trusted, or that the channel has expired.`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, _ []string) error {
			return runChannelShow(c.Context(), c.OutOrStdout(), f.at, f.access, f.keyDirs, f.asJSON)
		},
	}
	f.access.addFlags(c)
	f.addPatience(c)
	f.keyDirs.addFlags(c)
	addJSON(c, &f.asJSON)
	noteArg(c, "CHANNEL", &f.at)
	return c
}

// channelResult is the output of channel show --json.
type channelResult struct {
	Channel *trust.Channel `json:"channel"`
	Release *trust.Release `json:"release"`
}

func runChannelShow(ctx context.Context, stdout io.Writer, at locate.Location, a access, dirs keyDirs, asJSON bool) error {
	keys, err := dirs.load()
	if err != nil {
		return err
	}
	if keys.IsEmpty() {
		return refusedError{fmt.Sprintf("channel %s cannot be verified: no key is trusted", at), "name the directory of the public keys with --keys"}
	}
	file, err := release.ReadNote(ctx, a.releaseAccess(), at)
	if err != nil {
		return absentHint(err, "check the channel's location")
	}
	c, err := keys.OpenChannel(file)
	if err != nil {
		return fmt.Errorf("channel %s: %w", at, err)
	}
	r, _, err := release.OpenReleaseOf(ctx, a.releaseAccess(), keys, at, c)
	if err != nil {
		return absentHint(err, "the channel names a release that is not there")
	}
	if asJSON {
		err = writeJSON(stdout, channelResult{c, r})
	} else {
		printLine(stdout, "channel %s of %s, number %d, to be followed until %s", c.Channel, c.Name, c.Serial, c.NotAfter.Format(time.RFC3339))
		if c.Pause {
			printLine(stdout, "paused: machines stay at what they run")
		} else if c.Rollout.Percent < 100 {
			printLine(stdout, "for %d %% of the machines, chosen by %q", c.Rollout.Percent, c.Rollout.Seed)
		}
		err = printRelease(stdout, r, nil)
	}
	if err == nil && c.IsExpired(time.Now()) {
		err = trust.Refuse("channel %s: it expired at %s", at, c.NotAfter.Format(time.RFC3339))
	}
	return err
}

// checkOrder refuses a release whose version and serial disagree about which of it and the release of the old channel is
// newer: people and other programs go by the version. An old release that is gone says nothing.
func (f *channelSetFlags) checkOrder(ctx context.Context, r *trust.Release, old *trust.Channel) error {
	file, _, err := release.ListFile(ctx, f.releaseAccess(), f.to, old.Release.Path, trust.MaxSize)
	if release.IsAbsent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	before, err := trust.DecodeRelease(file)
	if err != nil {
		return fmt.Errorf("release %s of the present channel: %w", old.Release.Path, err)
	}
	serials, versions := cmp.Compare(r.Serial, before.Serial), trust.CompareVersions(r.Version, before.Version)
	if serials*versions < 0 {
		return refusedError{
			fmt.Sprintf("version %s has the serial %d, and version %s of the present channel has %d: one of both is in the wrong order",
				r.Version, r.Serial, before.Version, before.Serial),
			"make the release with another --version or --serial",
		}
	}
	return nil
}
