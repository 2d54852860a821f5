package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev/mountinfo"
)

// kernel is where Linux tells about its devices. Tests put made-up ones in its place.
type kernel struct {
	sys  string // sysfs
	proc string // procfs
}

func live() kernel { return kernel{"/sys", "/proc"} }

// device is a block device as sysfs shows it: the directory of a disk or, inside a disk's, of a partition.
type device struct{ dir string }

// device finds a device by its number.
func (k kernel) device(number uint64) (device, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(k.sys, "dev/block", deviceID(number)))
	if err != nil {
		return device{}, fmt.Errorf("looking a device up in sysfs: %w", err)
	}
	return device{dir}, nil
}

// disks are all block devices that are not partitions.
func (k kernel) disks() ([]device, error) {
	names, err := os.ReadDir(filepath.Join(k.sys, "block"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // a container without sysfs
	}
	if err != nil {
		return nil, err
	}
	var all []device
	for _, name := range names {
		dir, err := filepath.EvalSymlinks(filepath.Join(k.sys, "block", name.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // unplugged meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, device{dir})
	}
	return all, nil
}

// name is the kernel's name, as in /dev, where some drivers have a directory of their own (cciss/c0d0).
func (d device) name() string { return strings.ReplaceAll(filepath.Base(d.dir), "!", "/") }

// node is where devtmpfs has the device.
func (d device) node() string { return "/dev/" + d.name() }

// title is the name with, for a mapped device, the name its user gave to it.
func (d device) title() string {
	if mapped, err := d.text("dm/name"); err == nil {
		return d.name() + " (" + mapped + ")"
	}
	return d.name()
}

func (d device) text(attribute string) (string, error) {
	b, err := os.ReadFile(filepath.Join(d.dir, attribute))
	return strings.TrimSuffix(string(b), "\n"), err
}

func (d device) number(attribute string) (int64, error) {
	text, err := d.text(attribute)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

// sectors is an attribute that sysfs gives in units of 512 bytes whatever the sector size, in bytes.
func (d device) sectors(attribute string) (int64, error) {
	n, err := d.number(attribute)
	return n * 512, err
}

// id is the device number as sysfs and mountinfo write it, MAJOR:MINOR.
func (d device) id() (string, error) { return d.text("dev") }

func deviceID(number uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(number), unix.Minor(number))
}

func parseDeviceID(id string) (uint64, error) {
	left, right, _ := strings.Cut(id, ":")
	major, err := strconv.ParseUint(left, 10, 32)
	if err != nil {
		return 0, err
	}
	minor, err := strconv.ParseUint(right, 10, 32)
	return unix.Mkdev(uint32(major), uint32(minor)), err
}

// disk is the disk that d is a partition of.
func (d device) disk() (disk device, ok bool) {
	if _, err := os.Stat(filepath.Join(d.dir, "partition")); err != nil {
		return device{}, false
	}
	return device{filepath.Dir(d.dir)}, true
}

func (d device) partitions() []device {
	marks, _ := filepath.Glob(filepath.Join(d.dir, "*", "partition")) // fails for bad patterns only
	var all []device
	for _, mark := range marks {
		all = append(all, device{filepath.Dir(mark)})
	}
	return all
}

// family is d, its partitions and the disk it is a partition of: who uses one of them uses d.
func (d device) family() []device {
	all := append([]device{d}, d.partitions()...)
	if disk, ok := d.disk(); ok {
		all = append(all, disk)
	}
	return all
}

// linked are the devices that a directory of links names: holders lie on d, slaves below it.
func (d device) linked(directory string) ([]device, error) {
	links, err := filepath.Glob(filepath.Join(d.dir, directory, "*"))
	if err != nil {
		return nil, err
	}
	var all []device
	for _, link := range links {
		dir, err := filepath.EvalSymlinks(link)
		if err != nil {
			return nil, err
		}
		all = append(all, device{dir})
	}
	return all, nil
}

// inode identifies a file, or by rdev a device whatever its node is called.
type inode struct{ dev, ino, rdev uint64 }

func inodeOf(info fs.FileInfo) inode {
	st := info.Sys().(*syscall.Stat_t)
	id := inode{dev: st.Dev, ino: st.Ino}
	if IsBlockDevice(info) {
		id.rdev = st.Rdev
	}
	return id
}

// same says whether two inodes hold the same bytes.
func (i inode) same(j inode) bool {
	if i.rdev != 0 || j.rdev != 0 {
		return i.rdev == j.rdev
	}
	return i == j
}

// backing is what a loop device takes its bytes from: size bytes from offset on, where size 0 is up to the
// end.
type backing struct {
	inode
	path         string
	offset, size int64
}

// backing says what the loop device d is attached to. The driver is asked, since the path in sysfs may belong
// to another mount namespace or be gone; the path serves where the device cannot be opened.
func (d device) backing() (b backing, ok bool) {
	path, err := d.text("loop/backing_file")
	if err != nil {
		return backing{}, false
	}
	b = backing{path: path}
	if status, err := loopStatus(d.node()); err == nil {
		b.inode = inode{status.Device, status.Inode, status.Rdevice}
		b.offset, b.size = int64(status.Offset), int64(status.Sizelimit)
		return b, true
	}
	info, err := os.Stat(path)
	if err != nil {
		return backing{}, false
	}
	b.inode = inodeOf(info)
	b.offset, _ = d.number("loop/offset") // 0, the usual value, where it cannot be read
	b.size, _ = d.number("loop/sizelimit")
	return b, true
}

func loopStatus(node string) (*unix.LoopInfo64, error) {
	f, err := os.Open(node)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var status *unix.LoopInfo64
	err = control(f, func(fd int) (err error) {
		status, err = unix.IoctlLoopGetStatus64(fd)
		return err
	})
	return status, err
}

func (k kernel) mounts() ([]mountinfo.Mount, error) {
	text, err := os.ReadFile(filepath.Join(k.proc, "self/mountinfo"))
	return mountinfo.Parse(string(text)), err
}

// swaps are the devices and files that are swapped to.
func (k kernel) swaps() ([]swap, error) {
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
			continue // the heading
		}
		path := mountinfo.Unescape(strings.Fields(line)[0])
		if info, err := os.Stat(path); err == nil {
			all = append(all, swap{inodeOf(info), path})
		}
	}
	return all, nil
}
