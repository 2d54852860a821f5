package sftp

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"cairn/store"
)

// process is an ssh that runs. It gets the end of its input, and so ends, also when this program is killed.
type process struct {
	cmd    *exec.Cmd
	in     *os.File // what ssh reads
	out    *os.File // what ssh writes
	words  tail     // what ssh says
	exited chan struct{}
}

// grace is how long ssh may take to end by itself, and what it started to let go of its error output.
const grace = 2 * time.Second

func startProcess(program string, args []string) (*process, error) {
	in, stdin, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	stdout, out, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, in.Close(), stdin.Close())
	}
	p := &process{cmd: exec.Command(program, args...), in: stdin, out: stdout, exited: make(chan struct{})}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, out, &p.words
	p.cmd.WaitDelay = grace
	// A group of its own: what ssh starts (ProxyCommand, ProxyJump) is killed with it, and an interrupt from the
	// terminal reaches us, who then end it properly.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = p.cmd.Start()
	_, _ = in.Close(), out.Close() // ssh has them now
	if err != nil {
		_, _ = stdin.Close(), stdout.Close()
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // ProcessState has it
		close(p.exited)
	}()
	return p, nil
}

func (p *process) kill() {
	select {
	case <-p.exited:
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	}
}

// end ends the process, by force if it does not go at the end of its input, and frees what belongs to it.
func (p *process) end() {
	p.in.Close()
	select {
	case <-p.exited:
	case <-time.After(grace):
		p.kill()
		<-p.exited
	}
	p.out.Close()
}

// sshArgs asks for SFTP on a host. Nothing can make ssh wait for a person, and options end before the host.
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

// tail keeps the last of what is written to it.
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

// String is what was written on one line, without what could confuse a terminal.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lines []string
	for line := range strings.Lines(strings.ToValidUTF8(string(t.last), "")) {
		line = strings.TrimSpace(strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return -1
			}
			return r
		}, line))
		if strings.Trim(line, "@ ") != "" { // ssh frames its warnings in lines of @
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "; ")
}

// explainStart says why there is no ssh.
func explainStart(program string, err error) error {
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sftp needs the program %s (install openssh-client): %w", program, err)
	}
	return fmt.Errorf("starting %s: %w", program, err)
}

// explainConnect tells from what ssh said, words, why there is no connection: a later attempt may mend it unless
// ssh was refused, or refuses.
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
