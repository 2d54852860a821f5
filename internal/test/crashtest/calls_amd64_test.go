package crashtest

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/test/callfault"
	"cairn/internal/test/need"
)

// hangs is the time after which a tiny job counts as hanging.
const hangs = 2 * time.Minute

// callJob is a small job that is run with a fault, judged, and run again without one.
type callJob struct {
	name  string
	files int // the limit of descriptors; 0 is none
	// prepare makes the job's input in an empty directory, and returns the arguments of cairn.
	prepare func(t testing.TB, dir string) (args []string)
	// use uses the running program. If it is nil, the program ends by itself.
	use func(p *callfault.Process, dir string) error
	// judge checks the job's output. done reports whether the exit status was 0.
	judge func(t testing.TB, dir string, done bool, r callfault.Result) error
}

// TestEveryCallFails lets each call on files, directories and the network fail once, in each plausible way, in small
// jobs. If the exit status is 0, the job has done all of its work. Otherwise it prints one error, and the output is
// absent, old, or complete. The next run succeeds with the remains. A short transfer fails no job. Without
// CAIRN_LONG, a sample of the calls fails (CAIRN_FAULTS for each job).
func TestEveryCallFails(t *testing.T) {
	eachCallJob(t, func(t *testing.T, j callJob) {
		clean := j.try(t, callfault.Fault{})
		faults := clean.Faults()
		if !long() {
			faults = sample(t, faults, wantedFaults(t))
		}
		count := callCount{how: map[string]int{}, calls: map[string]bool{}}
		for _, f := range faults {
			count.add(f, j.try(t, f))
		}
		calls := 0
		for _, n := range clean.Counts {
			calls += n
		}
		t.Logf("%s: %d calls, %d faults; %v", j.name, calls, len(clean.Faults()), count)
		if len(faults) == 0 || count.fired == 0 {
			t.Error("no call has failed")
		}
	})
}

// TestClockJumps sets the wall clock forward and back by decades in the middle of each job, which succeeds.
func TestClockJumps(t *testing.T) {
	eachCallJob(t, func(t *testing.T, j callJob) {
		for n, f := range jumps(t, j.try(t, callfault.Fault{})) {
			r := j.try(t, f)
			denied := r.Status == notFound && strings.Contains(r.Stderr, "access denied") // S3's requests have the time
			if r.Status != 0 && !denied || strings.Contains(r.Stderr, "warning") {
				t.Errorf("%d: %v: status %d\n%s", n, f, r.Status, r.Stderr)
			}
		}
	})
}

// jumps returns jumps of the clock at calls of openat.
func jumps(t testing.TB, clean callfault.Result) (all []callfault.Fault) {
	const decade = 10 * 365 * 24 * time.Hour
	opened := clean.Counts["openat"]
	first, stride := sampleStart(t, opened), opened
	if long() {
		first, stride = 0, 2
	}
	for i := first; i < opened; i += stride {
		for _, d := range []time.Duration{decade, -decade} {
			all = append(all, callfault.Fault{Call: "openat", N: 1 + i, Jump: d})
		}
	}
	return all
}

// TestFewDescriptors runs each job with few descriptors. It succeeds, or its error names the limit.
func TestFewDescriptors(t *testing.T) {
	eachCallJob(t, func(t *testing.T, j callJob) {
		for _, limit := range []int{12, 16, 24, 32, 64} {
			j.files = limit
			r := j.try(t, callfault.Fault{})
			t.Logf("%d descriptors: status %d", limit, r.Status)
			if r.Status != 0 && !strings.Contains(r.Stderr, "open files") {
				t.Errorf("the error does not name the limit:\n%s", r.Stderr)
			}
		}
	})
}

// eachCallJob runs test with each of the small jobs.
func eachCallJob(t *testing.T, test func(t *testing.T, j callJob)) {
	in := newCallInput(t)
	for _, j := range in.jobs(t) {
		t.Run(j.name, func(t *testing.T) {
			t.Parallel()
			test(t, j)
		})
	}
}

// wantedFaults returns the number of faults for each job in a sample, which CAIRN_FAULTS sets.
func wantedFaults(t testing.TB) int {
	t.Helper()
	text := os.Getenv("CAIRN_FAULTS")
	if text == "" {
		return 8
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("CAIRN_FAULTS=%q is not a number of faults", text)
	}
	return n
}

