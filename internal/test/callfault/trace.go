//go:build linux && amd64

package callfault

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tracer traces a program. Its methods run in the thread that started it, as ptrace requires.
type tracer struct {
	fault   Fault
	main    int
	threads map[int]*thread
	jumped  bool // the wall clock has jumped
	begun   bool // the program has started a second thread: Go's runtime has started, main begins
	result  Result
}

// thread is a traced thread.
type thread struct {
	seen     bool                   // has stopped before
	time     uint64                 // the address to which the kernel is writing the wall clock's time, or 0
	foreign  bool                   // of a process that the program has forked
	restored func(*unix.PtraceRegs) // changes the registers at the exit; nil to leave them
}

const (
	options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACECLONE |
		unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC
	// ownChildren limits wait4 to the children and tracees of the calling thread. The thread may have other children,
	// so the program has a process group of its own.
	ownChildren = unix.WALL | unix.WNOTHREAD
)

// trace runs the program. The thread ends with it, which kills what might be left.
func (p *Process) trace(program Program, f Fault, started chan<- error) {
	runtime.LockOSThread() // and never unlock
	defer close(p.done)
	stdout, err := newOutput("stdout")
	if err != nil {
		started <- err
		return
	}
	defer stdout.Close()
	stderr, err := newOutput("stderr")
	if err != nil {
		started <- err
		return
	}
	defer stderr.Close()
	t := &tracer{fault: f, threads: map[int]*thread{}, result: Result{Counts: map[string]int{}}}
	if err := t.start(program, stdout, stderr); err != nil {
		started <- err
		return
	}
	p.pid = t.main
	started <- nil
	hung := make(chan bool, 1)
	timer := time.AfterFunc(program.Limit, func() {
		hung <- true
		_ = unix.Kill(p.pid, unix.SIGABRT) // Go prints its goroutines
		time.Sleep(time.Second)
		_ = unix.Kill(p.pid, unix.SIGKILL)
	})
	p.err = t.follow()
	p.result = t.result
	if !timer.Stop() {
		p.result.Hung = <-hung
	}
	var err1, err2 error
	p.result.Stdout, err1 = stdout.text()
	p.result.Stderr, err2 = stderr.text()
	p.err = errors.Join(p.err, err1, err2)
}

