package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob/assemble"
	"cairn/blob/deploy"
	"cairn/blob/release"
	"cairn/blob/trust"
	"cairn/blob/update"
	"cairn/blob/verify"
	"cairn/internal/daemon"
	"cairn/internal/plaintext"
	"cairn/seed/learn"
	"cairn/store/locate"
)

// updateFlags are the flags of the commands about updates.
type updateFlags struct {
	common
	access
	config         string
	allowDowngrade bool
	retryFailed    bool
	manager        *daemon.Notifier
}

func newUpdate() *cobra.Command {
	c := newUpdateJob(updateJob{
		use: "update", short: "Bring this machine to the release that its channel names", fetches: true,
		long: `update does what is next, by the policy in /etc/cairn/update.toml: it confirms a release that was booted, stages the
release that the channel names in the slot that does not run, makes the boot loader try it, and reboots. Each step is a
command of its own. A timer may call 'cairn update' as often as it likes: each step may be cut at any moment and is
repeated.

Exit status 0 says that the step was done, or that there is nothing to do: "outcome" in --json tells which. Status 1
also says that a release was booted and has failed: the machine goes back. Status 3 says that the channel or the release
must not be followed, as in 'cairn update check', 5 that another process is at work, or that the running release is not
confirmed.`,
		example: `  cairn update
  cairn update stage && cairn update switch && systemctl reboot`,
		do: (*update.Agent).Run,
	})
	c.AddCommand(
		newUpdateCheck(),
		newUpdateJob(updateJob{
			use: "stage", short: "Write the release that the channel names to the slot that does not run", fetches: true,
			long: `stage verifies the channel and the release that it names, and writes the images of the release to the slot that does
not run. It takes from the running slot what is there already. Before the first byte, the boot loader is told to pass
the slot over. stage ends when all images are on the medium and verified. The boot loader is not told to boot them.`,
			example: `  cairn update stage --progress json`,
			do:      (*update.Agent).Stage,
		}),
		newUpdateJob(updateJob{
			use: "switch", short: "Make the boot loader try the staged release at the next boot",
			long: `switch reads the staged slot again, and makes the boot loader try it at the next boots. If nothing confirms the release,
the boot loader boots the old slot again. switch does not reboot.`,
			example: `  cairn update switch && systemctl reboot`,
			do:      (*update.Agent).Switch,
		}),
		newUpdateJob(updateJob{
			use: "confirm", short: "Keep the release that runs, if it is healthy",
			long: `confirm waits until the units and the check in [health] say that the system is healthy, and makes the boot loader keep
the slot. From then on, no release below the min_serial of this one is installed. If the system is not healthy by the
deadline, the boot loader goes back to the slot before, the hook reboot is run, and the exit status is 1. Run confirm at
each boot: without a new release it changes nothing.`,
			example: `  cairn update confirm`,
			do:      (*update.Agent).Confirm,
		}),
		newUpdateJob(updateJob{
			use: "rollback", short: "Take back a staged release, or go back to the release before",
			long: `rollback drops a release that is staged or switched to, or makes the boot loader try the release before the running one.
It does not reboot. The release that is left is not installed again by itself; a newer one is. --retry-failed lifts
that.`,
			example: `  cairn update rollback && systemctl reboot`,
			do:      (*update.Agent).Rollback,
		}),
		newUpdateStatus(),
		newUpdateBackend(),
	)
	return c
}

// updateJob describes a command that runs a job of an agent.
type updateJob struct {
	use, short, long, example string
	fetches                   bool // it may download
	do                        func(*update.Agent, context.Context) (update.Result, error)
}

func newUpdateJob(j updateJob) *cobra.Command {
	var f updateFlags
	c := &cobra.Command{
		Use: j.use, Short: j.short, Long: j.long, Example: j.example, Args: checkArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return runUpdateJob(c.Context(), c.OutOrStdout(), f, j.do)
		},
	}
	f.addConfig(c)
	if j.fetches {
		f.common.addFlags(c)
		f.addFetching(c)
		return c
	}
	f.progress, f.jobs = progressNone, 1
	addJSON(c, &f.json)
	return c
}

func (f *updateFlags) addConfig(c *cobra.Command) {
	c.Flags().StringVar(&f.config, "config", update.DefaultConfig, "`file` that says which channel to follow, and what this machine is")
}

