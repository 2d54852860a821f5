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
)

// maxNamed is how many processes a message names.
const maxNamed = 3

// process is one of those that /proc shows.
type process struct{ dir string }

func (k kernel) processes() []process {
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

// title is the process's name and number.
func (p process) title() string {
	name, err := os.ReadFile(filepath.Join(p.dir, "comm"))
	if err != nil {
		name = []byte("?")
	}
	return fmt.Sprintf("%s (process %s)", strings.TrimSuffix(string(name), "\n"), filepath.Base(p.dir))
}

// has says whether the process has an open descriptor that is wanted.
func (p process) has(wanted func(fd string) bool) bool {
	fds, err := os.ReadDir(filepath.Join(p.dir, "fd"))
	if err != nil {
		return false // it has ended, or is not ours to look into
	}
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool { return wanted(fd.Name()) })
}

// opened is what a descriptor of the process stands for. No server is asked, which might not answer.
func (p process) opened(fd string) (inode, bool) {
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

// locks says whether a lock hangs on a descriptor of the process: proc_pid_fdinfo(5).
func (p process) locks(fd string) bool {
	text, err := os.ReadFile(filepath.Join(p.dir, "fdinfo", fd))
	return err == nil && strings.Contains(string(text), "\nlock:")
}

// titles names the processes that are wanted, or only the first few; "" if there is none to be seen.
func titles(all []process, wanted func(process) bool) string {
	var names []string
	for _, p := range all {
		if !wanted(p) {
			continue
		}
		if len(names) == maxNamed {
			return strings.Join(names, ", ") + " and others"
		}
		names = append(names, p.title())
	}
	return strings.Join(names, ", ")
}

// locked says who has locked the file.
func (k kernel) locked(file inode) reason {
	r := reason{CheckClaimed, "another program has locked it", "wait until that program has ended"}
	if who := k.lockers(file); who != "" {
		r.why += ": " + who
	}
	return r
}

// lockers names the processes that have locked the file or device node, as far as they can be seen; "" if none can.
func (k kernel) lockers(file inode) string {
	return titles(k.processes(), func(p process) bool {
		return p.has(func(fd string) bool {
			id, ok := p.opened(fd)
			return ok && id == file && p.locks(fd)
		})
	})
}

// claimed says whether somebody has the device exclusively, and who.
func (k kernel) claimed(d device) (reason, bool) {
	f, err := os.OpenFile(d.node(), os.O_RDONLY|unix.O_EXCL, 0)
	switch {
	case err == nil:
		f.Close()
	case errors.Is(err, unix.EBUSY):
		return k.busy(d), true
	case errors.Is(err, fs.ErrPermission):
		return reason{CheckClaimed, "only root can see whether it is in use", "losetup -d " + d.node() + " first"}, true
	}
	return reason{}, false
}

// busy says who keeps the kernel from giving the device exclusively, as far as that can be seen.
func (k kernel) busy(d device) reason {
	family := familyIDs(d)
	all := k.processes()
	if where := mountedElsewhere(all, family); where != "" {
		return reason{CheckMounted, "it is mounted on " + where, "umount it there, or choose the other slot"}
	}
	r := reason{
		check: CheckClaimed,
		why:   "it is in use (the kernel denies exclusive access)",
		hint:  "find who uses it (lsblk, fuser), or choose the other slot",
	}
	who := titles(all, func(p process) bool {
		return p.has(func(fd string) bool {
			id, ok := p.opened(fd)
			return ok && id.rdev != 0 && slices.Contains(family, deviceID(id.rdev))
		})
	})
	if who != "" {
		r.why += "; it is open in " + who
		r.hint = "wait until that program has ended, or choose the other slot"
	}
	return r
}

// familyIDs are the numbers of the device and its relatives, as far as sysfs tells.
func familyIDs(d device) []string {
	var ids []string
	for _, member := range d.family() {
		if id, err := member.id(); err == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// mountedElsewhere says where one of the devices is mounted in the mount namespace of some process; "" if
// nowhere that can be seen.
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