// start starts the program, which stops at its first instruction.
func (t *tracer) start(p Program, stdout, stderr output) error {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	env := p.Env
	if env == nil {
		env = os.Environ()
	}
	t.main, err = syscall.ForkExec(p.Path, append([]string{p.Path}, p.Args...), &syscall.ProcAttr{
		Dir: p.Dir, Env: env, Files: []uintptr{null.Fd(), stdout.Fd(), stderr.Fd()},
		Sys: &syscall.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		return fmt.Errorf("starting %s: %w", p.Path, err)
	}
	t.thread(t.main).seen = true
	var status unix.WaitStatus
	if _, err := wait(t.main, &status); err != nil {
		return err
	}
	if !status.Stopped() {
		return fmt.Errorf("starting %s: wait status %#x", p.Path, status)
	}
	if err := unix.PtraceSetOptions(t.main, options); err != nil {
		return os.NewSyscallError("ptrace", err)
	}
	if n := uint64(p.Files); n > 0 {
		if err := unix.Prlimit(t.main, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil {
			return os.NewSyscallError("prlimit", err)
		}
	}
	if t.fault.Jump != 0 {
		if err := disableVDSO(t.main); err != nil {
			return err
		}
	}
	return resume(t.main, 0)
}

// follow handles every stop until no thread is left.
func (t *tracer) follow() error {
	for {
		var status unix.WaitStatus
		tid, err := wait(-t.main, &status)
		switch {
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil:
			return os.NewSyscallError("wait4", err)
		case status.Stopped():
			err = t.stopped(tid, status)
		default:
			delete(t.threads, tid)
			if tid == t.main {
				t.result.Status, t.result.Signal = status.ExitStatus(), 0
				if status.Signaled() {
					t.result.Signal = status.Signal()
				}
			}
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // ESRCH: killed meanwhile
			return err
		}
	}
}

// stopped handles a stop and resumes the thread.
func (t *tracer) stopped(tid int, status unix.WaitStatus) error {
	th := t.thread(tid)
	isNew := !th.seen // a new one stops with SIGSTOP, maybe before its parent reports it
	th.seen = true
	signal := status.StopSignal()
	switch event := int(status) >> 16; {
	case signal == unix.SIGTRAP|0x80:
		return errors.Join(t.atCall(tid, th), resume(tid, 0))
	case event == unix.PTRACE_EVENT_FORK || event == unix.PTRACE_EVENT_VFORK:
		return errors.Join(t.markForked(tid), resume(tid, 0))
	case event == unix.PTRACE_EVENT_EXEC && th.foreign:
		delete(t.threads, tid)
		return unix.PtraceDetach(tid)
	case event == unix.PTRACE_EVENT_CLONE:
		t.begun = true
		return resume(tid, 0)
	case event != 0, isNew && signal == unix.SIGSTOP:
		return resume(tid, 0)
	}
	return resume(tid, signal)
}

// markForked marks the process that tid has forked.
func (t *tracer) markForked(tid int) error {
	child, err := unix.PtraceGetEventMsg(tid)
	if err != nil {
		return err
	}
	t.thread(int(child)).foreign = true
	return nil
}

// thread returns the thread of that number.
func (t *tracer) thread(tid int) *thread {
	if t.threads[tid] == nil {
		t.threads[tid] = &thread{}
	}
	return t.threads[tid]
}

// atCall handles the entry or the exit of a call.
func (t *tracer) atCall(tid int, th *thread) error {
	info, err := callInfo(tid)
	if err != nil {
		return err
	}
	switch info.op {
	case opEntry:
		return t.enter(tid, th, info)
	case opExit:
		if th.time != 0 {
			address := th.time
			th.time = 0
			return shiftTime(tid, address, t.fault.Jump)
		}
		restore := th.restored
		th.restored = nil
		if restore != nil {
			return changeRegisters(tid, restore)
		}
	}
	return nil
}

// enter counts a call, and applies the fault to it if it is the fault's.
func (t *tracer) enter(tid int, th *thread, info info) error {
	if info.number == unix.SYS_CLOCK_GETTIME && info.arguments[0] == unix.CLOCK_REALTIME && t.jumped {
		th.time = info.arguments[1]
	}
	c, counts := calls[info.number]
	if info.number == unix.SYS_FCNTL {
		c, counts = fcntlCall(info.arguments[1])
	}
	if t.begun && !counts && !others[info.number] {
		t.result.Unknown = append(t.result.Unknown, strconv.FormatUint(info.number, 10))
	}
	if !counts || !t.begun || c.fd >= 0 && ofRuntime(tid, int32(info.arguments[c.fd])) {
		return nil
	}
	t.result.Counts[c.name]++
	if c.name != t.fault.Call || t.result.Counts[c.name] != t.fault.N {
		return nil
	}
	t.result.Failed = describe(tid, c, info.arguments)
	if t.fault.Jump != 0 {
		t.jumped = true
	}
	if t.fault.Error == 0 {
		return nil
	}
	return changeRegisters(tid, func(r *unix.PtraceRegs) { t.apply(tid, th, c, r) })
}

// apply lets the call that a thread is about to enter fail, by its registers.
func (t *tracer) apply(tid int, th *thread, c call, r *unix.PtraceRegs) {
	original := *r
	restore := func(r *unix.PtraceRegs) { // all but the result and what every call overwrites
		rax, rcx, r11, rip, flags := r.Rax, r.Rcx, r.R11, r.Rip, r.Eflags
		*r = original
		r.Rax, r.Rcx, r.R11, r.Rip, r.Eflags = rax, rcx, r11, rip, flags
	}
	if t.fault.Error == Short {
		if !shorten(tid, c, r) {
			t.result.Failed = ""
		}
		th.restored = restore
		return
	}
	if c.name != "close" { // a failed close has closed
		r.Orig_rax = unix.SYS_GETPID // which does nothing
	}
	th.restored = func(r *unix.PtraceRegs) {
		restore(r)
		r.Orig_rax = ^uint64(0) // no restart
		r.Rax = uint64(-int64(t.fault.Error))
	}
}

// shorten halves the bytes of a call, to whole pages if there are several. It reports whether it could. A device does
// not transfer a part of a page.
func shorten(tid int, c call, r *unix.PtraceRegs) bool {
	length := []*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9}[c.length]
	if c.vectored() && *length == 1 { // one buffer: the same call without the vector
		vector := map[uint64]uint64{
			unix.SYS_READV: unix.SYS_READ, unix.SYS_WRITEV: unix.SYS_WRITE,
			unix.SYS_PREADV: unix.SYS_PREAD64, unix.SYS_PWRITEV: unix.SYS_PWRITE64,
			unix.SYS_PREADV2: unix.SYS_PREAD64,
		}
		var buffer [2]uint64
		if !readMemory(tid, r.Rsi, unsafe.Slice((*byte)(unsafe.Pointer(&buffer)), 16)) {
			return false
		}
		r.Orig_rax, r.Rsi, r.Rdx = vector[r.Orig_rax], buffer[0], buffer[1]
	}
	if *length < 2 {
		return false
	}
	const page = 4096
	if *length < 2*page && strings.HasPrefix(fileOf(tid, int32(r.Rdi)), "/dev/") {
		return false
	}
	if *length /= 2; *length > page {
		*length -= *length % page
	}
	return true
}

func changeRegisters(tid int, change func(*unix.PtraceRegs)) error {
	var r unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &r); err != nil {
		return err
	}
	change(&r)
	return unix.PtraceSetRegs(tid, &r)
}

