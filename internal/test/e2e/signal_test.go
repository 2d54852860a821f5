package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/test/need"
	"cairn/internal/test/nginx"
	"cairn/store/storetest"
	"cairn/testimages"
)

// TestHangup: a closed terminal or SIGQUIT ends a job as SIGTERM does, and the hint names a way to keep it running.
func TestHangup(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		signal syscall.Signal
		status int
		words  string
	}{
		{syscall.SIGHUP, hungUp, "'nohup cairn …' or 'systemd-run cairn …'"},
		{syscall.SIGQUIT, quit, "cairn: error: interrupted (quit)"},
	} {
		t.Run(tc.signal.String(), func(t *testing.T) {
			t.Parallel()
			stdin, feed := pipe(t)
			dir := t.TempDir()
			j := start(t, stdin, "make", "--progress=json", filepath.Join(dir, "x.caibx"), "-")
			stdin.Close()
			if _, err := feed.Write(testimages.Random(5, 8*mib)); err != nil {
				t.Fatal(err)
			}
			j.stderr.await(t, `"event":"progress"`)
			j.signal(t, tc.signal)
			if r := j.wait(t); r.status != tc.status || !strings.Contains(r.stderr, tc.words) {
				t.Errorf("exit status %d, want %d with %s\n%s", r.status, tc.status, tc.words, r.stderr)
			}
			wantNothingMade(t, dir, true)
		})
	}
}

// TestNohup: a SIGHUP that is ignored at the start stays ignored.
func TestNohup(t *testing.T) {
	t.Parallel()
	stdin, feed := pipe(t)
	index := filepath.Join(t.TempDir(), "x.caibx")
	cmd := exec.CommandContext(t.Context(), need.Tool(t, "nohup"), need.Tool(t, "cairn"), "make", "--progress=json", index, "-")
	stderr := newWatched()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stderr, stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	if _, err := feed.Write(testimages.Random(5, 8*mib)); err != nil {
		t.Fatal(err)
	}
	stderr.await(t, `"event":"progress"`)
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("make under nohup, after SIGHUP: %v\n%s", err, stderr)
	}
}

// TestClosedTerminal: after its terminal is closed, the server cannot write to it, and gets SIGHUP. It cleans up.
func TestClosedTerminal(t *testing.T) {
	t.Parallel()
	r := noise(t, 1000)
	dir := socketDir(t)
	pidfile, socket := filepath.Join(dir, "pid"), filepath.Join(dir, "socket")
	master, terminal := openTerminal(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, need.Tool(t, "cairn"), "serve", r.index("b"), "--listen", "unix:"+socket, "--pidfile", pidfile)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	awaitFile(t, pidfile)
	useNBDCopy(t, "nbd+unix:///b?socket="+socket, r)
	master.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
	wantNone(t, pidfile)
	wantNone(t, socket)
}

// openTerminal returns both ends of a new pseudoterminal.
func openTerminal(t testing.TB) (master, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		need.Missing(t, "there are no pseudoterminals here")
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprint("/dev/pts/", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, terminal
}

// TestMessagesUnread: a stderr without a reader ends no job.
func TestMessagesUnread(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	read, stderr := pipe(t)
	read.Close()
	out := filepath.Join(t.TempDir(), "out")
	for _, args := range [][]string{
		{"assemble", r.index("b"), out, "--progress=json"},
		{"assemble", r.index("b"), out},
		{"verify", r.index("b")},
		{"make", filepath.Join(t.TempDir(), "x.caibx"), r.b},
	} {
		cmd := exec.CommandContext(t.Context(), need.Tool(t, "cairn"), forgetful(args)...)
		cmd.Stderr = stderr
		if err := cmd.Run(); err != nil {
			t.Errorf("cairn %q without a reader of stderr: %v", args, err)
		}
	}
	wantSame(t, out, r.b)
}

// TestResultsUnread: a command whose result is its output ends silently when the reader is gone, and a server or job
// continues.
func TestResultsUnread(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	read, stdout := pipe(t)
	read.Close()
	for _, tc := range []struct {
		args   []string
		status int
	}{
		{[]string{"cat", r.index("b")}, unread},
		{[]string{"info", r.index("b")}, unread},
		{[]string{"assemble", "--json", r.index("b"), filepath.Join(t.TempDir(), "out")}, 0},
	} {
		cmd := exec.CommandContext(t.Context(), need.Tool(t, "cairn"), forgetful(tc.args)...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = stdout, &stderr
		_ = cmd.Run()
		if got := cmd.ProcessState.ExitCode(); got != tc.status || tc.status != 0 && stderr.Len() > 0 {
			t.Errorf("cairn %q without a reader of stdout: exit status %d, want %d\n%s", tc.args, got, tc.status, &stderr)
		}
	}
	socket := filepath.Join(socketDir(t), "socket")
	pidfile := filepath.Join(t.TempDir(), "pid")
	cmd := exec.CommandContext(t.Context(), need.Tool(t, "cairn"), "serve", r.index("b"), "--listen", "unix:"+socket, "--pidfile", pidfile)
	cmd.Stdout = stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, pidfile)
	useNBDCopy(t, "nbd+unix:///b?socket="+socket, r)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
}

// TestInterruptedHook: Ctrl-C in a terminal goes to all processes of the group. The program of --exec, which may be
// changing a boot loader, gets only SIGTERM, and time to finish.
func TestInterruptedHook(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	for _, finishes := range []bool{false, true} {
		t.Run(fmt.Sprint("finishes ", finishes), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			script := "#!/bin/sh\ntrap 'echo interrupted >&2; exit 9' INT\n" +
				"trap 'echo terminated; exit " + map[bool]string{false: "1", true: "0"}[finishes] + "' TERM\necho ready\nwhile :; do sleep 0.01; done\n"
			hook := writeFile(t, dir, "hook", []byte(script))
			if err := os.Chmod(hook, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), need.Tool(t, "cairn"), "assemble", "--state", "", r.index("b"), filepath.Join(dir, "out"), "--exec", hook)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			for lines := bufio.NewScanner(stderr); lines.Scan(); {
				fmt.Fprintln(&said, lines.Text())
				if lines.Text() == "ready" {
					if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
						t.Fatal(err)
					}
				}
			}
			_ = cmd.Wait()
			want, words := interrupted, "out holds the image"
			if finishes {
				want, words = 0, "terminated"
			}
			if got := cmd.ProcessState.ExitCode(); got != want || !strings.Contains(said.String(), words) || !strings.Contains(said.String(), "terminated") {
				t.Errorf("exit status %d, want %d with %q\n%s", got, want, words, &said)
			}
		})
	}
}

