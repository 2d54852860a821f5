package storetest

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"cairn/internal/test/need"
)

// SSHD runs a real sshd with its own keys and configuration on a port of 127.0.0.1. Each connection
// has its own process, so a test can stop, kill and count them. It stops at the end of the test.
type SSHD struct {
	// Config is an ssh_config with three hosts. "store" logs in as the user of the test, and
	// "nobody" as nobody, which has few permissions. "stranger" does not know the host's key.
	Config string

	t           testing.TB
	program     string
	server      string // sshd_config
	log         string
	listener    net.Listener
	accepted    atomic.Int64
	cutAfter    atomic.Int64 // bytes after which a connection is cut; 0 means never
	maxAccepted atomic.Int64 // accepted connections; 0 means all
	work        sync.WaitGroup
	mu          sync.Mutex
	sessions    map[*exec.Cmd]net.Conn
}

// NewSSHD starts an SSHD. It appends lines to sshd_config. subsystem is the SFTP server, such as
// "internal-sftp".
func NewSSHD(t testing.TB, subsystem string, lines ...string) *SSHD {
	t.Helper()
	if os.Geteuid() == 0 {
		need.Tool(t, "ssh")
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // sshd's privilege separation directory; the boot makes it
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} { // sshd reads the files as the user that logs in
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &SSHD{
		Config: filepath.Join(dir, "ssh_config"), t: t, program: sshdPath(t), server: filepath.Join(dir, "sshd_config"),
		log: filepath.Join(dir, "log"), listener: listener, sessions: map[*exec.Cmd]net.Conn{},
	}
	s.writeConfig(dir, subsystem, lines)
	s.work.Go(s.acceptAll)
	t.Cleanup(s.stop)
	return s
}

// sshdPath returns the absolute path that sshd requires. Users other than root rarely have sbin in
// their PATH.
func sshdPath(t testing.TB) string {
	if _, err := os.Stat("/usr/sbin/sshd"); err == nil {
		return "/usr/sbin/sshd"
	}
	return need.Tool(t, "sshd")
}

func (s *SSHD) writeConfig(dir, subsystem string, lines []string) {
	s.t.Helper()
	keygen := need.Tool(s.t, "ssh-keygen")
	for _, key := range []string{"host", "id"} {
		out, err := exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput()
		if err != nil {
			s.t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	me, err := user.Current()
	if err != nil {
		s.t.Fatal(err)
	}
	port := s.listener.Addr().(*net.TCPAddr).Port
	hostKey := s.readFile(filepath.Join(dir, "host.pub"))
	s.writeFile(filepath.Join(dir, "authorized"), s.readFile(filepath.Join(dir, "id.pub")))
	s.writeFile(filepath.Join(dir, "known_hosts"), fmt.Sprintf("[127.0.0.1]:%d %s", port, hostKey))
	s.writeFile(filepath.Join(dir, "empty"), "")
	s.writeFile(s.server, fmt.Sprintf(`
HostKey %[1]s/host
AuthorizedKeysFile %[1]s/authorized
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
Subsystem sftp %[2]s
%[3]s
`, dir, subsystem, strings.Join(lines, "\n")))
	s.writeFile(s.Config, fmt.Sprintf(`
Host stranger
	UserKnownHostsFile %[1]s/empty
Host nobody
	User nobody
Host store nobody stranger
	HostName 127.0.0.1
	Port %[2]d
	User %[3]s
	IdentityFile %[1]s/id
	IdentitiesOnly yes
	IdentityAgent none
	StrictHostKeyChecking yes
	UserKnownHostsFile %[1]s/known_hosts
	GlobalKnownHostsFile %[1]s/empty
`, dir, port, me.Username))
}

func (s *SSHD) readFile(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

func (s *SSHD) writeFile(path, text string) {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// Accepted returns the number of accepted connections.
func (s *SSHD) Accepted() int { return int(s.accepted.Load()) }

// CutAfter kills sshd after that many bytes on a connection in either direction, from the next
// connection on; 0 means never.
func (s *SSHD) CutAfter(bytes int64) { s.cutAfter.Store(bytes) }

// Admit closes all connections after the first n immediately; 0 means none.
func (s *SSHD) Admit(n int64) { s.maxAccepted.Store(n) }

// Signal sends a signal to the process groups of all connections. SIGSTOP makes the server silent,
// SIGKILL breaks the connections.
func (s *SSHD) Signal(signal syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for cmd := range s.sessions {
		_ = syscall.Kill(-cmd.Process.Pid, signal) // the process may have ended
	}
}

// Refuse closes the listener, so new connections fail.
func (s *SSHD) Refuse() { s.listener.Close() }

func (s *SSHD) stop() {
	s.listener.Close()
	s.Signal(syscall.SIGCONT)
	s.Signal(syscall.SIGKILL)
	s.mu.Lock()
	for _, c := range s.sessions {
		c.Close()
	}
	s.mu.Unlock()
	s.work.Wait()
	if text, err := os.ReadFile(s.log); err == nil && s.t.Failed() {
		s.t.Logf("sshd: %s", text[max(0, len(text)-4000):])
	}
}

func (s *SSHD) acceptAll() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		n := s.accepted.Add(1)
		if most := s.maxAccepted.Load(); most > 0 && n > most {
			c.Close()
			continue
		}
		s.work.Go(func() { s.serveConn(c) })
	}
}

// serveConn runs sshd for one connection, as inetd does, and copies the bytes in both directions.
func (s *SSHD) serveConn(c net.Conn) {
	defer c.Close()
	cmd := exec.Command(s.program, "-i", "-E", s.log, "-f", s.server)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = nil
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Error(err)
		return
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Error(err)
		return
	}
	s.mu.Lock()
	err = cmd.Start()
	s.sessions[cmd] = c
	s.mu.Unlock()
	if err != nil {
		s.t.Error(err)
		return
	}
	cut := s.cutAfter.Load()
	pass := func(to io.Writer, from io.Reader) {
		if cut == 0 {
			_, _ = io.Copy(to, from)
		} else if n, _ := io.CopyN(to, from, cut); n == cut {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	}
	s.work.Go(func() {
		pass(in, c)
		_ = in.Close() // sshd may have ended
	})
	pass(c, out)
	c.Close()
	_ = cmd.Wait() // sshd was killed, or ended because its client did
	s.mu.Lock()
	delete(s.sessions, cmd)
	s.mu.Unlock()
}
