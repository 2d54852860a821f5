package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// confinedJob is the variable with the job of a test binary that confines itself.
const confinedJob = "CAIRN_TEST_CONFINED"

// job is what a confined test binary has, and what it shall try.
type job struct {
	Dir        string // has read, write, remove and outside
	Connect    bool
	NoLandlock syscall.Errno // the answer for Landlock's calls; 0 is the kernel's
	Server     string        // a TCP server
	Server6    string        // a TCP server on ::1, or ""
	Unix       string        // a unix socket
	Parent     int
	Killed     bool // Landlock's calls end the process, which only checks whether it may confine itself
}

func TestMain(m *testing.M) {
	if IsProbe() {
		RunProbe()
		os.Exit(0)
	}
	text := os.Getenv(confinedJob)
	if text == "" {
		os.Exit(m.Run())
	}
	var j job
	err := json.Unmarshal([]byte(text), &j)
	var results map[string]string
	if err == nil {
		results, err = j.tryAll()
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(results)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// tryAll confines this process and returns the result of each attempt: "done", or the error's text.
func (j job) tryAll() (map[string]string, error) {
	reopened, err := os.Open(j.path("outside", "opened"))
	if err != nil {
		return nil, err
	}
	defer reopened.Close()
	if j.Killed {
		if err := filterLandlock(unix.SECCOMP_RET_KILL_PROCESS); err != nil {
			return nil, err
		}
		return map[string]string{"permitted": fmt.Sprint(Permitted())}, nil
	}
	if j.NoLandlock != 0 {
		if err := filterLandlock(unix.SECCOMP_RET_ERRNO | uint32(j.NoLandlock)); err != nil {
			return nil, err
		}
	}
	memory, err := unix.MemfdCreate("cairn-test", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	inMemory := os.NewFile(uintptr(memory), "memory")
	defer inMemory.Close()
	if err := Permitted(); err != nil {
		return nil, err
	}
	results := map[string]string{"supported": "done"}
	if err := Supported(); err != nil {
		results["supported"] = err.Error()
	}
	p := Policy{
		Read: []string{j.path("read"), j.path("one"), j.path("absent")}, Write: []string{j.path("write")},
		Remove: []string{j.path("remove")}, RemoveDirs: []string{j.path("remove")}, Connect: j.Connect,
	}
	stopped, threads := j.keepThreads()
	for _, err := range []error{Calls(p), Files(p)} {
		if err != nil {
			return nil, err
		}
	}
	for name, try := range j.attempts(reopened, inMemory) {
		results[name] = "done"
		if err := try(); err != nil {
			results[name] = cause(err)
		}
	}
	close(stopped)
	for range cap(threads) {
		if err := <-threads; err != nil {
			results["a thread from before"] = cause(err)
		}
	}
	return results, nil
}

// keepThreads starts threads that exist before the confinement and report whether they can open a file outside after it.
func (j job) keepThreads() (stop chan struct{}, results chan error) {
	stop, results = make(chan struct{}), make(chan error, 4)
	for range cap(results) {
		started := make(chan struct{})
		go func() {
			// No unlock: the thread ends with its goroutine, and no other one uses it.
			runtime.LockOSThread()
			close(started)
			<-stop
			_, err := os.ReadFile(j.path("outside", "secret"))
			results <- err
		}()
		<-started
	}
	return stop, results
}

func (j job) path(elements ...string) string {
	return filepath.Join(append([]string{j.Dir}, elements...)...)
}

// cause returns the name of the system's error behind err, or else its text.
func cause(err error) string {
	if e, is := errors.AsType[syscall.Errno](err); is {
		return unix.ErrnoName(e)
	}
	return err.Error()
}

func (j job) attempts(reopened, inMemory *os.File) map[string]func() error {
	read := func(elements ...string) func() error {
		return func() error { _, err := os.ReadFile(j.path(elements...)); return err }
	}
	write := func(elements ...string) func() error {
		return func() error { return os.WriteFile(j.path(elements...), []byte("x"), 0o600) }
	}
	dial := func(network, at string) func() error {
		return func() error {
			c, err := net.DialTimeout(network, at, 10*time.Second)
			if err == nil {
				err = c.Close()
			}
			return err
		}
	}
	listen := func(network, at string) func() error {
		return func() error { _, err := net.Listen(network, at); return err }
	}
	call := func(number uintptr, args ...uintptr) func() error {
		return func() error {
			var a [6]uintptr
			copy(a[:], args)
			if _, _, errno := syscall.Syscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
				return errno
			}
			return nil
		}
	}
	return map[string]func() error{
		"read below a read directory":   read("read", "deep", "file"),
		"read a read file":              read("one"),
		"read outside":                  read("outside", "secret"),
		"read through a link":           read("read", "link"),
		"list outside":                  func() error { _, err := os.ReadDir(j.path("outside")); return err },
		"write in a read directory":     write("read", "deep", "file"),
		"make in a read directory":      write("read", "new"),
		"truncate in a read directory":  func() error { return os.Truncate(j.path("read", "deep", "file"), 0) },
		"remove in a read directory":    func() error { return os.Remove(j.path("read", "deep", "spare")) },
		"write outside":                 write("outside", "new"),
		"write a file":                  write("write", "new"),
		"make a directory":              func() error { return os.MkdirAll(j.path("write", "a", "b"), 0o700) },
		"rename between directories":    j.renameBetween,
		"rename out of the list":        func() error { return os.Rename(j.path("write", "spare"), j.path("outside", "spare")) },
		"link into the list":            func() error { return os.Link(j.path("outside", "secret"), j.path("write", "secret")) },
		"make a device":                 func() error { return unix.Mknod(j.path("write", "dev"), unix.S_IFBLK|0o600, 1<<8) },
		"make a symbolic link":          func() error { return os.Symlink("/etc", j.path("write", "etc")) },
		"publish an unnamed file":       j.publishUnnamed,
		"remove from a remove list":     func() error { return os.Remove(j.path("remove", "file")) },
		"remove a directory":            func() error { return os.Remove(j.path("remove", "dir")) },
		"read from a remove list":       read("remove", "other"),
		"open an open file again":       func() error { return reopen(reopened, os.O_RDONLY) },
		"open an open file for writing": func() error { return reopen(reopened, os.O_RDWR) },
		"open a file in memory again":   func() error { return reopen(inMemory, os.O_RDWR) },
		"change a mode":                 func() error { return os.Chmod(j.path("outside", "secret"), 0o777) },
		"change an owner":               func() error { return os.Chown(j.path("outside", "secret"), os.Getuid(), -1) },
		"run a program":                 func() error { _, err := syscall.ForkExec("/bin/true", nil, nil); return err },
		"listen on TCP":                 listen("tcp", "127.0.0.1:0"),
		"listen on a unix socket":       listen("unix", j.path("write", "sock")),
		"receive UDP":                   func() error { _, err := net.ListenPacket("udp", "127.0.0.1:0"); return err },
		"connect over TCP":              dial("tcp", j.Server),
		"connect over IPv6":             j.orDone(j.Server6, dial("tcp", j.Server6)),
		"send UDP":                      dial("udp", "127.0.0.1:9"),
		"connect to a unix socket":      dial("unix", j.Unix),
		"connect to an abstract socket": dial("unix", "@cairn-test"),
		"signal the parent":             call(unix.SYS_KILL, uintptr(j.Parent), 0),
		"signal this process":           call(unix.SYS_KILL, uintptr(os.Getpid()), 0),
		"trace the parent":              call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(j.Parent)),
		"read the parent's memory":      call(unix.SYS_PROCESS_VM_READV, uintptr(j.Parent)),
		"mount":                         func() error { return unix.Mount("none", j.path("write"), "tmpfs", 0, "") },
		"a new namespace":               call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER),
		"a process in a new namespace":  call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD)),
		"load BPF":                      call(unix.SYS_BPF),
		"io_uring":                      call(unix.SYS_IO_URING_SETUP),
		"keys":                          call(unix.SYS_KEYCTL),
		"type into a terminal":          call(unix.SYS_IOCTL, 0, unix.TIOCSTI),
		"a thread from before":          func() error { return nil }, // keepThreads overwrites it
	}
}

