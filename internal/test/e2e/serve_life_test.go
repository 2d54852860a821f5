package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/internal/test/need"
)

// TestServeCaptive: libnbd's clients start the server themselves and pass it a socket. Its standard output
// belongs to the client, so the server prints nothing.
func TestServeCaptive(t *testing.T) {
	t.Parallel()
	r := noise(t, 300_001)
	got := run(t, "nbdinfo", "--size", "--", "[", "cairn", "serve", r.index("b"), "]")
	if got.status != 0 || got.stdout != "300032\n" || got.stderr != "" {
		t.Errorf("nbdinfo: %+v", got)
	}
	out := filepath.Join(t.TempDir(), "out")
	must(t, "nbdcopy", "--", "[", "cairn", "serve", r.index("b"), "]", out)
	wantCopy(t, out, r.b)
	if list := must(t, "nbdinfo", "--list", "--", "[", "cairn", "serve", "--watch", r.dir, "]"); !strings.Contains(list, `export="b"`) {
		t.Errorf("nbdinfo --list says:\n%s", list)
	}
}

// TestServeSocketActivation: systemd's launcher passes two sockets, and starts the server for the first client, whose
// connection waits.
func TestServeSocketActivation(t *testing.T) {
	t.Parallel()
	r := noise(t, 300_001)
	dir := socketDir(t)
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	pidfile := filepath.Join(dir, "pid")
	cmd := exec.Command(need.Tool(t, "systemd-socket-activate"), "-l", one, "-l", two,
		need.Tool(t, "cairn"), "serve", r.index("b"), "--pidfile", pidfile)
	stderr := newWatched()
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	stderr.await(t, "Listening on "+two)
	for _, socket := range []string{one, two} {
		useNBDCopy(t, "nbd+unix:///b?socket="+socket, r)
	}
	if pid := readPID(t, pidfile); pid != cmd.Process.Pid { // the launcher executes the server
		t.Errorf("the pidfile has %d, want %d", pid, cmd.Process.Pid)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the server ended with %v\n%s", err, stderr)
	}
	if _, err := os.Lstat(one); err != nil {
		t.Errorf("the socket, which is not the server's, is gone: %v", err)
	}
	wantNone(t, pidfile)
}

// awaitFile waits until a file exists.
func awaitFile(t testing.TB, path string) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return
		}
	}
	t.Fatalf("%s is not there in time", path)
}

