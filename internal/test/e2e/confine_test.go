package e2e

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"cairn/internal/confine"
	"cairn/internal/test/need"
	"cairn/store/storetest"
)

// confined makes the cairns of the test fail where the kernel cannot confine them, or skips it.
func confined(t *testing.T) {
	t.Helper()
	if err := confine.Supported(); err != nil {
		t.Skip(err)
	}
	t.Setenv("CAIRN_CONFINE", "require")
}

// wantConfined checks what the kernel says about a running cairn.
func wantConfined(t *testing.T, j *job) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", j.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("/proc/PID/status does not contain %q:\n%s", line, status)
		}
	}
}

// tokenServer is a web server over TLS that wants a token.
type tokenServer struct {
	*httptest.Server
	token    atomic.Pointer[string]
	asked    chan struct{} // closed by the first request for a chunk
	proceed  chan struct{} // chunks are sent when it is closed
	accepted atomic.Int64  // requests with the token
}

// newTokenServer serves a directory. Each request needs the current token.
func newTokenServer(t *testing.T, dir, token string) *tokenServer {
	g := &tokenServer{asked: make(chan struct{}), proceed: make(chan struct{})}
	g.token.Store(&token)
	files, first := http.FileServer(http.Dir(dir)), sync.OnceFunc(func() { close(g.asked) })
	g.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".cacnk") {
			first()
			<-g.proceed
		}
		if r.Header.Get("Authorization") != "Bearer "+*g.token.Load() {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		g.accepted.Add(1)
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(g.Close)
	return g
}

// certificate writes the server's certificate to a file and returns its name.
func (g *tokenServer) certificate(t *testing.T) string {
	return writeFile(t, t.TempDir(), "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.Certificate().Raw}))
}

// replaceFile replaces a file as a program does that rotates credentials.
func replaceFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.Rename(writeFile(t, filepath.Dir(path), "new", []byte(text)), path); err != nil {
		t.Fatal(err)
	}
}