// sample returns n evenly spread faults.
func sample(t testing.TB, all []callfault.Fault, n int) (some []callfault.Fault) {
	t.Helper()
	stride := max(1, len(all)/n)
	for i := sampleStart(t, stride); i < len(all); i += stride {
		some = append(some, all[i])
	}
	return some
}

// sampleStart returns the first number of a sample: n/2, so that each run has the same sample, or with CAIRN_SEED a random
// number below n.
func sampleStart(t testing.TB, n int) int {
	t.Helper()
	if os.Getenv("CAIRN_SEED") == "" {
		return n / 2
	}
	return chance(t).IntN(n)
}

// callCount counts the outcomes of a job's runs.
type callCount struct {
	fired, done, failed, missed int
	calls                       map[string]bool
	how                         map[string]int
}

func (c *callCount) add(f callfault.Fault, r callfault.Result) {
	if r.Failed == "" {
		c.missed++
		return
	}
	c.fired++
	c.calls[fmt.Sprint(f.Call, f.N)] = true
	if r.Status == 0 {
		c.done++
	} else {
		c.failed++
	}
	_, how, _ := strings.Cut(f.String(), ": ")
	c.how[fmt.Sprintf("%s %s: status %d", f.Call, how, r.Status)]++
}

func (c callCount) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%d calls failed, in %d runs: %d runs succeeded all the same, %d reported the failure; "+
		"%d more runs did not reach their call", len(c.calls), c.fired, c.done, c.failed, c.missed)
	for _, how := range slices.Sorted(maps.Keys(c.how)) {
		fmt.Fprintf(&text, "\n%6d × %s", c.how[how], how)
	}
	return text.String()
}

// try runs the job with a fault, and again without one if it failed.
func (j callJob) try(t *testing.T, f callfault.Fault) callfault.Result {
	t.Helper()
	dir, err := os.MkdirTemp("", "calls-") // t.TempDir's name may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	args := j.prepare(t, dir)
	first, err := j.run(t, dir, args, f)
	if err != nil {
		t.Errorf("%v (%s): %v\nstatus %d\n%s", f, first.Failed, err, first.Status, first.Stderr)
		return first
	}
	if first.Status == 0 {
		return first
	}
	j.files = 0
	second, err := j.run(t, dir, args, callfault.Fault{})
	if err != nil || second.Status != 0 {
		t.Errorf("the run after %v (%s): %v\nstatus %d\n%s\nbefore: status %d\n%s", f, first.Failed, err,
			second.Status, second.Stderr, first.Status, first.Stderr)
	}
	return first
}

// run runs the job and judges the result.
func (j callJob) run(t testing.TB, dir string, args []string, f callfault.Fault) (callfault.Result, error) {
	program := callfault.Program{Path: need.Tool(t, "cairn"), Args: args, Dir: dir, Files: j.files, Limit: hangs}
	p, err := callfault.Start(program, f)
	if err != nil {
		return callfault.Result{}, err
	}
	var used error
	if j.use != nil {
		used = j.use(p, dir)
		p.Signal(unix.SIGTERM)
	}
	r, err := p.Wait()
	if err != nil {
		return r, err
	}
	return r, errors.Join(used, wantPlainResult(f, r), j.judge(t, dir, r.Status == 0, r))
}

// wantPlainResult checks the exit status and the messages of a program.
func wantPlainResult(f callfault.Fault, r callfault.Result) error {
	switch {
	case r.Hung:
		return errors.New("it hangs")
	case len(r.Unknown) > 0:
		return fmt.Errorf("unknown system calls %v: add them to package callfault", r.Unknown)
	case r.Status != 0 && !slices.Contains([]int{failed, damaged, notFound, refused}, r.Status):
		return fmt.Errorf("exit status %d, signal %v", r.Status, r.Signal)
	case f.Error == callfault.Short && r.Status != 0:
		return errors.New("a short transfer is an error")
	case strings.Contains(r.Failed, "memfd:stderr"): // the error may be lost
		return nil
	}
	for _, word := range []string{"panic", "goroutine ", "runtime error", "fatal error"} {
		if strings.Contains(r.Stderr, word) {
			return errors.New("the program crashed")
		}
	}
	if n := strings.Count(r.Stderr, "cairn: error: "); r.Status == 0 && n > 0 || r.Status != 0 && n != 1 {
		return fmt.Errorf("%d errors are printed", n)
	}
	return nil
}