func readPID(t testing.TB, path string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSuffix(string(text), "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestServeHandedNoSocket: a passed descriptor must be a listening socket.
func TestServeHandedNoSocket(t *testing.T) {
	t.Parallel()
	r := noise(t, 1000)
	script := `LISTEN_PID=$$ LISTEN_FDS=1 exec cairn serve "$0" 3</dev/null`
	got := run(t, "sh", "-c", script, r.index("b"))
	checkFailed(t, got, failed, "taking over file descriptor 3", nil)
	got = run(t, "sh", "-c", strings.Replace(script, "FDS=1", "FDS=x", 1), r.index("b"))
	checkFailed(t, got, failed, "LISTEN_FDS", nil)
}

// TestServeTellsSystemd: the server sends READY when clients can connect, and STOPPING when they cannot any more.
func TestServeTellsSystemd(t *testing.T) {
	r := noise(t, 1000)
	notices := filepath.Join(socketDir(t), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notices, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetReadDeadline(time.Now().Add(patience))
	next := func() string {
		p := make([]byte, 4096)
		n, err := l.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		return string(p[:n])
	}
	t.Setenv("NOTIFY_SOCKET", notices)
	socket := filepath.Join(socketDir(t), "socket")
	s := start(t, nil, "serve", r.index("b"), "--listen", "unix:"+socket)
	if got := next(); got != "READY=1" {
		t.Errorf("systemd is told %q", got)
	}
	useNBDCopy(t, "nbd+unix:///b?socket="+socket, r)
	s.signal(t, syscall.SIGTERM)
	if got := next(); got != "STOPPING=1" {
		t.Errorf("systemd is told %q", got)
	}
	if got := s.wait(t); got.status != 0 {
		t.Errorf("%+v", got)
	}
}

// TestServePidfile: the file exists when the URIs are printed, holds the server's number, and is removed at its end.
// --print-uri=false prints no URI.
func TestServePidfile(t *testing.T) {
	t.Parallel()
	r := noise(t, 1000)
	dir := socketDir(t)
	pidfile, socket := filepath.Join(dir, "pid"), filepath.Join(dir, "socket")
	s := start(t, nil, "serve", r.index("b"), "--listen", "unix:"+socket, "--pidfile", pidfile, "--print-uri=false")
	awaitFile(t, pidfile)
	if pid := readPID(t, pidfile); pid != s.cmd.Process.Pid {
		t.Errorf("the pidfile has %d, want %d", pid, s.cmd.Process.Pid)
	}
	useNBDCopy(t, "nbd+unix:///b?socket="+socket, r)
	s.signal(t, syscall.SIGINT)
	if got := s.wait(t); got.status != 0 || got.stdout != "" {
		t.Errorf("%+v", got)
	}
	wantNone(t, pidfile)
	wantNone(t, socket)
	fails(t, notFound, "absent/pid", "serve", r.index("b"), "--pidfile", filepath.Join(dir, "absent/pid"))
}

// TestServeExitWithParent: the server ends with its parent process, however that ends, and not earlier.
func TestServeExitWithParent(t *testing.T) {
	t.Parallel()
	r := noise(t, 1000)
	socket := filepath.Join(socketDir(t), "socket")
	// The pipe stays open until the server ends.
	parent := exec.Command("sh", "-c", `cairn serve "$0" --exit-with-parent --listen "unix:$1" & wait`, r.index("b"), socket)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	useNBDCopy(t, "nbd+unix:///b?socket="+socket, r)
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, lines)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("the server goes on without its parent")
	}
	wantNone(t, socket)
	_ = parent.Wait()
}

func TestServeSocketMode(t *testing.T) {
	t.Parallel()
	r := noise(t, 1000)
	for _, tc := range []struct {
		args []string
		want os.FileMode
	}{{nil, 0o600}, {[]string{"--socket-mode", "0660"}, 0o660}} {
		socket := filepath.Join(socketDir(t), "socket")
		serve(t, 1, append([]string{r.index("b"), "--listen", "unix:" + socket}, tc.args...)...)
		if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != tc.want {
			t.Errorf("serve %q: the socket is %v, want %v", tc.args, info.Mode(), tc.want)
		}
	}
	s := serve(t, 1, r.index("b"))
	_, socket, _ := strings.Cut(s.uris[0], "?socket=")
	if info, err := os.Stat(filepath.Dir(socket)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the default socket's directory is %v", info.Mode())
	}
	fails(t, 2, "socket-mode", "serve", r.index("b"), "--socket-mode", "rw")
}

// TestServeWatch: new images are served without a restart. A name refers to a new image for new clients, while
// a connected client keeps its image.
func TestServeWatch(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	dir := t.TempDir()
	uri := serve(t, 1, "--watch", dir, "-s", filepath.Join(r.dir, "default.castr")).uris[0]
	at := func(name string) string { return strings.Replace(uri, ":///", ":///"+name, 1) }
	publishAs := func(name string) {
		t.Helper()
		must(t, "cp", r.index(name), filepath.Join(dir, "new"))
		must(t, "mv", filepath.Join(dir, "new"), filepath.Join(dir, "os.caibx"))
	}
	same := func(uri, image string) {
		t.Helper()
		must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, image)
	}
	unknown := func(name string) {
		t.Helper()
		if got := run(t, "qemu-img", "info", at(name)); got.status == 0 {
			t.Errorf("%s is there: %+v", name, got)
		}
	}
	unknown("os")
	publishAs("a")
	same(at("os"), r.a)
	same(at(""), r.a)
	old := holdOpen(t, at("os"))
	publishAs("b")
	same(at("os"), r.b)
	old.compare(t, r.a)
	digest := func(name string) string {
		var info struct {
			Digest string `json:"index_digest"`
		}
		parse(t, cairn(t, "info", "--json", r.index(name)), &info)
		return info.Digest
	}
	same(at("os@"+digest("a")), r.a) // while the old client is connected
	old.leave(t)
	unknown("os@" + digest("a"))
	same(at("os@"+digest("b")), r.b)
	must(t, "truncate", "-s", "200", filepath.Join(dir, "os.caibx"))
	same(at("os"), r.b)
	must(t, "rm", filepath.Join(dir, "os.caibx"))
	unknown("os")
	if list := run(t, "nbdinfo", "--list", uri); strings.Contains(list.stdout, "export=") {
		t.Errorf("nbdinfo --list of nothing: %+v", list)
	}
}

