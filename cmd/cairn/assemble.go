package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/deploy"
	"cairn/internal/blockdev"
	"cairn/internal/ioprio"
	"cairn/internal/openfile"
	"cairn/internal/plaintext"
	"cairn/seed/known"
	"cairn/store/locate"
)

// planFlags are the flags of assemble and plan.
type planFlags struct {
	common
	stores
	index  []locate.Location // one
	seeds  []deploy.Place
	state  string
	stated bool // the user named the state, and is told when it does not work
	memory int64
}

func (f *planFlags) add(c *cobra.Command) {
	f.common.add(c)
	f.stores.add(c)
	f.stores.addPatience(c)
	flags := c.Flags()
	indexArgs(c, &f.index, 0, 1)
	localArgs(c, 1, "TARGET")
	flags.Var(funcFlag{"seed", func(text string) error {
		s, err := parseSeed(text, exists)
		f.seeds = append(f.seeds, s)
		return err
	}}, "seed",
		"`PATH[=INDEX]` that may hold wanted chunks: a file, device, DISK#NAME, PARTLABEL=NAME, PARTUUID=UUID, @root (the "+
			"device that / is mounted from) or a directory of images; without INDEX it is scanned; \\= and \\# are = and # in "+
			"a name; repeatable")
	flags.StringVar(&f.state, "state", defaultState, "`directory` that remembers what devices hold; \"\" for none")
	flags.Var(amount(&f.memory), "memory", "limit of the buffers in `bytes` (default: 32MiB)")
	check(c, func([]string) error {
		f.stated = c.Flags().Changed("state")
		if f.memory != 0 && f.memory < 1<<20 {
			return fmt.Errorf("--memory %s: want at least 1MiB", size(f.memory))
		}
		return checkSeeds(f.seeds)
	})
}

// readsStdin lists what is read from stdin.
func (f *planFlags) readsStdin(u *users) {
	u.readsAt("INDEX", f.index[0])
	for _, s := range f.seeds {
		u.readsAt("the index of --seed "+s.Path, s.Index)
	}
}

// options are what the flags say of the job with an index. Its notes and scans are shown.
func (f *planFlags) options(index locate.Location) deploy.Options {
	return deploy.Options{
		Seeds: f.seeds, Releases: f.releases(), State: known.Dir(f.state), Name: index.String(), Workers: f.jobs,
		Memory: f.memory, Notes: f.tell, Scanning: f.showScan,
	}
}

const defaultLockWait = 30 * time.Second

type assembleFlags struct {
	planFlags
	force       []string
	lockWait    time.Duration
	maxDownload int64
	tail        string
	verify      string
	exec        string
	idle        bool
}

func newAssemble() *cobra.Command {
	var f assembleFlags
	c := &cobra.Command{
		Use:     "assemble INDEX TARGET",
		Aliases: []string{"extract"},
		Short:   "Put an image onto a partition or file, downloading only what is not here",
		Long: `assemble puts the image of INDEX (a path, a URL, or -) onto TARGET: a block device, DISK#NAME (a partition of a
disk or disk image by its GPT name), PARTLABEL=NAME, PARTUUID=UUID, a file, or - for stdout.

What is in place stays, what a seed holds is read there, the rest is fetched from the stores. Every byte is
hashed before it is written. A device is written in place, exclusively, and never while it is in use; its
first bytes are made invalid first and written last, so that a half-written slot is not taken for a whole
one. Switch a boot loader to it only when the exit status is 0; 5 says that the target was refused.

A file appears under its name when it is whole and on the medium. Run it again after an interruption: what
is there already is not fetched again.

With -, or a FIFO, the image is written in order, each byte after it was hashed; the exit status tells whether it is
whole. A block device that stdout is redirected to is checked, claimed and written as a TARGET of that name.`,
		Example: `  cairn assemble https://images.example.com/v2.caibx PARTLABEL=root-b --seed PARTLABEL=root-a
  cairn assemble v2.caibx disk.img#root-b --seed disk.img#root-a=v1.caibx -s /srv/images/default.castr
  cairn assemble v2.caibx root.squashfs
  cairn assemble v2.caibx - --seed @root | ubiupdatevol -s SIZE /dev/ubi0_1 -`,
		Args: arguments(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return runAssemble(c.Context(), c.OutOrStdout(), f, openfile.Standard(args[1], stdout))
		},
	}
	f.add(c)
	flags := c.Flags()
	flags.Var(amount(&f.maxDownload), "max-download", "stop cleanly rather than download more than that many `bytes`")
	flags.StringSliceVar(&f.force, "force", nil, "write although the named `checks` speak against it ("+strings.Join(blockdev.Liftable(), ", ")+")")
	flags.DurationVar(&f.lockWait, "lock-wait", defaultLockWait,
		"how long to wait for the lock on the target's disk while another program has it (udev, sfdisk, a cairn)")
	check(c, func([]string) error {
		if f.lockWait < 0 {
			return fmt.Errorf("--lock-wait %v: want no less than nothing", f.lockWait)
		}
		return nil
	})
	f.tail = string(deploy.TailKeep)
	tails := []string{f.tail, string(deploy.TailZero), string(deploy.TailDiscard)}
	flags.Var(choice{&f.tail, tails}, "tail", "`what` to do with the bytes of a partition behind the image: keep, zero or discard")
	extents := []string{string(deploy.VerifyNone), string(deploy.VerifyChanged), string(deploy.VerifyAll)}
	flags.Var(choice{&f.verify, extents}, "verify-after",
		"`what` to read back from the medium and compare: none, changed or all (default: changed for devices, none for files)")
	flags.StringVar(&f.exec, "exec", "", "`program` to run when the image is on the medium, with the result as JSON on its stdin")
	flags.BoolVar(&f.idle, "idle", false, "use the disk and the processor only when nobody else does")
	checkStdio(c, func(u *users, args []string) {
		f.readsStdin(u)
		u.writes("TARGET", args[1])
		u.prints("--json", f.json)
	})
	return c
}

