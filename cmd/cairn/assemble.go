package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/deploy"
	"cairn/internal/blockdev"
	"cairn/internal/confine"
	"cairn/internal/dropin/report"
	"cairn/internal/ioprio"
	"cairn/internal/openfile"
	"cairn/internal/plaintext"
	"cairn/seed/known"
	"cairn/store/locate"
	"cairn/store/pack"
)

// planFlags holds the flags of assemble and plan.
type planFlags struct {
	common
	stores
	seedFlags
	trustFlags
	index  locate.Location
	memory int64
}

func (f *planFlags) addFlags(c *cobra.Command) {
	f.common.addFlags(c)
	f.stores.addFlags(c)
	f.stores.addPatience(c)
	f.seedFlags.addFlags(c)
	indexArg(c, &f.index)
	localArg(c, 1, "TARGET")
	c.Flags().Var(limitFlag(&f.memory), "memory", "maximum `size` of the buffers (default: 32MiB)")
	addCheck(c, func([]string) error {
		if f.memory != 0 && f.memory < 1<<20 {
			return fmt.Errorf("--memory %s: want at least 1MiB", plaintext.Size(f.memory))
		}
		return nil
	})
}

// addReaders adds the indexes that are read from stdin.
func (f *planFlags) addReaders(u *stdioUsers) {
	u.addLocation("INDEX", f.index)
	f.seedFlags.addReaders(u)
}