// holder is an nbdsh that has an export open and reads on command.
type holder struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func holdOpen(t testing.TB, uri string) *holder {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	h := &holder{cmd: exec.CommandContext(ctx, need.Tool(t, "nbdsh"), "-c", `
import sys
h.set_uri_allow_local_file(True)
h.connect_uri("`+uri+`")
print("open", flush=True)
for line in sys.stdin:
    want = open(line.rstrip("\n"), "rb").read()
    got = b"".join(bytes(h.pread(min(1 << 20, h.get_size() - at), at)) for at in range(0, h.get_size(), 1 << 20))
    print("same" if got == want else "DIFFERS", flush=True)
`)}
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	h.cmd.Stderr = os.Stderr
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h.want(t, "open\n")
	return h
}

func (h *holder) want(t testing.TB, line string) {
	t.Helper()
	if got, err := h.out.ReadString('\n'); got != line {
		t.Errorf("nbdsh says %q, %v, want %q", got, err, line)
	}
}

// compare reads the whole export and compares it with the file.
func (h *holder) compare(t testing.TB, path string) {
	t.Helper()
	fmt.Fprintln(h.in, path)
	h.want(t, "same\n")
}

func (h *holder) leave(t testing.TB) {
	t.Helper()
	h.in.Close()
	if err := h.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestServeHostile: a thousand stuck connections of each kind use little memory, and neither connected nor new
// clients notice them.
func TestServeHostile(t *testing.T) {
	t.Parallel()
	r := noise(t, 2*mib)
	socket := filepath.Join(socketDir(t), "socket")
	s := serve(t, 1, r.index("b"), "--listen", "unix:"+socket, "--max-in-flight", "64MiB")
	bystander := holdOpen(t, s.uris[0])
	bystander.compare(t, r.b)
	before := resident(t, s.cmd.Process.Pid)
	const option = "IHAVEOPT\x00\x00\x00"
	const greeting = "\x00\x00\x00\x03"
	// Connections without a chosen export are closed in favour of new ones. The others, which request 32 MiB
	// repeatedly and read no reply, hold 64 MiB together, and a MiB for each of 128 connections.
	for _, hostile := range []struct {
		what, said string
		chooses    bool
		grown      int64
	}{
		{"silence", "", false, 32 * mib},
		{"half a greeting", greeting[:3], false, 32 * mib},
		{"half an option", greeting + option, false, 32 * mib},
		{"an option without its data", greeting + option + "\x07\x00\x00\xff\xff\x00\x00\xff\xf9", false, 32 * mib},
		{"a huge option", greeting + option + "\x07\xff\xff\xff\xff", false, 32 * mib},
		{"many options", greeting + strings.Repeat(option+"\x03\x00\x00\x00\x00", 40), false, 32 * mib},
		{"reads of all", greeting + option + "\x01\x00\x00\x00\x00" +
			strings.Repeat("\x25\x60\x95\x13\x00\x00\x00\x00cookie..\x00\x00\x00\x00\x00\x00\x00\x00\x00\x1f\x00\x00", 50), true, 2 * (64 + 128) * mib},
	} {
		var all sync.WaitGroup
		conns := make([]net.Conn, 1000)
		for i := range conns {
			all.Go(func() {
				conn, err := net.Dial("unix", socket)
				if err != nil {
					t.Error(err)
					return
				}
				io.WriteString(conn, hostile.said) // the server may have closed the connection
				conns[i] = conn
			})
		}
		all.Wait()
		bystander.compare(t, r.b)
		if !hostile.chooses {
			useNBDCopy(t, s.uris[0], r)
		}
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
		most := resident(t, s.cmd.Process.Pid)
		t.Logf("%s: %d MiB at most, %d before", hostile.what, most/mib, before/mib)
		if most > before+hostile.grown {
			t.Errorf("%s: the server has grown from %d to %d MiB", hostile.what, before/mib, most/mib)
		}
	}
	awaitPlaces(t, socket, 8)
	useNBDCopy(t, s.uris[0], r)
	bystander.leave(t)
}

// awaitPlaces waits until the server has noticed the end of n of the connections that filled it.
func awaitPlaces(t testing.TB, socket string, n int) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		greeted := 0
		for range n {
			conn, err := net.Dial("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.ReadFull(conn, make([]byte, len("NBDMAGIC"))); err == nil {
				greeted++
			}
		}
		if greeted == n {
			return
		}
	}
	t.Fatalf("the server has no %d places", n)
}