// assembled is what assemble --json and plan --json print.
type assembled struct {
	Index  locate.Location `json:"index"`
	Digest string          `json:"index_digest"`
	Target string          `json:"target"`
	assemble.Stats
	SeedNames       []string `json:"seeds"`            // in the order of seed_bytes
	Downloads       int64    `json:"downloads"`        // chunks read from the stores
	DownloadedBytes int64    `json:"downloaded_bytes"` // their size there
	Seconds         float64  `json:"seconds"`
}

func runAssemble(ctx context.Context, stdout io.Writer, f assembleFlags, location string) error {
	begun, index := time.Now(), f.index[0]
	if err := checkProgram(f.exec); err != nil {
		return err
	}
	x, err := readImageIndex(ctx, index, f.access)
	if err != nil {
		return err
	}
	if err := f.settle(x); err != nil {
		return err
	}
	result := assembled{Index: index, Digest: x.Digest().String(), Target: location}
	if err := f.assemble(ctx, x, &result); err != nil {
		return fmt.Errorf("assembling %s onto %s: %w", index, deploy.ShowTarget(location), err)
	}
	result.Seconds = time.Since(begun).Seconds()
	if err := f.report(stdout, result, rounded(time.Since(begun))); err != nil {
		return err
	}
	return f.runHook(ctx, result)
}

// settle makes the process as modest as it was told to be. Besides the buffers, which are 32 MiB by default, it
// has the program's own needs and the indexes in memory. Garbage is collected when it comes to more than that, which it
// seldom does, and not before.
func (f *assembleFlags) settle(x *blob.Index) error {
	const program, chunk = 16 << 20, 128
	prepareHeap(x.Size())
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(cmp.Or(f.memory, 32<<20) + program + chunk*int64(x.Len()))
	if f.idle {
		if err := ioprio.Idle(); err != nil {
			return fmt.Errorf("making the job idle: %w", err)
		}
	}
	return nil
}

func (f *assembleFlags) report(stdout io.Writer, r assembled, took string) error {
	if f.json {
		return writeJSON(openfile.Optional(stdout), r)
	}
	r.Target = deploy.ShowTarget(r.Target)
	if r.InPlace == r.Size {
		say("%s holds the image of %s (%s) already, nothing was written, in %s", r.Target, r.Index, size(r.Size), took)
		return nil
	}
	say("assembled %s of %s onto %s in %s", size(r.Size), r.Index, r.Target, took)
	return tellSources(stderr, r, "downloaded")
}

// hookError says that the image is in place, and the program of --exec failed.
type hookError struct {
	target, program string
	err             error
}

func (e hookError) Error() string {
	return fmt.Sprintf("%s holds the image, but running %s afterwards: %v", e.target, e.program, e.err)
}
func (e hookError) Unwrap() error { return e.err }

// hookGrace is how long the program of --exec may take to end after SIGTERM.
const hookGrace = 10 * time.Second

