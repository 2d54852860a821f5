package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev/mountinfo"
	"cairn/internal/blockdev/sysfs"
)

// maxNamed is the largest number of processes that a message names.
const maxNamed = 3

// process is a process as /proc shows it.
type process struct{ dir string }

func (k kernel) listProcesses() []process {
	names, err := os.ReadDir(k.proc)
	if err != nil {
		return nil
	}
	var all []process
	for _, name := range names {
		if _, err := strconv.Atoi(name.Name()); err == nil {
			all = append(all, process{filepath.Join(k.proc, name.Name())})
		}
	}
	return all
}

// title returns the process's name and number for messages.
func (p process) title() string {
	name, err := os.ReadFile(filepath.Join(p.dir, "comm"))
	if err != nil {
		name = []byte("?")
	}
	return fmt.Sprintf("%s (process %s)", strings.TrimSuffix(string(name), "\n"), filepath.Base(p.dir))
}

// hasDescriptor reports whether match accepts any open file descriptor of the process.
func (p process) hasDescriptor(match func(fd string) bool) bool {
	fds, err := os.ReadDir(filepath.Join(p.dir, "fd"))
	if err != nil {
		return false // the process has ended, or access is denied
	}
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool { return match(fd.Name()) })
}

// descriptorInode returns the inode that a descriptor of the process refers to. It uses cached attributes,
// because a network file system's server may not answer.
func (p process) descriptorInode(fd string) (inode, bool) {
	var st unix.Statx_t
	path := filepath.Join(p.dir, "fd", fd)
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &st); err != nil {
		return inode{}, false
	}
	id := inode{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		id.rdev = unix.Mkdev(st.Rdev_major, st.Rdev_minor)
	}
	return id, true
}

// hasLock reports whether a descriptor of the process holds a lock: proc_pid_fdinfo(5).
func (p process) hasLock(fd string) bool {
	text, err := os.ReadFile(filepath.Join(p.dir, "fdinfo", fd))
	return err == nil && strings.Contains(string(text), "\nlock:")
}

// nameProcesses names the first maxNamed processes that match accepts. It returns "" if there are none.
func nameProcesses(all []process, match func(process) bool) string {
	var names []string
	for _, p := range all {
		if !match(p) {
			continue
		}
		if len(names) == maxNamed {
			return strings.Join(names, ", ") + " and others"
		}
		names = append(names, p.title())
	}
	return strings.Join(names, ", ")
}

// fileLockedReason names the holders of a file's lock.
func (k kernel) fileLockedReason(file inode) reason {
	r := reason{CheckClaimed, "another program has locked it", "wait until that program has ended"}
	if names := k.nameLockers(file); names != "" {
		r.why += ": " + names
	}
	return r
}

// nameLockers names the processes that hold a lock on the file or device node. It returns "" if none is visible.
func (k kernel) nameLockers(file inode) string {
	return nameProcesses(k.listProcesses(), func(p process) bool {
		return p.hasDescriptor(func(fd string) bool {
			id, ok := p.descriptorInode(fd)
			return ok && id == file && p.hasLock(fd)
		})
	})
}

// claimedReason reports whether a program has the device open exclusively, and names it.
func (k kernel) claimedReason(d sysfs.Device) (reason, bool) {
	f, err := os.OpenFile(d.Node(), os.O_RDONLY|unix.O_EXCL, 0)
	switch {
	case err == nil:
		f.Close()
	case errors.Is(err, unix.EBUSY):
		return k.busyReason(d), true
	case errors.Is(err, fs.ErrPermission):
		return reason{CheckClaimed, "only root can see whether it is in use", "losetup -d " + d.Node() + " first"}, true
	}
	return reason{}, false
}

// busyReason names the visible programs that prevent exclusive access to the device.
func (k kernel) busyReason(d sysfs.Device) reason {
	family := familyIDs(d)
	all := k.listProcesses()
	if where := mountedElsewhere(all, family); where != "" {
		return reason{CheckMounted, "it is mounted on " + where, "umount it there, or choose the other slot"}
	}
	r := reason{
		check: CheckClaimed,
		why:   "it is in use (the kernel denies exclusive access)",
		hint:  "find its user with lsblk or fuser, or choose the other slot",
	}
	names := nameProcesses(all, func(p process) bool {
		return p.hasDescriptor(func(fd string) bool {
			id, ok := p.descriptorInode(fd)
			return ok && id.rdev != 0 && slices.Contains(family, sysfs.ID(id.rdev))
		})
	})
	if names != "" {
		r.why += "; it is open in " + names
		r.hint = "wait until that program has ended, or choose the other slot"
	}
	return r
}

// familyIDs returns the numbers of the device, its partitions and its disk, as far as sysfs has them.
func familyIDs(d sysfs.Device) []string {
	var ids []string
	for _, member := range familyOf(d) {
		if id, err := member.ID(); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// mountedElsewhere returns where one of the devices is mounted in any process's mount namespace, and "" if no
// such mount is visible.
func mountedElsewhere(all []process, ids []string) string {
	seen := map[string]bool{}
	for _, p := range all {
		namespace, err := os.Readlink(filepath.Join(p.dir, "ns/mnt"))
		if err != nil || seen[namespace] {
			continue
		}
		seen[namespace] = true
		text, err := os.ReadFile(filepath.Join(p.dir, "mountinfo"))
		if err != nil {
			continue
		}
		for _, m := range mountinfo.Parse(string(text)) {
			if slices.Contains(ids, mountedDevice(m)) {
				return m.Point + ", as " + p.title() + " sees it"
			}
		}
	}
	return ""
}
