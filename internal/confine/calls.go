//go:build amd64 || arm64 || arm

package confine

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// deniedCalls are the system calls that a confined process is denied. The program needs none of them after its start.
// The filter allows the others: a list of the allowed calls would have to name each call of Go's runtime, and the next
// version of Go could stop working.
var deniedCalls = slices.Concat([]uint32{
	// programs and listeners
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_BIND, unix.SYS_LISTEN,
	// other processes
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_KCMP,
	unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
	// mounts and namespaces
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
	unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
	// the machine, and large interfaces of the kernel
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD,
	unix.SYS_REBOOT, unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP,
	unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_ACCT, unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_SYSLOG, unix.SYS_PERSONALITY,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME, unix.SYS_SETHOSTNAME,
	unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP,
	// modes, owners and attributes of files by name, which Landlock does not limit
	unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_FCHOWNAT, unix.SYS_SETXATTR, unix.SYS_LSETXATTR,
	unix.SYS_SETXATTRAT, unix.SYS_REMOVEXATTR, unix.SYS_LREMOVEXATTR, unix.SYS_REMOVEXATTRAT,
}, platformCalls, threadCalls)

// namespaces are the flags of clone that make namespaces.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// Offsets in struct seccomp_data of linux/seccomp.h.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
	sizeOfArg  = 8
)

// x32 marks the calls of another interface to an x86-64 kernel.
const x32 = 1 << 30

var (
	allow = bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW}
	deny  = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)}
	// absent is the answer for a call that the C library replaces by an older one.
	absent = bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
)

// Calls denies this process the system calls that it does not need: the start of programs, new listeners, sockets of
// other families than IPv4 and IPv6, signals to other processes, debugging, mounts, namespaces, and what changes the
// machine. Without Connect, it denies all new sockets. The process and its children can never gain privileges.
func Calls(p Policy) error {
	if err := filterSupported(); err != nil {
		return err
	}
	warmResolver()
	raw, err := bpf.Assemble(callFilter(p, uint32(os.Getpid())))
	if err != nil {
		return fmt.Errorf("assembling the filter of system calls: %w", err)
	}
	return installFilter(raw)
}

// warmResolver has package net find out which versions of IP there are, for which it binds sockets, and read the names
// of the interfaces, for which it uses a socket of another family. It keeps both.
func warmResolver() {
	if l, err := net.ListenPacket("udp", "localhost:0"); err == nil {
		_ = l.Close()
	}
	if c, err := net.DialTimeout("udp6", "[fe80::1%lo]:9", time.Second); err == nil { // sends nothing
		_ = c.Close()
	}
}

// callFilter returns the filter for a process.
func callFilter(p Policy, pid uint32) []bpf.Instruction {
	f := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		deny, // such as the 32-bit calls of int 0x80
		bpf.LoadAbsolute{Off: offsetCall, Size: 4},
	}
	if auditArch == unix.AUDIT_ARCH_X86_64 {
		f = append(f, bpf.JumpIf{Cond: bpf.JumpLessThan, Val: x32, SkipTrue: 1}, deny)
	}
	on := func(call uint32, then ...bpf.Instruction) { // then ends with a result
		f = append(f, bpf.JumpIf{Cond: bpf.JumpEqual, Val: call, SkipFalse: uint8(len(then))})
		f = append(f, then...)
	}
	argument := func(n uint32) bpf.Instruction { // its low half; all platforms are little-endian
		return bpf.LoadAbsolute{Off: offsetArgs + n*sizeOfArg, Size: 4}
	}
	allowIf := func(values ...uint32) (then []bpf.Instruction) {
		for _, v := range values {
			then = append(then, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: v, SkipTrue: 1}, allow)
		}
		return append(then, deny)
	}
	for _, call := range deniedCalls {
		on(call, deny)
	}
	families := []uint32{}
	if p.Connect {
		families = []uint32{unix.AF_INET, unix.AF_INET6}
	}
	on(unix.SYS_SOCKET, slices.Concat([]bpf.Instruction{argument(0)}, allowIf(families...))...)
	on(unix.SYS_KILL, slices.Concat([]bpf.Instruction{argument(0)}, allowIf(pid))...)
	on(unix.SYS_TGKILL, slices.Concat([]bpf.Instruction{argument(0)}, allowIf(pid))...)
	on(unix.SYS_CLONE, argument(0), bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: namespaces, SkipTrue: 1}, deny, allow)
	on(unix.SYS_CLONE3, absent)     // its flags are in memory, where a filter cannot read them
	on(unix.SYS_IOCTL, argument(1), // input for a terminal, which its shell would execute
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.TIOCSTI, SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.TIOCLINUX, SkipTrue: 1}, deny, allow)
	return append(f, allow)
}

// installFilter sets no_new_privs and the filter for all threads. Old kernels would otherwise also slow down the
// branch prediction of a filtered process, for the sake of foreign code in it.
func installFilter(raw []bpf.RawInstruction) error {
	program := unix.SockFprog{Len: uint16(len(raw)), Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(raw)))}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("setting no_new_privs: %w", err)
	}
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	thread, _, errno := unix.Syscall(
		unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	switch {
	case errno != 0:
		return fmt.Errorf("setting the filter of system calls: %w", errno)
	case thread != 0:
		return fmt.Errorf("setting the filter of system calls: thread %d has another filter", thread)
	}
	return nil
}

// filterSupported returns an ErrUnsupported if the kernel has no filters of system calls.
func filterSupported() error {
	action := uint32(unix.SECCOMP_RET_ERRNO)
	_, _, errno := unix.Syscall(
		unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if errno != 0 {
		return fmt.Errorf("%w: it has no filters of system calls (%s)", ErrUnsupported, errno.Error())
	}
	return nil
}