// runHook runs the program of --exec. It gets no shell, and the result on its stdin. It may switch a boot loader: a
// signal from the terminal does not reach it, and when the job is interrupted it gets SIGTERM, and time to finish.
func (f *assembleFlags) runHook(ctx context.Context, r assembled) error {
	if f.exec == "" {
		return nil
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	hook := exec.CommandContext(ctx, f.exec)
	hook.Stdin, hook.Stdout, hook.Stderr = bytes.NewReader(text), os.Stderr, os.Stderr
	hook.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	hook.Cancel = func() error { return syscall.Kill(-hook.Process.Pid, syscall.SIGTERM) }
	hook.WaitDelay = hookGrace
	err = hook.Run()
	if err == nil || hook.ProcessState != nil && hook.ProcessState.Success() { // it finished in spite of a signal
		return nil
	}
	return hookError{deploy.ShowTarget(r.Target), f.exec, err}
}

// assemble puts the image onto the target that result names.
func (f *assembleFlags) assemble(ctx context.Context, x *blob.Index, result *assembled) error {
	o := f.options(result.Index)
	o.Force, o.LockWait, o.Verify, o.Tail = f.force, f.lockWait, deploy.Verify(f.verify), deploy.Tail(f.tail)
	if err := checkStream(result.Target, o); err != nil {
		return err
	}
	t, err := deploy.Claim(ctx, result.Target, x, o)
	if err != nil {
		return err
	}
	defer t.Close()
	if t.Whole() {
		result.Stats = assemble.Stats{Size: x.Size(), Done: x.Size(), InPlace: x.Size(), Seeds: []int64{}}
		result.SeedNames = []string{}
		return nil
	}
	err = f.run(ctx, x, t, o, result)
	if t.IsStream() && err != nil {
		return streamError{err}
	}
	return err
}

func (f *assembleFlags) run(ctx context.Context, x *blob.Index, t *deploy.Target, o deploy.Options, result *assembled) error {
	from, err := openStores(f.stores, result.Index, x.Algorithm(), f.maxDownload)
	if err != nil {
		return err
	}
	defer from.Close()
	o.Far = from.Far()
	plan, err := deploy.NewPlan(ctx, x, t, o)
	if err != nil {
		return err
	}
	defer plan.Close()
	p := newProgress(f.progress, "assembling "+result.Index.String(), x.Size())
	defer p.end()
	result.Stats, err = plan.Run(ctx, from, p.showSources)
	result.SeedNames = plan.SeedNames()
	result.Downloads, result.DownloadedBytes = from.Downloaded()
	return err
}

// checkStream refuses what takes no image as a stream, and what a stream does not allow.
func checkStream(location string, o deploy.Options) error {
	fd, open := openfile.Descriptor(location)
	if location == dash {
		fd, open = stdout, true
	}
	switch {
	case !openfile.IsStream(location):
		return nil
	case open && term.IsTerminal(fd):
		return misuse{"stdout is a terminal; redirect it to a file, a device or a pipe"}
	case open && fd == 2:
		return misuse{"stderr is for messages, not for an image"}
	case o.Verify == deploy.VerifyChanged || o.Verify == deploy.VerifyAll:
		return misuse{"--verify-after: a stream cannot be read back"}
	case o.Tail != deploy.TailKeep:
		return misuse{"--tail: nothing is behind an image that is written as a stream"}
	}
	return nil
}

// showSources shows how much of an image is done, and where its bytes come from.
func (p *progress) showSources(s assemble.Stats) { p.show(s.Done, share(s), s) }

func share(s assemble.Stats) string {
	var seeds int64
	for _, n := range s.Seeds {
		seeds += n
	}
	return fmt.Sprintf("in place %s, seeds %s, store %s", size(s.InPlace), size(seeds), size(s.Fetched))
}

// tellSources lists where the image's bytes come from.
func tellSources(w io.Writer, r assembled, got string) error {
	rows := [][]string{{"  in place", size(r.InPlace), plaintext.Percent(r.InPlace, r.Size)}}
	for i, name := range r.SeedNames {
		rows = append(rows, []string{"  from " + name, size(r.Seeds[i]), plaintext.Percent(r.Seeds[i], r.Size)})
	}
	if r.Copied > 0 {
		rows = append(rows, []string{"  repeats", size(r.Copied), plaintext.Percent(r.Copied, r.Size)})
	}
	fetched := fmt.Sprintf("%s, %s %s", chunks(r.Fetches), size(r.DownloadedBytes), got)
	rows = append(rows,
		[]string{"  zeros", size(r.Zero), plaintext.Percent(r.Zero, r.Size)},
		[]string{"  from the store", size(r.Fetched), plaintext.Percent(r.Fetched, r.Size), fetched})
	if r.SeedMiss > 0 {
		rows = append(rows, []string{"  (seeds did not hold " + chunks(r.SeedMiss) + " that their indexes say they do)"})
	}
	return table(w, rows)
}
