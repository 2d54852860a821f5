package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/internal/test/need"
)

// patience limits the time of a program.
const patience = 5 * time.Minute

// The documented exit statuses.
const (
	failed      = 1
	damaged     = 3
	notFound    = 4
	refused     = 5
	hungUp      = 128 + int(syscall.SIGHUP)
	interrupted = 128 + int(syscall.SIGINT)
	quit        = 128 + int(syscall.SIGQUIT)
	unread      = 128 + int(syscall.SIGPIPE)
	terminated  = 128 + int(syscall.SIGTERM)
)

// ran is the result of a program. The status is -1 after a signal.
type ran struct {
	stdout, stderr string
	status         int
}

// run runs a program until it ends.
func run(t testing.TB, name string, args ...string) ran {
	t.Helper()
	return runInput(t, "", name, args...)
}

func runInput(t testing.TB, input, name string, args ...string) ran {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, need.Tool(t, name), forgetful(args)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return ran{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// forgetful makes cairn remember no devices, unless the test sets a directory for that.
func forgetful(args []string) []string {
	if len(args) == 0 || !slices.Contains([]string{"assemble", "plan", "serve"}, args[0]) || slices.Contains(args, "--state") {
		return args
	}
	return append(slices.Clone(args), "--state", "")
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

// cairn runs a cairn command that must succeed, and returns its standard output.
func cairn(t testing.TB, args ...string) string {
	t.Helper()
	return must(t, "cairn", args...)
}

// fails runs a cairn command that must fail with the status, an error that contains words, and no standard output.
func fails(t testing.TB, status int, words string, args ...string) {
	t.Helper()
	checkFailed(t, run(t, "cairn", args...), status, words, args)
}

func checkFailed(t testing.TB, r ran, status int, words string, args []string) {
	t.Helper()
	if r.status != status || !strings.Contains(r.stderr, "cairn: error: ") || !strings.Contains(r.stderr, words) {
		t.Errorf("cairn %q: exit status %d, want %d with %q\n%s", args, r.status, status, words, r.stderr)
	}
	if r.stdout != "" {
		t.Errorf("cairn %q failed, and wrote %d bytes to standard output", args, len(r.stdout))
	}
}

// assembled is the output of assemble --json and plan --json.
type assembled struct {
	Size      int64   `json:"size"`
	Done      int64   `json:"done"`
	InPlace   int64   `json:"in_place_bytes"`
	Zero      int64   `json:"zero_bytes"`
	Seeds     []int64 `json:"seed_bytes"`
	Fetches   int64   `json:"fetched_chunks"`
	SeedMiss  int64   `json:"seed_misses"`
	Written   int64   `json:"written_bytes"`
	Downloads int     `json:"downloads"`
	Bytes     int64   `json:"downloaded_bytes"`
}

func parse(t testing.TB, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
}

// job is a running cairn.
type job struct {
	cmd            *exec.Cmd
	stdout, stderr *watched
}

// start starts a cairn command. It is killed at the end of the test.
func start(t testing.TB, stdin *os.File, args ...string) *job {
	t.Helper()
	return startProgram(t, stdin, "cairn", forgetful(args)...)
}

// startProgram is start for any program.
func startProgram(t testing.TB, stdin *os.File, name string, args ...string) *job {
	t.Helper()
	return startLimited(t, patience, stdin, name, args...)
}

// startLimited is startProgram with another limit of time.
func startLimited(t testing.TB, limit time.Duration, stdin *os.File, name string, args ...string) *job {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	j := &job{exec.CommandContext(ctx, need.Tool(t, name), args...), newWatched(), newWatched()}
	j.cmd.Stdout, j.cmd.Stderr = j.stdout, j.stderr
	if stdin != nil { // otherwise cmd.Stdin would hold a nil *os.File
		j.cmd.Stdin = stdin
	}
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

func (j *job) signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := j.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// wait waits for the job and returns its result.
func (j *job) wait(t testing.TB) ran {
	t.Helper()
	err := j.cmd.Wait()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return ran{j.stdout.String(), j.stderr.String(), j.cmd.ProcessState.ExitCode()}
}

// watched is the output of a running program.
type watched struct {
	mu      sync.Mutex // guards text
	text    bytes.Buffer
	changed chan struct{} // holds a token when text has grown
}

func newWatched() *watched { return &watched{changed: make(chan struct{}, 1)} }

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case w.changed <- struct{}{}:
	default:
	}
	return w.text.Write(p)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// await returns the output so far as soon as it contains words. Only one goroutine may wait at a time.
func (w *watched) await(t testing.TB, words string) string {
	t.Helper()
	late := time.After(patience)
	for {
		if text := w.String(); strings.Contains(text, words) {
			return text
		}
		select {
		case <-w.changed:
		case <-late:
			t.Fatalf("%q was not written in time, only:\n%s", words, w)
		}
	}
}