// resident returns the peak memory of a process.
func resident(t testing.TB, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var kib int64
		if _, err := fmt.Sscanf(string(line), "VmHWM: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// TestServeRestart: a guest's reads continue while the server is killed and restarted repeatedly.
func TestServeRestart(t *testing.T) {
	t.Parallel()
	r := noise(t, 4*mib)
	socket := filepath.Join(socketDir(t), "socket")
	restart := func() *serving { return serve(t, 1, r.index("b"), "--listen", "unix:"+socket, "--verbose") }
	s := restart()
	var image struct {
		Digest string `json:"index_digest"`
	}
	parse(t, cairn(t, "info", "--json", r.index("b")), &image)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	guest := exec.CommandContext(ctx, need.Tool(t, "qemu-io"), "-r", "--image-opts",
		"driver=nbd,server.type=unix,server.path="+socket+",export=b@"+image.Digest+",reconnect-delay=60,open-timeout=60")
	in, err := guest.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out := newWatched()
	guest.Stdout, guest.Stderr = out, out
	if err := guest.Start(); err != nil {
		t.Fatal(err)
	}
	const rounds, reads = 5, 40
	for round := range rounds {
		for i := range reads {
			fmt.Fprintf(in, "read -v %d 512\n", (round*reads+i)*7919%8000*512)
		}
		s.stderr.await(t, "connected") // reconnects because of the reads: idle, qemu does not look for the server
		s.signal(t, syscall.SIGKILL)   // at any moment
		s.wait(t)
		s = restart()
	}
	fmt.Fprintln(in, "quit")
	in.Close()
	if err := guest.Wait(); err != nil {
		t.Errorf("qemu-io: %v", err)
	}
	if n := strings.Count(out.String(), "read 512/512 bytes"); n != rounds*reads || strings.Contains(out.String(), "failed") {
		t.Errorf("%d of %d reads succeeded:\n%.2000s", n, rounds*reads, out)
	}
	var script strings.Builder
	for i := range rounds * reads {
		fmt.Fprintf(&script, "read -v %d 512\n", i*7919%8000*512)
	}
	if local := runInput(t, script.String(), "qemu-io", "-f", "raw", "-r", r.b); hexdump(local.stdout) != hexdump(out.String()) {
		t.Error("the guest has read other bytes than the image's")
	}
}
