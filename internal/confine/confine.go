// Package confine takes from this process what it does not need any more, so that an intruder in it wins little. Landlock
// limits the files that it can open, and a seccomp filter the system calls. Both hold for all threads, for good, and
// for each program that the process could still start. The package does not know the work of the process.
package confine

import (
	"errors"
	"fmt"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
)

// Policy is what a confined process may still do. What it has open stays open, and may be opened again.
type Policy struct {
	// Read names files, and directories with everything below them, that are read. A name that does not exist is
	// left out.
	Read []string
	// Write names directories below which files and directories are read, made, written, renamed and removed.
	Write []string
	// Remove names directories below which files are removed, and RemoveDirs those below which empty directories are.
	Remove, RemoveDirs []string
	// Connect allows connections over TCP and UDP. Connections to unix sockets are never allowed.
	Connect bool
}

// ErrUnsupported reports that the kernel cannot confine a process as this package does.
var ErrUnsupported = errors.New("the kernel cannot confine a process")

// minLandlock is the version of Landlock that Supported asks for: 3, of Linux 6.2, is the first that limits the
// truncation of files.
const minLandlock = 3

// Supported returns nil if the kernel can do everything that Files and Calls promise, or else an ErrUnsupported with
// the reason.
func Supported() error {
	version, err := landlock.LandlockGetABIVersion()
	switch {
	case err != nil:
		return fmt.Errorf("%w: it has no Landlock, or Landlock is not enabled at boot (lsm=): %s", ErrUnsupported, err.Error())
	case version < minLandlock:
		return fmt.Errorf("%w: it has version %d of Landlock, want %d (Linux 6.2)", ErrUnsupported, version, minLandlock)
	}
	return filterSupported()
}