func (f *updateFlags) addFetching(c *cobra.Command) {
	f.access.addFlags(c)
	f.addPatience(c)
	c.Flags().BoolVar(&f.allowDowngrade, "allow-downgrade", false, "also install a release that is older than the running one")
	c.Flags().BoolVar(&f.retryFailed, "retry-failed", false, "also install a release that has failed on this machine")
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
		Example: `  cairn update check
  release=$(cairn update check --json | jq -r 'select(.install) | .release')`,
		Args: checkArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error { return runUpdateCheck(c.Context(), c.OutOrStdout(), f) },
	}
	f.addConfig(c)
	f.addFetching(c)
	addJSON(c, &f.json)
	return c
}

func newUpdateStatus() *cobra.Command {
	var f updateFlags
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show where this machine's updates stand",
		Long:    `status shows the slots, what they hold, and what is next. It reads no server and changes nothing.`,
		Example: `  cairn update status --json | jq .situation`,
		Args:    checkArgs(cobra.NoArgs),
		RunE:    func(c *cobra.Command, _ []string) error { return runUpdateStatus(c.Context(), c.OutOrStdout(), f) },
	}
	f.addConfig(c)
	addJSON(c, &f.json)
	return c
}

func newUpdateBackend() *cobra.Command {
	return &cobra.Command{
		Use:   "backend NAME",
		Short: "Print a boot backend of cairn, to read or to change",
		Long: `backend prints the shell script that boot.backend = "NAME" runs. NAME is one of
` + strings.Join(update.BackendNames(), ", ") + `. A changed copy is used with boot.backend = "/path/of/the/copy".
Its verbs are get-current, get-primary, set-primary SLOT, get-state SLOT and set-state SLOT good|bad. CAIRN_SLOTS has
the names of all slots.`,
		Example: `  cairn update backend grub`,
		Args:    checkArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			script, err := update.Backend(args[0])
			if err != nil {
				return usageError{fmt.Errorf("there is no boot backend %q: want one of %s", args[0], strings.Join(update.BackendNames(), ", "))}
			}
			_, err = c.OutOrStdout().Write(script)
			return err
		},
	}
}

// openAgent returns the agent of a configuration. needSlots tells that the command is about slots.
func (f *updateFlags) openAgent(needSlots bool, open func(*update.Config, update.System, update.Options) (*update.Agent, error)) (*update.Agent, error) {
	config, err := update.ReadConfig(f.config)
	if err == nil && needSlots {
		if err = config.NeedSlots(); err != nil {
			err = fmt.Errorf("the configuration of updates %s: %w", f.config, err)
		}
	}
	if err != nil {
		return nil, err
	}
	if f.allowDowngrade {
		logf("warning: --allow-downgrade: an older release may be installed")
	}
	f.manager = daemon.OpenNotifier()
	installer, err := f.newInstaller(config)
	if err != nil {
		return nil, fmt.Errorf("the configuration of updates %s: %w", f.config, err)
	}
	system := &update.Machinery{Config: config, Put: installer.install, Check: installer.check, Messages: os.Stderr}
	return open(config, system, update.Options{
		Access: f.releaseAccess(), AllowDowngrade: f.allowDowngrade, RetryFailed: f.retryFailed, Notes: logUpdateNote,
	})
}

// tell logs a line, and sends it to the service manager.
func (f *updateFlags) tell(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	logf("%s", line)
	_ = f.manager.Notify("STATUS=" + plaintext.Line(line)) // a manager that is gone does not stop an update
}

func runUpdateJob(ctx context.Context, stdout io.Writer, f updateFlags, do func(*update.Agent, context.Context) (update.Result, error)) error {
	agent, err := f.openAgent(true, (*update.Config).Open)
	if err != nil {
		return err
	}
	defer agent.Close()
	r, err := do(agent, ctx)
	if err != nil {
		return f.hintUpdate(err)
	}
	if f.json {
		return writeJSON(stdout, r)
	}
	f.tell("%s", describeOutcome(r))
	return nil
}

