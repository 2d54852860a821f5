package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"cairn/blob/release"
	"cairn/blob/trust"
	"cairn/blob/update"
	"cairn/store/locate"
)

func newUpdate() *cobra.Command {
	c := &cobra.Command{
		Use:   "update",
		Short: "Find out whether this machine should install another release",
		Long: `update follows a signed channel. /etc/cairn/update.toml says which one, and what this machine is. It installs nothing
yet: 'cairn assemble --release' does.`,
		Args: requireCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newUpdateCheck())
	return c
}

type updateFlags struct {
	access
	config         string
	allowDowngrade bool
	json           bool
}

func newUpdateCheck() *cobra.Command {
	var f updateFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Verify the channel and its release, and tell whether to install it",
		Long: `check reads the channel and the release that it names, verifies both, and tells whether this machine should install
the release, and why. It remembers what it has seen, so that nobody can lead the machine back to an older channel.

Exit status 0 says that the answer is yes or no: "install" in --json tells which. Status 3 says that the channel or the
release must not be followed: it is not signed by a trusted key, has expired, is older than what was seen before, or is
for another product or hardware. Status 5 says that another process is at work.`,
		Example: `  release=$(cairn update check --json | jq -r 'select(.install) | .release') &&
      [ -z "$release" ] || cairn assemble --release "$release" --role root PARTLABEL=root-b --seed @root`,
		Args: checkArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runUpdateCheck(c.Context(), c.OutOrStdout(), f) },
	}
	f.access.addFlags(c)
	f.addPatience(c)
	c.Flags().StringVar(&f.config, "config", update.DefaultConfig, "`file` that says which channel to follow, and what this machine is")
	c.Flags().BoolVar(&f.allowDowngrade, "allow-downgrade", false, "also install a release that is older than the running one")
	addJSON(c, &f.json)
	return c
}

// updateResult is the output of update check --json.
type updateResult struct {
	update.Verdict
	Release       locate.Location `json:"release"`
	Version       string          `json:"version"`
	Serial        int64           `json:"serial"`
	Roles         []string        `json:"roles"`
	RunningSerial int64           `json:"running_serial"` // 0 if unknown
	Channel       string          `json:"channel"`
}

// reasons are the texts for the reasons of a verdict.
var reasons = map[update.Reason]string{
	update.Newer:     "it is newer than what runs",
	update.Downgrade: "it is older than what runs, and --allow-downgrade was given",
	update.UpToDate:  "it runs already",
	update.Paused:    "the channel is paused",
	update.NotInTurn: "the rollout has not reached this machine",
}

func runUpdateCheck(ctx context.Context, stdout io.Writer, f updateFlags) error {
	config, err := update.ReadConfig(f.config)
	if err != nil {
		return err
	}
	found, err := config.Check(ctx, update.Options{
		Access: f.releaseAccess(), AllowDowngrade: f.allowDowngrade, Notes: logUpdateNote,
	})
	if release.IsAbsent(err) {
		return absentHint(err, "check channel = … in "+f.config)
	}
	if err != nil {
		return err
	}
	if f.allowDowngrade {
		logf("warning: --allow-downgrade: an older release may be installed")
	}
	r := updateResult{
		Verdict: found.Verdict, Release: found.ReleaseAt, Version: found.Release.Version, Serial: found.Release.Serial,
		Roles: rolesOf(found.Release), RunningSerial: found.Running.Serial, Channel: found.Channel.Channel,
	}
	if f.json {
		return writeJSON(stdout, r)
	}
	verb := "stay: "
	if r.Install {
		verb = "install: "
	}
	printLine(stdout, "%s%s %s, serial %d, %s (%s)", verb, found.Release.Name, r.Version, r.Serial, r.Release, reasons[r.Reason])
	return nil
}

func rolesOf(r *trust.Release) (roles []string) {
	for _, m := range r.Images {
		roles = append(roles, m.Role)
	}
	return roles
}

func logUpdateNote(n update.Note) {
	if ignored, is := n.(update.StateIgnored); is {
		logf("warning: what earlier runs have seen is not used: %s", ignored.Reason)
		return
	}
	panic(fmt.Sprintf("unknown note %T", n))
}