func (j job) orDone(at string, try func() error) func() error {
	if at == "" {
		return func() error { return nil }
	}
	return try
}

func (j job) renameBetween() error {
	if err := os.Mkdir(j.path("write", "stage"), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(j.path("write", "stage", "file"), nil, 0o600); err != nil {
		return err
	}
	return os.Rename(j.path("write", "stage", "file"), j.path("write", "file"))
}

// publishUnnamed makes a file without a name, and gives it one.
func (j job) publishUnnamed() error {
	fd, err := unix.Open(j.path("write"), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // the file system has no such files
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", fd), unix.AT_FDCWD, j.path("write", "named"), unix.AT_SYMLINK_FOLLOW)
}

func reopen(f *os.File, flag int) error {
	again, err := os.OpenFile(fmt.Sprint("/proc/self/fd/", f.Fd()), flag, 0)
	if err == nil {
		err = again.Close()
	}
	return err
}

// want returns the results on a kernel with Landlock.
func want() map[string]string {
	w := map[string]string{
		"read outside": "EACCES", "read through a link": "EACCES", "list outside": "EACCES",
		"write in a read directory": "EACCES", "make in a read directory": "EACCES",
		"truncate in a read directory": "EACCES", "remove in a read directory": "EACCES", "write outside": "EACCES",
		"rename out of the list": "EACCES", "link into the list": "EXDEV", "make a device": "EACCES",
		"make a symbolic link": "EACCES", "read from a remove list": "EACCES",
		"open an open file for writing": "EACCES", "a thread from before": "EACCES",
	}
	for _, name := range []string{
		"change a mode", "change an owner", "run a program", "listen on TCP", "listen on a unix socket", "receive UDP",
		"connect to a unix socket", "connect to an abstract socket", "signal the parent", "trace the parent",
		"read the parent's memory", "mount", "a new namespace", "a process in a new namespace", "load BPF", "io_uring",
		"keys", "type into a terminal",
	} {
		w[name] = "EPERM"
	}
	for name := range (job{}).attempts(nil, nil) {
		if w[name] == "" {
			w[name] = "done"
		}
	}
	w["supported"] = "done"
	return w
}

// runConfined runs the job in a process of its own, and returns its results.
func runConfined(t *testing.T, j job) map[string]string {
	t.Helper()
	j.Dir, j.Parent = t.TempDir(), os.Getpid()
	for _, dir := range []string{"read/deep", "write", "remove/dir", "outside"} {
		if err := os.MkdirAll(j.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{
		"read/deep/file", "read/deep/spare", "one", "write/spare", "remove/file", "remove/other", "outside/secret", "outside/opened",
	} {
		if err := os.WriteFile(j.path(file), []byte("text"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(j.path("outside", "secret"), j.path("read", "link")); err != nil {
		t.Fatal(err)
	}
	j.Server = listenOn(t, "tcp", "127.0.0.1:0")
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		l.Close()
		j.Server6 = listenOn(t, "tcp", "[::1]:0")
	}
	j.Unix = listenOn(t, "unix", filepath.Join(t.TempDir(), "s"))
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "/proc/self/exe")
	c.Env, c.Stderr = append(os.Environ(), confinedJob+"="+string(text)), os.Stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("the confined process: %v\n%s", err, out)
	}
	var results map[string]string
	if err := json.Unmarshal(out, &results); err != nil {
		t.Fatalf("the confined process printed %q: %v", out, err)
	}
	return results
}

func listenOn(t *testing.T, network, at string) string {
	t.Helper()
	l, err := net.Listen(network, at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

// needLandlock skips the test if the kernel cannot confine a process.
func needLandlock(t *testing.T) {
	t.Helper()
	if err := Supported(); err != nil {
		t.Skip(err)
	}
}

// TestConfined: a confined process can do what the policy allows, and no more, on every thread.
func TestConfined(t *testing.T) {
	needLandlock(t)
	if diff := cmp.Diff(want(), runConfined(t, job{Connect: true})); diff != "" {
		t.Errorf("a confined process (-want +got):\n%s", diff)
	}
}

// TestConfinedLocally: without Connect, there are no connections.
func TestConfinedLocally(t *testing.T) {
	needLandlock(t)
	w := want()
	w["connect over TCP"], w["connect over IPv6"], w["send UDP"] = "EPERM", "EPERM", "EPERM"
	got := runConfined(t, job{})
	if got["connect over IPv6"] == "done" { // there is no IPv6 here
		delete(w, "connect over IPv6")
		delete(got, "connect over IPv6")
	}
	if diff := cmp.Diff(w, got); diff != "" {
		t.Errorf("a process confined to this machine (-want +got):\n%s", diff)
	}
}

// TestNoLandlock: on kernels without Landlock, or with Landlock disabled, the filter alone holds, and Supported says so.
func TestNoLandlock(t *testing.T) {
	if err := filterSupported(); err != nil {
		t.Skip(err)
	}
	for _, errno := range []syscall.Errno{unix.ENOSYS, unix.EOPNOTSUPP} {
		got := runConfined(t, job{Connect: true, NoLandlock: errno})
		if !strings.Contains(got["supported"], "no Landlock") {
			t.Errorf("%v: Supported() = %q", errno, got["supported"])
		}
		for _, name := range []string{"run a program", "listen on TCP", "trace the parent", "mount"} {
			if got[name] != "EPERM" {
				t.Errorf("%v: %s: %s, want EPERM", errno, name, got[name])
			}
		}
		for _, name := range []string{"read a read file", "read outside", "connect over TCP"} {
			if got[name] != "done" {
				t.Errorf("%v: %s: %s, want done", errno, name, got[name])
			}
		}
	}
}

// TestForbidden: a process whose filter would kill it for Landlock's calls learns that without making them.
func TestForbidden(t *testing.T) {
	if err := filterSupported(); err != nil {
		t.Skip(err)
	}
	got := runConfined(t, job{Killed: true})["permitted"]
	if want := "a filter of system calls forbids it"; !strings.Contains(got, want) {
		t.Errorf("Permitted() = %s, want %s", got, want)
	}
}

// filterLandlock sets the result of Landlock's first call.
func filterLandlock(result uint32) error {
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetCall, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.SYS_LANDLOCK_CREATE_RULESET, SkipFalse: 1},
		bpf.RetConstant{Val: result},
		allow,
	})
	if err != nil {
		return err
	}
	return installFilter(raw)
}
