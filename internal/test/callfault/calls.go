//go:build linux && amd64

package callfault

import "golang.org/x/sys/unix"

// Short lets a call transfer half of the requested bytes.
const Short unix.Errno = 1 << 20 // no errno of the kernel

// call describes a kind of system call.
type call struct {
	name   string
	faults []unix.Errno // the plausible failures
	fd     int          // the argument that is a descriptor, or -1
	path   int          // the argument that is a path, or -1
	length int          // the argument that is the number of bytes or of buffers, or -1
}

// vectored reports whether the call's length counts buffers.
func (c call) vectored() bool {
	switch c.name {
	case "readv", "writev", "preadv", "pwritev", "preadv2":
		return true
	}
	return false
}

// calls are the calls on files, directories and the network, by number.
var calls = map[uint64]call{
	unix.SYS_OPENAT:       atPath("openat", unix.EMFILE, unix.EIO, unix.EINTR, unix.ENOSPC),
	unix.SYS_OPENAT2:      atPath("openat2", unix.EMFILE, unix.EIO, unix.EINTR, unix.EAGAIN),
	unix.SYS_OPEN:         onPath("open", unix.EMFILE, unix.EIO),
	unix.SYS_READ:         transfer("read", 2, unix.EIO, unix.EINTR, Short),
	unix.SYS_PREAD64:      transfer("pread64", 2, unix.EIO, unix.EINTR, Short),
	unix.SYS_READV:        transfer("readv", 2, unix.EIO, unix.EINTR, Short),
	unix.SYS_PREADV:       transfer("preadv", 2, unix.EIO, unix.EINTR, Short),
	unix.SYS_PREADV2:      transfer("preadv2", 2, unix.EIO, unix.EAGAIN, unix.EOPNOTSUPP, Short),
	unix.SYS_WRITE:        transfer("write", 2, unix.ENOSPC, unix.EIO, unix.EINTR, Short),
	unix.SYS_PWRITE64:     transfer("pwrite64", 2, unix.ENOSPC, unix.EIO, unix.EINTR, Short),
	unix.SYS_WRITEV:       transfer("writev", 2, unix.ENOSPC, unix.EIO, unix.EINTR, Short),
	unix.SYS_PWRITEV:      transfer("pwritev", 2, unix.ENOSPC, unix.EIO, unix.EINTR, Short),
	unix.SYS_RECVFROM:     transfer("recvfrom", 2, unix.ECONNRESET, unix.EINTR, Short),
	unix.SYS_SENDTO:       transfer("sendto", 2, unix.ECONNRESET, unix.ENOBUFS, unix.EINTR, Short),
	unix.SYS_SENDMSG:      onFD("sendmsg", unix.ECONNRESET, unix.ENOBUFS, unix.EINTR),
	unix.SYS_RECVMSG:      onFD("recvmsg", unix.ECONNRESET, unix.EINTR),
	unix.SYS_SENDFILE:     transfer("sendfile", 3, unix.EIO, unix.EINTR, Short),
	unix.SYS_SPLICE:       transfer("splice", 4, unix.EIO, unix.EINTR, Short),
	unix.SYS_CLOSE:        onFD("close", unix.EIO, unix.EINTR),
	unix.SYS_FSYNC:        onFD("fsync", unix.EIO, unix.ENOSPC),
	unix.SYS_FDATASYNC:    onFD("fdatasync", unix.EIO, unix.ENOSPC),
	unix.SYS_SYNCFS:       onFD("syncfs", unix.EIO, unix.ENOSPC),
	unix.SYS_FTRUNCATE:    onFD("ftruncate", unix.EIO, unix.EINTR, unix.ENOSPC),
	unix.SYS_FALLOCATE:    onFD("fallocate", unix.EOPNOTSUPP, unix.EINTR, unix.ENOSPC),
	unix.SYS_FADVISE64:    onFD("fadvise64", unix.EINVAL),
	unix.SYS_LSEEK:        onFD("lseek", unix.EIO, unix.EINVAL),
	unix.SYS_FLOCK:        onFD("flock", unix.EINTR, unix.ENOLCK),
	unix.SYS_IOCTL:        onFD("ioctl", unix.EIO, unix.ENOTTY, unix.EINTR),
	unix.SYS_FSTAT:        onFD("fstat", unix.EIO),
	unix.SYS_FSTATFS:      onFD("fstatfs", unix.EIO),
	unix.SYS_FCHMOD:       onFD("fchmod", unix.EIO, unix.EPERM),
	unix.SYS_FCHOWN:       onFD("fchown", unix.EIO, unix.EPERM),
	unix.SYS_FGETXATTR:    onFD("fgetxattr", unix.EIO),
	unix.SYS_FLISTXATTR:   onFD("flistxattr", unix.EIO),
	unix.SYS_FREMOVEXATTR: onFD("fremovexattr", unix.EIO),
	unix.SYS_FSETXATTR:    onFD("fsetxattr", unix.ENOSPC, unix.EOPNOTSUPP),

	unix.SYS_GETDENTS64:      onFD("getdents64", unix.EIO),
	unix.SYS_SYNC_FILE_RANGE: onFD("sync_file_range", unix.EIO, unix.ENOSPC),
	unix.SYS_COPY_FILE_RANGE: transfer("copy_file_range", 4, unix.EIO, unix.ENOSPC, unix.EINTR, Short),

	unix.SYS_NEWFSTATAT: atPath("newfstatat", unix.EIO, unix.EINTR),
	unix.SYS_STATX:      atPath("statx", unix.EIO, unix.EINTR),
	unix.SYS_FACCESSAT:  atPath("faccessat", unix.EIO),
	unix.SYS_FACCESSAT2: atPath("faccessat2", unix.EIO),
	unix.SYS_READLINKAT: atPath("readlinkat", unix.EIO),
	unix.SYS_MKDIRAT:    atPath("mkdirat", unix.ENOSPC, unix.EIO),
	unix.SYS_UNLINKAT:   atPath("unlinkat", unix.EIO, unix.EBUSY),
	unix.SYS_RENAMEAT:   atPath("renameat", unix.ENOSPC, unix.EIO),
	unix.SYS_RENAMEAT2:  atPath("renameat2", unix.ENOSPC, unix.EIO),
	unix.SYS_LINKAT:     atPath("linkat", unix.ENOSPC, unix.EIO),
	unix.SYS_SYMLINKAT:  onPath("symlinkat", unix.ENOSPC, unix.EIO),
	unix.SYS_FCHMODAT:   atPath("fchmodat", unix.EIO, unix.EPERM),
	unix.SYS_FCHMODAT2:  atPath("fchmodat2", unix.EIO, unix.EPERM),
	unix.SYS_FCHOWNAT:   atPath("fchownat", unix.EIO, unix.EPERM),
	unix.SYS_UTIMENSAT:  atPath("utimensat", unix.EIO, unix.EPERM),
	unix.SYS_STATFS:     onPath("statfs", unix.EIO, unix.EINTR),
	unix.SYS_TRUNCATE:   onPath("truncate", unix.EIO),
	unix.SYS_GETXATTR:   onPath("getxattr", unix.EIO),
	unix.SYS_LGETXATTR:  onPath("lgetxattr", unix.EIO),
	unix.SYS_LLISTXATTR: onPath("llistxattr", unix.EIO),
	unix.SYS_CHDIR:      onPath("chdir", unix.EIO),
	unix.SYS_GETCWD:     alone("getcwd", unix.ENOENT),

	unix.SYS_SOCKET:     alone("socket", unix.EMFILE, unix.ENOBUFS),
	unix.SYS_SOCKETPAIR: alone("socketpair", unix.EMFILE, unix.ENOBUFS),
	unix.SYS_CONNECT:    onFD("connect", unix.ECONNREFUSED, unix.ENETUNREACH, unix.EINTR),
	unix.SYS_BIND:       onFD("bind", unix.EADDRINUSE, unix.ENOSPC),
	unix.SYS_LISTEN:     onFD("listen", unix.EADDRINUSE),
	unix.SYS_ACCEPT4:    onFD("accept4", unix.EMFILE, unix.ECONNABORTED, unix.ENOBUFS, unix.EINTR),
	unix.SYS_SHUTDOWN:   onFD("shutdown", unix.ENOTCONN),
	unix.SYS_SETSOCKOPT: onFD("setsockopt", unix.ENOMEM),
	unix.SYS_GETSOCKOPT: onFD("getsockopt", unix.ENOBUFS),

	unix.SYS_PIPE2:             alone("pipe2", unix.EMFILE),
	unix.SYS_DUP:               onFD("dup", unix.EMFILE),
	unix.SYS_DUP3:              onFD("dup3", unix.EMFILE),
	unix.SYS_MEMFD_CREATE:      alone("memfd_create", unix.EMFILE),
	unix.SYS_INOTIFY_INIT1:     alone("inotify_init1", unix.EMFILE),
	unix.SYS_INOTIFY_ADD_WATCH: onFD("inotify_add_watch", unix.ENOSPC),
	unix.SYS_MLOCK:             alone("mlock", unix.ENOMEM),
}

