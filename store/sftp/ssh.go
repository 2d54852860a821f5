package sftp

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"cairn/internal/plaintext"
	"cairn/internal/starter"
	"cairn/store"
)

// process is a running ssh. Its input ends when this program is killed, so it ends then too.
type process struct {
	started *starter.Process
	in      *os.File // ssh's stdin
	out     *os.File // ssh's stdout
	stderr  tail     // ssh's stderr
	exited  chan struct{}
}

// grace is the time ssh may take to end by itself, and then its children to close its stderr.
const grace = 2 * time.Second

// startProcess starts ssh. It has a process group of its own: kill reaches ssh's children (ProxyCommand, ProxyJump) too.
// An interrupt from the terminal reaches only this program, which then ends ssh properly.
func startProcess(at Location, o Options) (*process, error) {
	in, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	stdout, out, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close(), stdin.Close())
	}
	messages, errOut, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close(), stdin.Close(), stdout.Close(), out.Close())
	}
	p := &process{in: stdin, out: stdout, exited: make(chan struct{})}
	p.started, err = o.Starter.Start(Command(at, o), in, out, errOut)
	_, _, _ = in.Close(), out.Close(), errOut.Close() // ssh has its own copies
	if err != nil {
		_, _, _ = stdin.Close(), stdout.Close(), messages.Close()
		return nil, err
	}
	go p.await(messages)
	return p, nil
}

// await reads ssh's stderr, and waits for the end of ssh.
func (p *process) await(messages *os.File) {
	read := make(chan struct{})
	go func() {
		_, _ = io.Copy(&p.stderr, messages)
		close(read)
	}()
	_ = p.started.Wait() // the connection's end has said it
	select {
	case <-read:
	case <-time.After(grace): // ssh's children still have it open
	}
	_ = messages.Close()
	<-read
	close(p.exited)
}

func (p *process) kill() {
	select {
	case <-p.exited:
	default:
		p.started.Signal(syscall.SIGKILL)
	}
}

// stop closes ssh's input, kills ssh if it does not exit within the grace period, and frees its
// resources.
func (p *process) stop() {
	p.in.Close()
	select {
	case <-p.exited:
	case <-time.After(grace):
		p.kill()
		<-p.exited
	}
	p.out.Close()
}

// sshArgs returns the arguments for SFTP on a host. They keep ssh from prompting, and end the
// options before the host.
func sshArgs(at Location, o Options) []string {
	seconds := int(max(1, o.Patience/time.Second))
	args := []string{
		"-oBatchMode=yes", "-oControlMaster=no", "-oForwardX11=no", "-oForwardAgent=no", "-oClearAllForwardings=yes",
		"-oPermitLocalCommand=no", "-oRequestTTY=no", "-oRemoteCommand=none",
		fmt.Sprintf("-oConnectTimeout=%d", seconds),
		fmt.Sprintf("-oServerAliveInterval=%d", max(1, seconds/3)), "-oServerAliveCountMax=3",
	}
	if o.Config != "" {
		args = append(args, "-F", o.Config)
	}
	if at.user != "" {
		args = append(args, "-l", at.user)
	}
	if at.port != "" {
		args = append(args, "-p", at.port)
	}
	return append(args, "-s", "--", at.host, "sftp")
}

// tail keeps the last tailSize bytes written to it.
type tail struct {
	mu   sync.Mutex
	last []byte
}

const tailSize = 1 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = append(t.last, p[max(0, len(p)-tailSize):]...)
	t.last = t.last[max(0, len(t.last)-tailSize):]
	return len(p), nil
}

// String returns the text on one line, without characters that could confuse a terminal.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range strings.Lines(strings.ToValidUTF8(string(t.last), "")) {
		line = plaintext.Clean(strings.TrimSpace(line), tailSize)
		if strings.Trim(line, "@ ") != "" { // ssh frames its warnings in lines of @
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// explainStart returns the error for an ssh that did not start.
func explainStart(program string, err error) error {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sftp needs the program %s (install openssh-client): %w", program, err)
	}
	return fmt.Errorf("starting %s: %w", program, err)
}

// explainConnect returns the error for a failed connection, from ssh's messages. It is
// store.ErrUnavailable unless the server or ssh refused for a permanent reason.
func explainConnect(words string, err error) error {
	if words != "" {
		err = fmt.Errorf("%w: ssh says: %s", err, words)
	}
	has := func(texts ...string) bool {
		for _, text := range texts {
			if strings.Contains(words, text) {
				return true
			}
		}
		return false
	}
	switch {
	case has("Host key verification failed", "HOST IDENTIFICATION HAS CHANGED"):
		return fmt.Errorf("%w (connect once with ssh by hand, and compare the host's key): %w", ErrHostKey, err)
	case has("Permission denied", "Too many authentication failures"):
		return fmt.Errorf("%w: %w", ErrLogin, err)
	case has("subsystem request failed"):
		return fmt.Errorf("%w (the server offers no sftp)", err)
	case has("Bad configuration option", "bad configuration options", "Bad owner or permissions",
		"keyword", "Can't open user config file", "Unable to negotiate"),
		errors.Is(err, errGarbled):
		return err
	}
	return &store.UnavailableError{Err: err}
}
