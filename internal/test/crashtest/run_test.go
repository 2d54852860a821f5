package crashtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/internal/test/need"
)

// patience limits the time of a program; an emulated machine is slow.
const patience = 3 * time.Minute

// The documented exit statuses.
const (
	failed   = 1
	usage    = 2
	damaged  = 3
	notFound = 4
	refused  = 5
)

// ran is the result of a program. The status is -1 after a signal.
type ran struct {
	stdout, stderr string
	status         int
}

// run runs a program until it ends.
func run(t testing.TB, name string, args ...string) ran {
	t.Helper()
	return start(t, name, args...).wait(t)
}

// must runs a program that must succeed, and returns its standard output.
func must(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := run(t, name, args...)
	if r.status != 0 {
		t.Fatalf("%s %q: exit status %d\n%s%s", name, args, r.status, r.stdout, r.stderr)
	}
	return r.stdout
}

// fails runs a cairn command that must fail with the status, and an error that contains words.
func fails(t testing.TB, status int, words string, args ...string) {
	t.Helper()
	run(t, "cairn", args...).wantFailed(t, status, words)
}

func (r ran) wantFailed(t testing.TB, status int, words string) {
	t.Helper()
	if r.status != status || !strings.Contains(r.stderr, "cairn: error: ") || !strings.Contains(r.stderr, words) {
		t.Errorf("exit status %d, want %d with %q\n%s", r.status, status, words, r.stderr)
	}
	if r.stdout != "" {
		t.Errorf("cairn failed, and wrote %q to standard output", r.stdout)
	}
}

// assembled is the output of assemble --json.
type assembled struct {
	Size      int64   `json:"size"`
	Done      int64   `json:"done"`
	InPlace   int64   `json:"in_place_bytes"`
	Seeds     []int64 `json:"seed_bytes"`
	SeedMiss  int64   `json:"seed_misses"`
	Written   int64   `json:"written_bytes"`
	Downloads int     `json:"downloads"`
	Bytes     int64   `json:"downloaded_bytes"`
}

// assemble runs an assemble that must succeed, and returns its output.
func assemble(t testing.TB, args ...string) (a assembled) {
	t.Helper()
	out := must(t, "cairn", append([]string{"assemble", "--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		t.Fatalf("%v in:\n%s", err, out)
	}
	if a.Done != a.Size {
		t.Errorf("assemble %q says that %d of %d bytes are done", args, a.Done, a.Size)
	}
	return a
}

// job is a running program.
type job struct {
	cmd            *exec.Cmd
	stdout, stderr *bytes.Buffer // valid when it has ended
	begun          time.Time
	cancel         context.CancelFunc
}

// start starts a program. It is killed at the end of the test.
func start(t testing.TB, name string, args ...string) *job {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	j := &job{exec.CommandContext(ctx, need.Tool(t, name), args...), &bytes.Buffer{}, &bytes.Buffer{}, time.Now(), cancel}
	j.cmd.Stdout, j.cmd.Stderr = j.stdout, j.stderr
	if err := j.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if j.cmd.ProcessState == nil {
			_ = j.cmd.Wait()
		}
	})
	return j
}

// wait waits for the job and returns its result.
func (j *job) wait(t testing.TB) ran {
	t.Helper()
	err := j.cmd.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	j.cancel()
	return ran{j.stdout.String(), j.stderr.String(), j.cmd.ProcessState.ExitCode()}
}

// killAt kills the job after a time, and returns its result. It may have ended earlier.
func (j *job) killAt(t testing.TB, moment time.Duration) ran {
	t.Helper()
	timer := time.AfterFunc(moment-time.Since(j.begun), func() { _ = j.cmd.Process.Kill() })
	defer timer.Stop()
	return j.wait(t)
}

// chance returns a source of random numbers. It logs its seed, and takes it from CAIRN_SEED.
func chance(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("CAIRN_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("CAIRN_SEED: %v", err)
		}
	}
	t.Logf("CAIRN_SEED=%d has these moments again", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