// duplicate and lock are calls of fcntl. Its other calls that programs use cannot fail.
var (
	duplicate = onFD("fcntl(F_DUPFD)", unix.EMFILE)
	lock      = onFD("fcntl(F_SETLK)", unix.EINTR, unix.ENOLCK)
)

// fcntlCall returns the description of a call of fcntl with a command.
func fcntlCall(command uint64) (c call, known bool) {
	switch command {
	case unix.F_DUPFD, unix.F_DUPFD_CLOEXEC:
		return duplicate, true
	case unix.F_SETLK, unix.F_SETLKW, unix.F_OFD_SETLK, unix.F_OFD_SETLKW:
		return lock, true
	}
	return call{}, false
}

// others are the calls that do not count: of memory, threads, signals, time, and of Go's runtime.
var others = map[uint64]bool{
	unix.SYS_FCNTL: true, // but see fcntlCall

	// Linux has no failure of them for a valid socket. Go's package net panics if getsockname fails.
	unix.SYS_GETSOCKNAME: true, unix.SYS_GETPEERNAME: true,

	unix.SYS_MMAP: true, unix.SYS_MUNMAP: true, unix.SYS_MADVISE: true, unix.SYS_MPROTECT: true,
	unix.SYS_MREMAP: true, unix.SYS_BRK: true, unix.SYS_MINCORE: true, unix.SYS_MEMBARRIER: true,

	unix.SYS_CLONE: true, unix.SYS_CLONE3: true, unix.SYS_VFORK: true, unix.SYS_FUTEX: true,
	unix.SYS_EXIT: true, unix.SYS_EXIT_GROUP: true, unix.SYS_EXECVE: true, unix.SYS_WAIT4: true,
	unix.SYS_WAITID: true, unix.SYS_GETTID: true, unix.SYS_GETPID: true, unix.SYS_GETPPID: true,
	unix.SYS_SCHED_YIELD: true, unix.SYS_SCHED_GETAFFINITY: true, unix.SYS_SET_ROBUST_LIST: true,
	unix.SYS_SET_TID_ADDRESS: true, unix.SYS_RSEQ: true, unix.SYS_ARCH_PRCTL: true, unix.SYS_PRCTL: true,
	unix.SYS_PRLIMIT64: true, unix.SYS_GETRLIMIT: true, unix.SYS_SETRLIMIT: true, unix.SYS_GETRUSAGE: true,
	unix.SYS_UNAME: true, unix.SYS_SYSINFO: true, unix.SYS_GETRANDOM: true, unix.SYS_PIDFD_OPEN: true,
	unix.SYS_PIDFD_SEND_SIGNAL: true, unix.SYS_SETPRIORITY: true, unix.SYS_GETPRIORITY: true,
	unix.SYS_IOPRIO_SET: true, unix.SYS_IOPRIO_GET: true, unix.SYS_SCHED_SETSCHEDULER: true, unix.SYS_UMASK: true,

	unix.SYS_GETUID: true, unix.SYS_GETEUID: true, unix.SYS_GETGID: true, unix.SYS_GETEGID: true,
	unix.SYS_GETGROUPS: true, unix.SYS_SETUID: true, unix.SYS_SETGID: true, unix.SYS_SETGROUPS: true,
	unix.SYS_SETRESUID: true, unix.SYS_SETRESGID: true, unix.SYS_CAPGET: true, unix.SYS_CAPSET: true,
	unix.SYS_SECCOMP: true, unix.SYS_LANDLOCK_CREATE_RULESET: true, unix.SYS_LANDLOCK_ADD_RULE: true,
	unix.SYS_LANDLOCK_RESTRICT_SELF: true,

	unix.SYS_RT_SIGACTION: true, unix.SYS_RT_SIGPROCMASK: true, unix.SYS_RT_SIGRETURN: true,
	unix.SYS_SIGALTSTACK: true, unix.SYS_TGKILL: true, unix.SYS_KILL: true, unix.SYS_RESTART_SYSCALL: true,

	unix.SYS_NANOSLEEP: true, unix.SYS_CLOCK_NANOSLEEP: true, unix.SYS_CLOCK_GETTIME: true,
	unix.SYS_GETTIMEOFDAY: true, unix.SYS_SETITIMER: true, unix.SYS_TIMER_CREATE: true,
	unix.SYS_TIMER_SETTIME: true, unix.SYS_TIMER_DELETE: true,

	unix.SYS_EPOLL_CREATE1: true, unix.SYS_EPOLL_CTL: true, unix.SYS_EPOLL_PWAIT: true,
	unix.SYS_EPOLL_PWAIT2: true, unix.SYS_EVENTFD2: true, unix.SYS_POLL: true, unix.SYS_PPOLL: true,
}

func alone(name string, faults ...unix.Errno) call { return call{name, faults, -1, -1, -1} }
func onFD(name string, faults ...unix.Errno) call  { return call{name, faults, 0, -1, -1} }

func onPath(name string, faults ...unix.Errno) call { return call{name, faults, -1, 0, -1} }
func atPath(name string, faults ...unix.Errno) call { return call{name, faults, 0, 1, -1} }

func transfer(name string, length int, faults ...unix.Errno) call {
	return call{name, faults, 0, -1, length}
}