// hintUpdate adds a hint to the error of a job.
func (f *updateFlags) hintUpdate(err error) error {
	noWay := new(update.NoWayBackError)
	switch {
	case errors.Is(err, update.ErrUnconfirmed):
		return refusedError{err.Error(), "run 'cairn update confirm' first, or 'cairn update rollback' to leave it"}
	case errors.As(err, &noWay):
		return refusedError{err.Error(), "set an older release in the channel, and run 'cairn update --allow-downgrade'"}
	case release.IsAbsent(err):
		return absentHint(err, "check channel = … in "+f.config)
	}
	return err
}

// outcomes are the texts for the outcomes of jobs. They go on with the release and the slot.
var outcomes = map[update.Outcome]string{
	update.DidStage:       "staged; 'cairn update switch' makes the boot loader try it",
	update.DidSwitch:      "the boot loader tries it at the next boot",
	update.DidConfirm:     "confirmed; it stays",
	update.DidRollBack:    "rolled back; the next boot is from this slot",
	update.DidUndo:        "taken back; it is not booted",
	update.DidReboot:      "rebooting",
	update.NothingStaged:  "nothing to switch to",
	update.NothingToDo:    "nothing to do",
	update.WaitsForWindow: "staged; the rest waits for the window",
	update.WaitsForSwitch: "staged; 'cairn update switch' makes the boot loader try it",
	update.WaitsForReboot: "waits for a reboot",
}

// nameRelease returns the name of a release for messages. The version of one that came with the machine may be unknown.
func nameRelease(version string, serial int64) string {
	if version == "" {
		return fmt.Sprintf("the release with serial %d", serial)
	}
	return fmt.Sprintf("release %s, serial %d", version, serial)
}

// describeOutcome returns the line about a result.
func describeOutcome(r update.Result) string {
	text, known := outcomes[r.Outcome]
	if !known {
		text = "nothing to do: " + reasons[update.Reason(r.Outcome)]
	}
	if r.Reason != "" {
		text += " (" + r.Reason + ")"
	}
	if r.Serial != 0 {
		text = fmt.Sprintf("%s: %s", nameRelease(r.Version, r.Serial), text)
	}
	if r.Slot != "" {
		text = "slot " + r.Slot + ": " + text
	}
	return text
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
	update.HasFailed: "it was tried here and did not stay; --retry-failed tries it again",
}

