package confine

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_ARM

var platformCalls = []uint32{
	unix.SYS_CHMOD, unix.SYS_CHOWN, unix.SYS_LCHOWN, unix.SYS_CHOWN32, unix.SYS_LCHOWN32, unix.SYS_USELIB,
	unix.SYS_CLOCK_SETTIME64, unix.SYS_CLOCK_ADJTIME64,
}