// TestStoppedJob: the time for which a job was stopped (Ctrl-Z, SIGSTOP) does not count towards its patience.
func TestStoppedJob(t *testing.T) {
	t.Parallel()
	if os.Getenv("CAIRN_LONG") == "" {
		t.Skip("the job is stopped for ten seconds; CAIRN_LONG=1 runs it")
	}
	r := noise(t, mib)
	gone := listenAgain(t, "127.0.0.1:0", r.dir)
	address := gone.Listener.Addr().String()
	gone.Close()
	out := filepath.Join(t.TempDir(), "out")
	j := start(t, nil, "assemble", "http://"+address+"/b.caibx", out, "--patience", "8s")
	j.stderr.await(t, "waiting for an answer")
	j.signal(t, syscall.SIGSTOP)
	time.Sleep(10 * time.Second)
	back := listenAgain(t, address, r.dir)
	defer back.Close()
	j.signal(t, syscall.SIGCONT)
	if got := j.wait(t); got.status != 0 {
		t.Errorf("a job that was stopped and goes on: %+v", got)
	}
	wantSame(t, out, r.b)
}

// TestStoppedDownloads: stopping the process group of a job (SIGSTOP) pauses it, however long it is stopped. The server
// closes its connections meanwhile. The job goes on without a failure, and the store keeps its place before the next one.
// With CAIRN_LONG=1 the job is stopped for longer than its own timeouts.
func TestStoppedDownloads(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := writeFile(t, dir, "image", testimages.Random(1, 64*mib))
	cairn(t, "make", filepath.Join(dir, "x.caibx"), image, "--chunk-size", "16M:16M:16M", "--compression", "none")
	slow := storetest.StartNginx(t, nginx.Options{Root: dir, Log: true, Directives: []string{
		"limit_rate 4m;", "send_timeout 2s;", "location = /status { stub_status; access_log off; }",
	}})
	second := newNginx(t, dir)
	first := "http://" + slow.Address()
	out := filepath.Join(t.TempDir(), "out")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, need.Tool(t, "cairn"), "assemble", "--state", "", first+"/x.caibx", out, "--patience", "1s",
		"--max-download", "1GiB", // then no request is sent twice because it is slow
		"-s", first+"/default.castr", "-s", second.url+"/default.castr")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	signal := func(s syscall.Signal) {
		if err := syscall.Kill(-cmd.Process.Pid, s); err != nil && len(done) == 0 {
			t.Fatal(err)
		}
	}
	awaitWriting(t, first, func(n int) bool { return n > 2 || len(done) > 0 }) // a busy machine may miss the downloads
	signal(syscall.SIGSTOP)
	awaitWriting(t, first, func(n int) bool { return n <= 1 })
	if os.Getenv("CAIRN_LONG") != "" {
		time.Sleep(70 * time.Second)
	}
	signal(syscall.SIGCONT)
	if err := <-done; err != nil {
		t.Errorf("a job that was stopped and goes on: %v\n%s", err, &stderr)
	}
	wantSame(t, out, image)
	if text := stderr.String(); strings.Contains(text, "waiting") || strings.Contains(text, "warning") {
		t.Errorf("the job prints\n%s", text)
	}
	if n := len(second.asked(t)); n > 0 {
		t.Errorf("%d chunks are requested from the second store", n)
	}
}

// awaitWriting waits until the number of answers that nginx is writing, that of this question included, is right.
func awaitWriting(t *testing.T, server string, right func(n int) bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		answer, err := http.Get(server + "/status")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		_, rest, found := strings.Cut(string(text), "Writing: ")
		var n int
		if _, scanErr := fmt.Sscan(rest, &n); err != nil || !found || scanErr != nil {
			t.Fatalf("nginx tells %q, %v", text, err)
		}
		if right(n) {
			return
		}
	}
	t.Fatal("nginx went on writing")
}