func runUpdateCheck(ctx context.Context, stdout io.Writer, f updateFlags) error {
	agent, err := f.openAgent(false, (*update.Config).Open)
	if err != nil {
		return err
	}
	defer agent.Close()
	found, err := agent.Check(ctx)
	if err != nil {
		return f.hintUpdate(err)
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
	switch n := n.(type) {
	case update.StateIgnored:
		logf("warning: what earlier runs have seen is not used: %s", n.Reason)
	case update.FallenBack:
		logf("warning: release %s in slot %s did not stay: %s", n.Version, n.Slot, n.Reason)
	case update.Confirmed:
		logf("slot %s: %s: confirmed; it stays", n.Slot, nameRelease(n.Version, n.Serial))
	case update.Abandoned:
		logf("warning: the update in slot %s is forgotten: slot %s runs", n.Slot, n.Current)
	default:
		panic(fmt.Sprintf("unknown note %T", n))
	}
}

func runUpdateStatus(ctx context.Context, stdout io.Writer, f updateFlags) error {
	agent, err := f.openAgent(true, (*update.Config).OpenStatus)
	if err != nil {
		return err
	}
	s, err := agent.Status(ctx)
	if err != nil {
		return err
	}
	if f.json {
		return writeJSON(stdout, s)
	}
	return printUpdateStatus(stdout, s)
}

// situations are the texts for the situations of an update.
var situations = map[update.Situation]string{
	update.Idle:          "no update is under way",
	update.AwaitsStage:   "a slot is written in part; 'cairn update stage' goes on",
	update.AwaitsSwitch:  "a release is staged; 'cairn update switch' is next",
	update.AwaitsReboot:  "the boot loader tries another slot at the next boot",
	update.AwaitsConfirm: "a new release runs; 'cairn update confirm' is next",
	update.FellBack:      "a release was tried and did not stay; 'cairn update' records that",
	update.GivenUp:       "the running release has failed; a reboot is next",
	update.Foreign:       "a slot runs that the update under way does not know",
}

func printUpdateStatus(w io.Writer, s update.Status) error {
	rows := [][]string{{"SLOT", "RELEASE", "SERIAL", "STATE", ""}}
	for _, slot := range s.Slots {
		row := []string{slot.Name, "-", "-", "", ""}
		var states []string
		if slot.Content != nil {
			row[1], row[2] = cmp.Or(slot.Version, "-"), fmt.Sprint(slot.Serial)
			if slot.Confirmed {
				states = append(states, "confirmed")
			}
		}
		if slot.Bad {
			states = append(states, "not booted")
		}
		if slot.Name == s.Current {
			states = append(states, "runs")
		}
		if slot.Name == s.Primary {
			states = append(states, "boots next")
		}
		row[3] = strings.Join(states, ", ")
		rows = append(rows, row)
	}
	if err := plaintext.WriteTable(w, rows); err != nil {
		return err
	}
	printLine(w, "%s", situations[s.Situation])
	if s.Floor > 0 {
		printLine(w, "no release below serial %d is installed", s.Floor)
	}
	for _, f := range s.Failed {
		printLine(w, "failed: release %s, serial %d, %s: %s", f.Version, f.Serial, f.Time.Format(time.RFC3339), f.Reason)
	}
	return nil
}

// installer writes and checks the images of a release.
type installer struct {
	f        *updateFlags
	assemble assembleFlags
}

// newInstaller returns an installer with what the configuration says about stores, seeds and limits.
func (f *updateFlags) newInstaller(c *update.Config) (*installer, error) {
	a := assembleFlags{lockWait: defaultLockWait, idle: c.Download.Idle, verify: string(deploy.VerifyChanged), tail: string(deploy.TailKeep)}
	a.common, a.state, a.cache, a.access = f.common, defaultState, c.Cache, f.access
	a.confinement.word = confineOff
	for _, text := range c.Stores {
		group, err := parseStores(text)
		if err != nil {
			return nil, fmt.Errorf("stores: %w", err)
		}
		a.groups = append(a.groups, group)
	}
	for _, text := range c.Seeds {
		place, err := learn.ParsePlace(text)
		if err != nil {
			return nil, fmt.Errorf("seeds: %w", err)
		}
		a.seeds = append(a.seeds, place)
	}
	for _, limit := range []struct {
		key, text string
		into      *int64
	}{{"rate", c.Download.Rate, &a.rateLimit}, {"most", c.Download.Most, &a.maxDownload}} {
		var err error
		if limit.text != "" {
			*limit.into, err = parseBytes(limit.text)
		}
		if err != nil {
			return nil, fmt.Errorf("download: %s: %w", limit.key, err)
		}
	}
	return &installer{f, a}, nil
}

// install writes an image onto its target.
func (n *installer) install(ctx context.Context, i update.Image) error {
	begun, a := time.Now(), n.assemble
	a.index = i.At
	if i.SHA256 != (trust.Sum{}) {
		sum := assemble.ImageSum(i.SHA256)
		a.imageSum = &sum
	}
	a.seeds = append([]learn.Place(nil), a.seeds...)
	if i.Seed != "" {
		place, err := learn.ParsePlace(i.Seed)
		if err != nil {
			return err
		}
		a.seeds = append(a.seeds, place)
	}
	if err := a.limitProcess(i.Data); err != nil {
		return err
	}
	_ = n.f.manager.Notify("STATUS=staging " + plaintext.Line(i.Role+" on "+i.Target))
	r := assembleResult{Index: a.index, Digest: i.Data.Digest().String(), Target: i.Target}
	if err := a.assembleOnto(ctx, i.Data, i.Target, &r); err != nil {
		return err
	}
	a.json = false
	return a.printResult(nil, r, plaintext.Duration(time.Since(begun)))
}

// check returns an error unless the target of an image holds it.
func (n *installer) check(ctx context.Context, i update.Image) error {
	image, err := verify.Open(ctx, i.Data, i.Target)
	if err != nil {
		return err
	}
	defer image.Close()
	r, err := image.Verify(ctx, verify.Options{Workers: max(n.assemble.jobs, 1)})
	if err != nil {
		return err
	}
	if r.Bad > 0 {
		logDamage(r)
		return damagedError{fmt.Sprintf("%s does not hold the image %s of the release: %s differ", i.Target, i.Role, plaintext.Count(int64(r.Bad), "chunk"))}
	}
	return nil
}
