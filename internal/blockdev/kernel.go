package blockdev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev/mountinfo"
	"cairn/internal/blockdev/sysfs"
)

// kernel holds the mount points of the file systems in which Linux describes its devices and processes. Tests use
// made-up trees.
type kernel struct {
	sys  sysfs.FS
	proc string // procfs
}

func liveKernel() kernel { return kernel{sysfs.Live, "/proc"} }

// familyOf returns d, its partitions, and the disk that it is a partition of. A use of one of them is a use of d.
func familyOf(d sysfs.Device) []sysfs.Device {
	all := append([]sysfs.Device{d}, d.Partitions()...)
	if disk, ok := d.Disk(); ok {
		all = append(all, disk)
	}
	return all
}

// titleOf returns the device's name, for a mapped device with the name of its mapping.
func titleOf(d sysfs.Device) string {
	if mapped, err := d.Text("dm/name"); err == nil {
		return d.Name() + " (" + mapped + ")"
	}
	return d.Name()
}

// inode identifies a file, or a device by its number rdev, whatever the node.
type inode struct{ dev, ino, rdev uint64 }

func inodeOf(info fs.FileInfo) inode {
	st := info.Sys().(*syscall.Stat_t)
	id := inode{dev: st.Dev, ino: st.Ino}
	if IsBlockDevice(info) {
		id.rdev = st.Rdev
	}
	return id
}

// sameBytes reports whether two inodes refer to the same bytes.
func (i inode) sameBytes(j inode) bool {
	if i.rdev != 0 || j.rdev != 0 {
		return i.rdev == j.rdev
	}
	return i == j
}

// backing is the file or device behind a loop device: size bytes at offset, where size 0 extends to the end.
type backing struct {
	inode
	path         string
	offset, size int64
}

// backingOf returns the file or device behind the loop device d. It asks the driver, because the path in sysfs
// may be gone or belong to another mount namespace. It uses the path where the device cannot be opened.
func backingOf(d sysfs.Device) (b backing, ok bool) {
	path, err := d.Text("loop/backing_file")
	if err != nil {
		return backing{}, false
	}
	b = backing{path: path}
	if status, err := loopStatus(d.Node()); err == nil {
		b.inode = inode{status.Device, status.Inode, status.Rdevice}
		b.offset, b.size = int64(status.Offset), int64(status.Sizelimit)
		return b, true
	}
	info, err := os.Stat(path)
	if err != nil {
		return backing{}, false
	}
	b.inode = inodeOf(info)
	b.offset, _ = d.Number("loop/offset") // 0, the usual value, where it cannot be read
	b.size, _ = d.Number("loop/sizelimit")
	return b, true
}

func loopStatus(node string) (*unix.LoopInfo64, error) {
	f, err := os.Open(node)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var status *unix.LoopInfo64
	err = withDescriptor(f, func(fd int) (err error) {
		status, err = unix.IoctlLoopGetStatus64(fd)
		return err
	})
	return status, err
}

func (k kernel) readMounts() ([]mountinfo.Mount, error) {
	text, err := os.ReadFile(filepath.Join(k.proc, "self/mountinfo"))
	return mountinfo.Parse(string(text)), err
}

// readSwaps returns the devices and files that are used as swap.
func (k kernel) readSwaps() ([]swap, error) {
	text, err := os.ReadFile(filepath.Join(k.proc, "swaps"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, err
	}
	var all []swap
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "/") {
			continue // the header line
		}
		path := mountinfo.Unescape(strings.Fields(line)[0])
		if info, err := os.Stat(path); err == nil {
			all = append(all, swap{inodeOf(info), path})
		}
	}
	return all, nil
}
