// Package starter starts programs for a process that may not start any itself. Before the process gives up that right,
// it starts this program once more, as a starter. The starter runs a fixed list of commands, and hands over their
// pipes. Programs get the environment of package childenv. The package does not know what they do.
package starter

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/internal/childenv"
)

// Command is a program with its arguments. A name without a slash is found in $PATH.
type Command struct {
	Program string
	Args    []string
}

// Starter starts commands in a process of its own. A nil Starter starts them in this process. It is safe for concurrent
// use.
type Starter struct {
	commands []Command
	process  *exec.Cmd
	conn     *net.UnixConn
}

// marker is the first argument of a starter.
const marker = "cairn-starter"

// request asks for a command by its number. It comes with the descriptors of stdin, stdout, stderr, and one end of a
// socket for an answer, signals and the outcome.
type request struct{ Command int }

const requestFiles = 4

// answer tells whether a command was started, and then its outcome. An empty text means success.
type answer struct{ Failed string }

// maxMessage limits a message between the processes. The largest one is the list of commands.
const maxMessage = 64 << 10

// New starts a starter for the commands. It ends when this process ends, and writes its own errors to messages.
func New(commands []Command, messages *os.File) (*Starter, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	defer theirs.Close()
	s := &Starter{commands: commands}
	s.process = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{marker}, Env: childenv.Environ(), Stderr: messages, ExtraFiles: []*os.File{theirs},
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, // a signal of the terminal must not reach it
	}
	if err := s.process.Start(); err != nil {
		return nil, fmt.Errorf("starting the starter of programs: %w", err)
	}
	if s.conn, err = packetConn(ours); err == nil {
		err = writeMessage(s.conn, commands)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("starting the starter of programs: %w", err)
	}
	return s, nil
}

// Close ends the starter. Programs that it started go on.
func (s *Starter) Close() {
	if s == nil {
		return
	}
	if s.conn != nil {
		_ = s.conn.Close()
	}
	_ = s.process.Wait() // it ends with its socket
}

// Process is a started program, the leader of a process group.
type Process struct {
	control *os.File // to the starter; nil for a child of this process

	mu      sync.Mutex // guards child until it has ended
	child   *exec.Cmd
	done    bool
	outcome func() error
}

// Start starts a command with these files. A Starter only starts commands that New was given.
func (s *Starter) Start(c Command, stdin, stdout, stderr *os.File) (*Process, error) {
	if s == nil {
		return startChild(c, stdin, stdout, stderr)
	}
	if _, err := exec.LookPath(c.Program); err != nil {
		return nil, err
	}
	number := slices.IndexFunc(s.commands, func(known Command) bool {
		return known.Program == c.Program && slices.Equal(known.Args, c.Args)
	})
	if number < 0 {
		return nil, fmt.Errorf("%s: %w: the command was not known when the process was confined", c.Program, os.ErrPermission)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	err = writeMessage(s.conn, request{number}, stdin, stdout, stderr, theirs)
	if err == nil {
		_ = theirs.Close() // the end of the starter ends the wait for its answer
		err = readAnswer(ours)
	}
	if err != nil {
		_ = ours.Close()
		return nil, err
	}
	return &Process{control: ours, outcome: sync.OnceValue(func() error { return readAnswer(ours) })}, nil
}

func startChild(c Command, stdin, stdout, stderr *os.File) (*Process, error) {
	p := &Process{child: exec.Command(c.Program, c.Args...)}
	p.child.Env = childenv.Environ()
	p.child.Stdin, p.child.Stdout, p.child.Stderr = stdin, stdout, stderr
	p.child.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.outcome = sync.OnceValue(p.child.Wait)
	return p, p.child.Start()
}

// Wait waits for the end of the program. It returns nil if the program succeeded.
func (p *Process) Wait() error {
	err := p.outcome()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.control != nil && !p.done {
		_ = p.control.Close()
	}
	p.done = true
	return err
}

// Signal sends a signal to the program's process group. It does nothing after Wait.
func (p *Process) Signal(signal syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.done:
	case p.control != nil:
		_, _ = p.control.Write([]byte{byte(signal)})
	default:
		_ = syscall.Kill(-p.child.Process.Pid, signal)
	}
}

// socketPair returns two connected sockets that keep the bounds of messages.
func socketPair() (a, b *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a pair of sockets: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "starter"), os.NewFile(uintptr(fds[1]), "starter"), nil
}

func packetConn(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	conn, is := c.(*net.UnixConn)
	if !is {
		_ = c.Close()
		return nil, errors.New("not a unix socket")
	}
	return conn, nil
}

func writeMessage(conn *net.UnixConn, message any, files ...*os.File) error {
	text, err := json.Marshal(message)
	if err != nil {
		return err
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = conn.WriteMsgUnix(text, rights, nil)
	return err
}

// readAnswer reads an answer of the starter.
func readAnswer(from *os.File) error {
	text := make([]byte, maxMessage)
	n, err := from.Read(text)
	if err != nil {
		return fmt.Errorf("the starter of programs has ended: %w", err)
	}
	var a answer
	if err := json.Unmarshal(text[:n], &a); err != nil {
		return err
	}
	if a.Failed != "" {
		return errors.New(a.Failed)
	}
	return nil
}
