//go:build linux && amd64

package callfault

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Fault is a failure of one call. The zero value lets every call succeed.
type Fault struct {
	Call  string // the kind of call
	N     int    // the number of the call among those of its kind, from 1
	Error unix.Errno
	// Jump sets the program's wall clock forward or back at the call, which succeeds if Error is 0. The times of files
	// stay those of the kernel.
	Jump time.Duration
}

func (f Fault) String() string {
	if f.Jump != 0 {
		return fmt.Sprintf("%s %d: the clock jumps by %v", f.Call, f.N, f.Jump)
	}
	return fmt.Sprintf("%s %d: %s", f.Call, f.N, errorName(f.Error))
}

func errorName(e unix.Errno) string {
	if e == Short {
		return "short"
	}
	return unix.ErrnoName(e)
}

// Program is a program to run.
type Program struct {
	Path  string
	Args  []string // without the program's name
	Env   []string // nil is the environment of this process
	Dir   string
	Files int           // the limit of descriptors; 0 is that of this process
	Limit time.Duration // after it the program is aborted, which is the result Hung
}

// Result is the result of a program that has ended.
type Result struct {
	Status         int // -1 after a signal
	Signal         unix.Signal
	Stdout, Stderr string
	Hung           bool
	Failed         string         // the call that failed, with its path; "" if the fault's call was not reached
	Counts         map[string]int // the calls of each kind
	Unknown        []string       // the numbers of calls that this package does not know
}

// Faults returns every fault of every counted call: each kind in the order of its name, each of its calls, each
// plausible error.
func (r Result) Faults() (all []Fault) {
	for _, c := range kinds() {
		for n := range r.Counts[c.name] {
			for _, e := range c.faults {
				all = append(all, Fault{Call: c.name, N: n + 1, Error: e})
			}
		}
	}
	return all
}

// ErrorsOf returns the plausible errors of a kind of call.
func ErrorsOf(name string) []unix.Errno {
	for _, c := range kinds() {
		if c.name == name {
			return c.faults
		}
	}
	return nil
}

// kinds returns all kinds of calls in the order of their names.
func kinds() []call {
	all := []call{duplicate, lock}
	for _, c := range calls {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b call) int { return cmp.Compare(a.name, b.name) })
	return all
}

// Process is a running program.
type Process struct {
	pid    int
	done   chan struct{}
	result Result // valid when done is closed
	err    error
}

// Run runs a program to its end.
func Run(p Program, f Fault) (Result, error) {
	running, err := Start(p, f)
	if err != nil {
		return Result{}, err
	}
	return running.Wait()
}

// Start starts a program.
func Start(p Program, f Fault) (*Process, error) {
	process := &Process{done: make(chan struct{})}
	started := make(chan error)
	go process.trace(p, f, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return process, nil
}

// Signal sends a signal to the program.
func (p *Process) Signal(s unix.Signal) {
	select {
	case <-p.done:
	default:
		_ = unix.Kill(p.pid, s) // it may have ended
	}
}

// Done returns a channel that is closed when the program has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait blocks until the program has ended.
func (p *Process) Wait() (Result, error) {
	<-p.done
	return p.result, p.err
}

// output is a file for the output of a program.
type output struct{ *os.File }

func newOutput(name string) (output, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return output{}, os.NewSyscallError("memfd_create", err)
	}
	return output{os.NewFile(uintptr(fd), name)}, nil
}

// text returns the written bytes.
func (o output) text() (string, error) {
	info, err := o.Stat()
	if err != nil {
		return "", err
	}
	p := make([]byte, info.Size())
	n, err := o.ReadAt(p, 0)
	if n == len(p) {
		err = nil
	}
	return string(p[:n]), err
}