// deployOptions returns the options of the flags. The job's notes are printed, and its scans shown.
func (f *planFlags) deployOptions() deploy.Options {
	return deploy.Options{
		Seeds: f.seeds, Releases: f.releaseAccess(), State: known.Dir(f.state), Name: f.index.String(), Workers: f.jobs,
		Memory: f.memory, Notes: f.logDeployNote, Scanning: f.showScan,
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
	imageSum    *assemble.ImageSum
	exec        string
	idle        bool
	desyncStats bool // print the statistics of desync
}

func newAssemble() *cobra.Command {
	var f assembleFlags
	c := &cobra.Command{
		Use:     "assemble INDEX TARGET",
		Aliases: []string{"extract"},
		Short:   "Write an image to a partition or file, downloading only the missing chunks",
		Long: `assemble writes the image of INDEX to TARGET. INDEX is a path, a URL, or - for stdin. TARGET is a block device,
DISK#NAME (a partition of a disk or disk image by its GPT name), PARTLABEL=NAME, PARTUUID=UUID, a file, or - for
stdout.

It keeps the chunks that the target already holds, copies those that a seed holds, and downloads the others from the
stores. Every chunk is verified before it is written. Run the same command again after an interruption: chunks that
are there already are not downloaded again.

A device is written in place, exclusively, and only if it is not in use. Its first bytes are made invalid first and
written last, so that a half-written slot is not mistaken for a complete one. Switch a boot loader to it only if the
exit status is 0. Status 5 says that the target was refused. A file gets its name when it is complete and on the
medium. --image-sha256 also compares the whole image, before that.

With - or a FIFO, the image is written in order, and the exit status says whether it is complete. A block device on
stdout is checked, claimed and written like a TARGET of that name.`,
		Example: `  cairn assemble https://images.example.com/v2.caibx PARTLABEL=root-b --seed PARTLABEL=root-a
  cairn assemble v2.caibx disk.img#root-b --seed disk.img#root-a=v1.caibx -s /srv/images/default.castr
  cairn assemble v2.caibx root.squashfs
  cairn assemble v2.caibx - --seed @root | ubiupdatevol -s SIZE /dev/ubi0_1 -`,
		Args: checkArgs(cobra.ExactArgs(2)),
		RunE: func(c *cobra.Command, args []string) error {
			return runAssemble(c.Context(), c.OutOrStdout(), f, openfile.Standard(args[1], openfile.Stdout))
		},
	}
	f.addFlags(c)
	f.confinement.addFlags(c)
	flags := c.Flags()
	flags.Var(limitFlag(&f.maxDownload), "max-download", "stop before the download exceeds this number of `bytes`")
	flags.StringSliceVar(&f.force, "force", nil, "write to the target although these `checks` fail ("+strings.Join(blockdev.Liftable(), ", ")+")")
	flags.DurationVar(&f.lockWait, "lock-wait", defaultLockWait,
		"how long to wait for the lock on the target's disk while another program holds it (udev, sfdisk, a cairn)")
	addCheck(c, func([]string) error {
		if f.lockWait < 0 {
			return fmt.Errorf("--lock-wait %v: want 0 or more", f.lockWait)
		}
		return nil
	})
	f.tail = string(deploy.TailKeep)
	flags.Var(choiceFlag(&f.tail, f.tail, string(deploy.TailZero), string(deploy.TailDiscard)), "tail",
		"`what` to do with a partition's bytes behind the image: keep, zero or discard")
	flags.Var(choiceFlag(&f.verify, string(deploy.VerifyNone), string(deploy.VerifyChanged), string(deploy.VerifyAll)), "verify-after",
		"`what` to read back from the medium and compare: none, changed or all (default: changed for devices, none for files)")
	flags.Var(funcFlag{"hex", "", func(text string) error {
		sum, err := hex.DecodeString(text)
		if err != nil || len(sum) != sha256.Size {
			return errors.New("want the 64 hexadecimal digits of a SHA-256")
		}
		f.imageSum = (*assemble.ImageSum)(sum)
		return nil
	}}, "image-sha256", "fail unless the whole image has this SHA-256, in `hex`")
	flags.StringVar(&f.exec, "exec", "", "`program` to run when the image is on the medium, with the result as JSON on its stdin")
	flags.BoolVar(&f.idle, "idle", false, "use the disk and the processor only when no other program does")
	addDesyncStats(c, &f.desyncStats)
	checkStdioUse(c, func(u *stdioUsers, args []string) {
		f.addReaders(u)
		u.addWriter("TARGET", args[1])
		u.addPrinter("--json", f.json)
		u.addPrinter("--desync-stats", f.desyncStats)
	})
	f.trustFlags.addTo(c)
	return c
}

// assembleResult is the output of assemble --json and plan --json.
type assembleResult struct {
	Index  locate.Location `json:"index"`
	Digest string          `json:"index_digest"`
	Target string          `json:"target"`
	assemble.Stats
	SeedNames       []string `json:"seeds"`               // in the order of seed_bytes
	DeltaOld        string   `json:"delta_old,omitempty"` // digest of the index of the old image of the delta
	Downloads       int64    `json:"downloads"`           // chunks read from the stores, and answers with parts of a delta
	DownloadedBytes int64    `json:"downloaded_bytes"`    // of these, as stored
	Seconds         float64  `json:"seconds"`
}

// addDelta fills in the old image of the delta that a job uses.
func (r *assembleResult) addDelta(d *deploy.DeltaUse) { r.DeltaOld = d.Old.String() }

func runAssemble(ctx context.Context, stdout io.Writer, f assembleFlags, target string) error {
	begun := time.Now()
	if err := checkProgram(f.exec); err != nil {
		return err
	}
	end, _, err := f.confineCalls(false, f.hookCommands(), f.locations()...)
	if err != nil {
		return err
	}
	defer end()
	x, err := f.openIndex(ctx, &f.index, f.access, readImageIndex)
	if err != nil {
		return err
	}
	if err := f.limitProcess(x); err != nil {
		return err
	}
	r := assembleResult{Index: f.index, Digest: x.Digest().String(), Target: target}
	if err := f.assembleOnto(ctx, x, target, &r); err != nil {
		return fmt.Errorf("assembling %s onto %s: %w", f.index, deploy.ShowTarget(target), err)
	}
	r.Seconds = time.Since(begun).Seconds()
	if err := f.printResult(stdout, r, plaintext.Duration(time.Since(begun))); err != nil {
		return err
	}
	if f.desyncStats {
		if err := writeJSON(stdout, report.NewExtractStats(x, r.Stats)); err != nil {
			return err
		}
	}
	return f.runProgram(ctx, r)
}

// locations returns the locations that the job reads.
func (f *planFlags) locations() []locate.Location {
	return slices.Concat(f.stores.locations(f.index), f.seedFlags.locations(), []locate.Location{f.index})
}

// confineFilesTo limits the files of the process, when the target and the seeds are open.
func (f *assembleFlags) confineFilesTo(t *deploy.Target) error {
	p := confine.Policy{Write: makeDirs(0o755, f.cache)}
	if dir := t.Dir(); dir != "" {
		p.Write = append(p.Write, dir)
	} else {
		p.Write = append(p.Write, makeDirs(0o700, f.state)...)
		p.Read = append(p.Read, deviceIdentityDirs...)
	}
	return f.confineFiles(p)
}

// deltaMemory is the memory in bytes that the use of a delta takes: parts of its file, and bytes of the old image.
const deltaMemory = 2 << 20

// limitProcess limits the memory of the process, and makes it idle if the flags say so. Besides the buffers, the process
// needs memory of its own and the indexes. The garbage collector runs only when it needs more than that.
func (f *assembleFlags) limitProcess(x *blob.Index) error {
	const program, chunk = 12 << 20, 128
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

// assembleOnto writes the image to the target, and fills in the result.
func (f *assembleFlags) assembleOnto(ctx context.Context, x *blob.Index, target string, r *assembleResult) error {
	o := f.deployOptions()
	o.Force, o.LockWait, o.Verify, o.Tail = f.force, f.lockWait, deploy.Verify(f.verify), deploy.Tail(f.tail)
	o.ImageSum = f.imageSum
	if err := checkStream(target, o); err != nil {
		return err
	}
	t, err := deploy.Claim(ctx, target, x, o)
	if err != nil {
		return err
	}
	defer t.Close()
	if t.Whole() {
		r.Stats = assemble.Stats{Size: x.Size(), Done: x.Size(), InPlace: x.Size(), InPlaces: int64(x.Len()), Seeds: []int64{}}
		r.SeedNames = []string{}
		return nil
	}
	err = f.runPlan(ctx, x, t, o, r)
	if t.IsStream() && err != nil {
		return streamError{err}
	}
	return err
}

func (f *assembleFlags) runPlan(ctx context.Context, x *blob.Index, t *deploy.Target, o deploy.Options, r *assembleResult) error {
	from, err := f.open(ctx, f.index, x, f.maxDownload)
	if err != nil {
		return err
	}
	defer from.Close()
	if from.HasPacks() && from.Far() {
		debug.SetMemoryLimit(debug.SetMemoryLimit(-1) + pack.DefaultMemory)
	}
	o.Far, o.Deltas = from.Far(), f.deltas(ctx, from)
	plan, err := deploy.NewPlan(ctx, x, t, o)
	if err != nil {
		return err
	}
	defer plan.Close()
	if use := plan.DeltaUse(); use != nil {
		r.addDelta(use)
		debug.SetMemoryLimit(debug.SetMemoryLimit(-1) + deltaMemory)
	}
	if err := f.confineFilesTo(t); err != nil {
		return err
	}
	p := newProgress(f.progress, "assembling "+f.index.String(), "Attempt 1: Assembling ", x.Size())
	defer p.end()
	r.Stats, err = plan.Run(ctx, from, p.showSources)
	r.SeedNames = plan.SeedNames()
	r.Downloads, r.DownloadedBytes = from.Downloaded()
	return err
}

// checkStream refuses an output that cannot take an image as a stream, and flags that do not apply to a stream.
func checkStream(target string, o deploy.Options) error {
	fd, open := openfile.Descriptor(target)
	if target == openfile.Dash {
		fd, open = openfile.Stdout, true
	}
	problem := ""
	switch {
	case !openfile.IsStream(target):
	case open && term.IsTerminal(fd):
		problem = "stdout is a terminal; redirect it to a file, a device or a pipe"
	case open && fd == 2:
		problem = "stderr is for messages, not for an image"
	case o.Verify == deploy.VerifyChanged || o.Verify == deploy.VerifyAll:
		problem = "--verify-after: a stream cannot be read back"
	case o.Tail != deploy.TailKeep:
		problem = "--tail: nothing is behind an image that is written as a stream"
	}
	if problem == "" {
		return nil
	}
	return usageError{errors.New(problem)}
}

func (f *assembleFlags) printResult(stdout io.Writer, r assembleResult, elapsed string) error {
	if f.json {
		return writeJSON(openfile.Optional(stdout), r)
	}
	target := deploy.ShowTarget(r.Target)
	if r.InPlace == r.Size {
		logf("%s holds the image of %s (%s) already, nothing was written, in %s", target, r.Index, plaintext.Size(r.Size), elapsed)
		return nil
	}
	logf("assembled %s of %s onto %s in %s", plaintext.Size(r.Size), r.Index, target, elapsed)
	return printSources(stderr, r, "downloaded")
}

// printSources prints how many of the image's bytes come from each source. verb is about the downloaded bytes.
func printSources(w io.Writer, r assembleResult, verb string) error {
	rows := [][]string{{"  in place", plaintext.Size(r.InPlace), plaintext.Percent(r.InPlace, r.Size)}}
	for i, name := range r.SeedNames {
		rows = append(rows, []string{"  from " + name, plaintext.Size(r.Seeds[i]), plaintext.Percent(r.Seeds[i], r.Size)})
	}
	if r.Copied > 0 {
		rows = append(rows, []string{"  repeats", plaintext.Size(r.Copied), plaintext.Percent(r.Copied, r.Size)})
	}
	downloads := fmt.Sprintf("%s, %s %s", plaintext.Count(r.Fetches, "chunk"), plaintext.Size(r.DownloadedBytes), verb)
	if r.DeltaOld != "" {
		what := plaintext.Count(r.Deltas, "chunk") + " made with bytes of the image " + r.DeltaOld[:12]
		rows = append(rows, []string{"  from a delta", plaintext.Size(r.Delta), plaintext.Percent(r.Delta, r.Size), what})
	}
	rows = append(rows,
		[]string{"  zeros", plaintext.Size(r.Zero), plaintext.Percent(r.Zero, r.Size)},
		[]string{"  from the store", plaintext.Size(r.Fetched), plaintext.Percent(r.Fetched, r.Size), downloads})
	if r.SeedMiss > 0 {
		rows = append(rows, []string{"  (seeds did not hold " + plaintext.Count(r.SeedMiss, "chunk") + " that their indexes say they do)"})
	}
	if r.DeltaMiss > 0 {
		rows = append(rows, []string{"  (the delta did not give " + plaintext.Count(r.DeltaMiss, "chunk") + " that it should have)"})
	}
	return plaintext.WriteTable(w, rows)
}

// showSources shows how much of an image is done, and from which sources its bytes come.
func (p *progress) showSources(s assemble.Stats) {
	var seeds int64
	for _, n := range s.Seeds {
		seeds += n
	}
	delta := ""
	if s.Deltas > 0 {
		delta = fmt.Sprintf(", delta %s", plaintext.Size(s.Delta))
	}
	p.show(s.Done, fmt.Sprintf("in place %s, seeds %s%s, store %s",
		plaintext.Size(s.InPlace), plaintext.Size(seeds), delta, plaintext.Size(s.Fetched)), s)
}