// TestConfinedAssemble: a confined assemble does all of its work: it reads from a server with a token that is replaced,
// from an SFTP server over ssh, from a local store and a seed, keeps a cache, and runs a program.
func TestConfinedAssemble(t *testing.T) {
	confined(t)
	r, dir := publish(t, small(t)), t.TempDir()
	sshd := storetest.NewSSHD(t, "internal-sftp")
	ssh := writeFile(t, dir, "ssh", []byte("#!/bin/sh\nexec ssh -F "+sshd.Config+" \"$@\"\n"))
	hook := writeFile(t, dir, "hook", []byte("#!/bin/sh\ncat > "+filepath.Join(dir, "result")+"\n"))
	for _, program := range []string{ssh, hook} {
		if err := os.Chmod(program, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("CAIRN_SSH", ssh)
	g := newTokenServer(t, r.dir, "first")
	token := writeFile(t, mkdir(t, filepath.Join(dir, "secret")), "token", []byte("first\n"))
	out := filepath.Join(mkdir(t, filepath.Join(dir, "out")), "image")
	j := start(t, nil, "assemble", g.URL+"/b.caibx", out, "--ca-cert", g.certificate(t), "--bearer-token-file", token,
		"-s", g.URL+"/default.castr", "-c", filepath.Join(dir, "cache"), "--exec", hook, "--seed", r.a)
	<-g.asked
	wantConfined(t, j)
	replaceFile(t, token, "second\n")
	second := "second"
	g.token.Store(&second)
	close(g.proceed)
	if got := j.wait(t); got.status != 0 {
		t.Fatalf("assemble: %+v", got)
	}
	wantSame(t, out, r.b)
	if text, err := os.ReadFile(filepath.Join(dir, "result")); err != nil || !strings.Contains(string(text), `"target"`) {
		t.Errorf("the program of --exec read %q, %v", text, err)
	}

	far := "sftp://store" + r.dir
	out = filepath.Join(dir, "out", "over ssh")
	cairn(t, "assemble", far+"/b.caibx", out, "-s", filepath.Join(dir, "absent")+"|"+far+"/default.castr")
	wantSame(t, out, r.b)
}

// TestConfinedServe: a confined server does all of its work: it reads from a server with a token that is replaced,
// keeps an image cache, finds new indexes, and removes its socket and pid file.
func TestConfinedServe(t *testing.T) {
	confined(t)
	r, dir := publish(t, small(t)), socketDir(t)
	g := newTokenServer(t, r.dir, "first")
	close(g.proceed)
	token := writeFile(t, mkdir(t, filepath.Join(dir, "secret")), "token", []byte("first\n"))
	watch, socket, pid := mkdir(t, filepath.Join(dir, "watch")), filepath.Join(dir, "s"), filepath.Join(dir, "pid")
	j := start(t, nil, "serve", "--watch", watch, "-s", g.URL+"/default.castr", "--ca-cert", g.certificate(t),
		"--bearer-token-file", token, "--cache", filepath.Join(dir, "cache"), "--listen", "unix:"+socket, "--pidfile", pid,
		"--metrics", "unix:"+filepath.Join(dir, "m"), g.URL+"/b.caibx")
	j.stdout.await(t, "\n")
	wantConfined(t, j)
	useNBDCopy(t, "nbd+unix:///b?socket="+socket, r)
	replaceFile(t, token, "second\n")
	second, before := "second", g.accepted.Load()
	g.token.Store(&second)
	index, err := os.ReadFile(r.index("a"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, watch, "later.caibx", index)
	must(t, "nbdcopy", "nbd+unix:///later?socket="+socket, filepath.Join(dir, "copy"))
	wantSame(t, filepath.Join(dir, "copy"), r.a)
	if g.accepted.Load() == before {
		t.Error("no request had the new token")
	}
	metrics := must(t, "curl", "-sS", "--unix-socket", filepath.Join(dir, "m"), "http://cairn/metrics")
	if !strings.Contains(metrics, "\nprocess_open_fds ") {
		t.Errorf("the metrics lack those of the process:\n%s", metrics)
	}
	j.signal(t, syscall.SIGTERM)
	if got := j.wait(t); got.status != 0 || strings.Contains(got.stderr, "denied") {
		t.Errorf("serve: %+v", got)
	}
	for _, path := range []string{socket, pid} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

// denials returns the denied calls in a log of strace.
func denials(t *testing.T, log string) (lines []string) {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "EACCES") || strings.Contains(line, "EPERM") || strings.Contains(line, "EXDEV") {
			lines = append(lines, line)
		}
	}
	return lines
}

// traced returns strace's command line for a cairn, whose failed calls it logs.
func traced(t *testing.T, args ...string) (log string, command []string) {
	log = filepath.Join(t.TempDir(), "calls")
	return log, append([]string{"-f", "-qq", "-Z", "--seccomp-bpf", "-e", "trace=%file,%network,%process,kill,ioctl,prctl", "-o", log, "--",
		need.Tool(t, "cairn")}, args...)
}

// TestNothingDenied: the kernel denies a confined job no call that it makes. A denied call need not fail the job: it may
// make it forget a scan, or count a cache again.
func TestNothingDenied(t *testing.T) {
	need.Root(t) // else the kernel denies other things
	confined(t)
	r, dir := publish(t, small(t)), socketDir(t)
	web, s, state := newNginx(t, r.dir), newSlots(t, r, true), filepath.Join(dir, "state")
	for _, args := range [][]string{
		{"assemble", r.index("b"), filepath.Join(dir, "out"), "--seed", r.a, "-c", filepath.Join(dir, "cache")},
		{"assemble", r.index("b"), filepath.Join(dir, "out"), "--seed", s.a, "--state", state, "--verify-after", "all"},
		{"assemble", web.url + "/b.caibx", filepath.Join(dir, "web"), "-c", filepath.Join(dir, "new", "cache"), "--idle"},
		{"assemble", r.index("b"), s.b, "--seed", s.a, "--state", state, "--tail", "discard", "--verify-after", "all"},
		{"assemble", r.index("b"), "-", "--seed", s.a + "=" + r.index("a"), "--state", state},
		{"assemble", r.index("b"), filepath.Join(dir, "far"), "-s", "http://cairn.invalid/x|" + web.url + "/default.castr"},
		{"cat", web.url + "/b.caibx", "-c", filepath.Join(dir, "other", "cache")},
		{"verify", web.url + "/b.caibx", "-c", filepath.Join(dir, "other", "cache")},
		{"verify", r.index("b"), s.b},
		{"verify", web.url + "/b.caibx", r.b},
	} {
		log, command := traced(t, args...)
		if got := run(t, "strace", command...); got.status != 0 {
			t.Errorf("%q: status %d\n%s", args, got.status, got.stderr)
		}
		if text, err := os.ReadFile(log); err != nil || len(text) == 0 {
			t.Errorf("%q: strace has logged nothing: %v", args, err)
		}
		for _, line := range denials(t, log) {
			t.Errorf("%q: denied: %s", args, line)
		}
	}

	watch, socket := mkdir(t, filepath.Join(dir, "watch")), filepath.Join(dir, "s")
	log, command := traced(t, "serve", r.index("b"), "--record", filepath.Join(dir, "b.caprf"), "--record-time", "0", "--cache",
		filepath.Join(dir, "images"), "--listen", "unix:"+socket, "--pidfile", filepath.Join(dir, "pid"), "--metrics", "unix:"+filepath.Join(dir, "m"))
	j := startProgram(t, nil, "strace", command...)
	j.stdout.await(t, "\n")
	useNBDCopy(t, "nbd+unix:///b?socket="+socket, r)
	must(t, "curl", "-sS", "--unix-socket", filepath.Join(dir, "m"), "http://cairn/metrics")
	stopTraced(t, j, filepath.Join(dir, "pid"))
	late := filepath.Join(dir, "late.castr")
	log2, command := traced(t, "serve", "--watch", watch, "-s", late, "--listen", "unix:"+socket, "--pidfile", filepath.Join(dir, "pid"))
	j = startProgram(t, nil, "strace", command...)
	j.stdout.await(t, "\n")
	must(t, "cp", "-r", filepath.Join(r.dir, "default.castr"), late)
	must(t, "cp", r.index("b"), watch)
	useNBDCopy(t, "nbd+unix:///b?socket="+socket, r)
	stopTraced(t, j, filepath.Join(dir, "pid"))
	for _, line := range append(denials(t, log), denials(t, log2)...) {
		t.Errorf("serve: denied: %s", line)
	}
}

// stopTraced ends a traced server, whose process id is in a file.
func stopTraced(t *testing.T, j *job, pidfile string) {
	t.Helper()
	text, err := os.ReadFile(pidfile)
	if err != nil {
		t.Fatal(err)
	}
	must(t, "kill", strings.TrimSpace(string(text)))
	if got := j.wait(t); got.status != 0 {
		t.Errorf("serve: %+v", got)
	}
}

// TestKernelCannotConfine: on a kernel without Landlock, with an early one, or without filters of system calls, auto does
// its work and says nothing, and require fails before it writes anything.
func TestKernelCannotConfine(t *testing.T) {
	confined(t)
	r, dir := publish(t, small(t)), socketDir(t)
	for fault, words := range map[string]string{
		"landlock_create_ruleset:error=ENOSYS":     "no Landlock",
		"landlock_create_ruleset:error=EOPNOTSUPP": "not enabled at boot",
		"landlock_create_ruleset:error=EPERM":      "no Landlock", // of a container
		"landlock_create_ruleset:retval=1":         "version 1 of Landlock, want 3 (Linux 6.2)",
		"seccomp:error=EINVAL":                     "no filters of system calls",
	} {
		on := func(mode string, args ...string) []string {
			return append([]string{"-f", "-qq", "--signal=none", "-o", os.DevNull, "-e", "trace=landlock_create_ruleset,seccomp", "-e",
				"inject=" + fault, "-E", "CAIRN_CONFINE=" + mode, "--", need.Tool(t, "cairn")}, args...)
		}
		out, socket := filepath.Join(dir, "out"), filepath.Join(dir, "s")
		assemble := []string{"assemble", r.index("b"), out, "-c", filepath.Join(dir, "cache"), "--state", filepath.Join(dir, "state")}
		serve := []string{"serve", r.index("b"), "--listen", "unix:" + socket, "--cache", filepath.Join(dir, "cache")}
		for _, args := range [][]string{assemble, serve, {"cat", r.index("b")}, {"verify", r.index("b"), r.b}} {
			checkFailed(t, run(t, "strace", on("require", args...)...), failed, words, args)
			wantOnly(t, dir)
		}
		if got := run(t, "strace", on("auto", assemble...)...); got.status != 0 || strings.Contains(got.stderr, "Landlock") {
			t.Errorf("%s: assemble: %+v", fault, got)
		}
		wantSame(t, out, r.b)
		must(t, "rm", "-r", out, filepath.Join(dir, "cache"))
	}
}

// TestServeUser: the server becomes the user of --user when its sockets are open, keeps nothing of root, and works.
func TestServeUser(t *testing.T) {
	need.Root(t)
	confined(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	r, dir := noise(t, 1000), socketDir(t)
	fails(t, failed, `there is no user "no-such-user"`, "serve", r.index("b"), "--user", "no-such-user")
	fails(t, notFound, "nobody cannot write to "+dir, "serve", r.index("b"), "--user", "nobody", "--cache", dir)
	open := func(path string) {
		t.Helper()
		for ; path != "/" && path != os.TempDir(); path = filepath.Dir(path) {
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	open(r.dir)
	open(dir)
	socket := filepath.Join(dir, "s")
	j := start(t, nil, "serve", r.index("b"), "--listen", "unix:"+socket, "--user", "nobody")
	j.stdout.await(t, "\n")
	wantConfined(t, j)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", j.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"\nUid:\t" + strings.Repeat(nobody.Uid+"\t", 3) + nobody.Uid + "\n", "\nCapPrm:\t0000000000000000\n", "\nCapEff:\t0000000000000000\n",
	} {
		if !strings.Contains(string(status), line) {
			t.Errorf("/proc/PID/status does not contain %q:\n%s", line, status)
		}
	}
	useNBDCopy(t, "nbd+unix:///b?socket="+socket, r)
	j.signal(t, syscall.SIGTERM)
	if got := j.wait(t); got.status != 0 {
		t.Errorf("serve: %+v", got)
	}
}