// info is the kernel's struct ptrace_syscall_info at an entry.
type info struct {
	op        uint8
	_         [3]uint8
	_         uint32
	_, _      uint64
	number    uint64
	arguments [6]uint64
}

const (
	opEntry = 1
	opExit  = 2
)

func callInfo(tid int) (i info, err error) {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(i),
		uintptr(unsafe.Pointer(&i)), 0, 0)
	if errno != 0 {
		return i, errno
	}
	return i, nil
}

func resume(tid int, signal unix.Signal) error { return unix.PtraceSyscall(tid, int(signal)) }

func wait(pid int, status *unix.WaitStatus) (tid int, err error) {
	for {
		if tid, err = unix.Wait4(pid, status, ownChildren, nil); err != unix.EINTR {
			return tid, err
		}
	}
}

// ofRuntime reports whether fd is one of those with which Go's runtime waits for others.
func ofRuntime(tid int, fd int32) bool {
	link := fileOf(tid, fd)
	return link == "anon_inode:[eventfd]" || link == "anon_inode:[eventpoll]"
}

// fileOf returns the file that is open as fd.
func fileOf(tid int, fd int32) string {
	if fd == unix.AT_FDCWD {
		return ""
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, fd))
	if err != nil {
		return fmt.Sprintf("descriptor %d", fd)
	}
	return link
}

// describe returns the name of a call and its file.
func describe(tid int, c call, arguments [6]uint64) string {
	text, file := c.name, ""
	if c.fd >= 0 {
		file = fileOf(tid, int32(arguments[c.fd]))
	}
	if c.path >= 0 {
		p := make([]byte, 256)
		if !readMemory(tid, arguments[c.path], p) {
			return text + " " + file
		}
		name, _, _ := bytes.Cut(p, []byte{0})
		if filepath.IsAbs(string(name)) {
			return text + " " + string(name)
		}
		file = filepath.Join(file, string(name))
	}
	return text + " " + file
}

// readMemory fills p from a thread's memory, as far as it is mapped, and reports whether anything was read.
func readMemory(tid int, address uint64, p []byte) bool {
	n, err := unix.PtracePeekData(tid, uintptr(address), p)
	return err == nil || n > 0
}
