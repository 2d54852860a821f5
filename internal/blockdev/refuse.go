package blockdev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev/mountinfo"
)

// refuse says why path, which info describes, must not be written, as a *RefusedError. Checks that are lifted
// do not count. O_EXCL closes the gap between this look and the opening; this look gives the reasons, and
// sees what O_EXCL does not.
func (k kernel) refuse(path string, info os.FileInfo, lifted []string) error {
	reasons, err := k.reasons(path, info)
	if err != nil {
		return err
	}
	for _, r := range reasons {
		if !slices.Contains(lifted, r.check) {
			return r.refused(path)
		}
	}
	return nil
}

// reason is what speaks against writing to something.
type reason struct{ check, why, hint string }

func (r reason) refused(path string) *RefusedError {
	return &RefusedError{path, r.check, r.why, r.hint}
}

func (k kernel) reasons(path string, info os.FileInfo) ([]reason, error) {
	u, err := k.users()
	if err != nil {
		return nil, err
	}
	if !IsBlockDevice(info) {
		return u.ofFile(path, info)
	}
	d, err := k.device(inodeOf(info).rdev)
	if err != nil {
		return nil, err
	}
	return u.ofFamily(d)
}

func (u users) ofFile(path string, info os.FileInfo) ([]reason, error) {
	all, err := u.of(inodeOf(info))
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i].why = "it " + all[i].why
	}
	stray, err := strays(path, info)
	return append(all, stray...), err
}

// RefuseStray is a *RefusedError when path is a regular file under /dev, where a device was meant, unless force lifts
// CheckInDev. ErrNotLiftable is about force.
func RefuseStray(path string, force []string) error {
	if err := checkForce(force); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || slices.Contains(force, CheckInDev) {
		return err
	}
	all, err := strays(path, info)
	if err != nil || len(all) == 0 {
		return err
	}
	return all[0].refused(path)
}

// strays finds the file that someone made where a device node was meant: it would fill memory.
func strays(path string, info os.FileInfo) ([]reason, error) {
	dev, err := os.Stat("/dev")
	if err != nil || inodeOf(dev).dev != inodeOf(info).dev {
		return nil, nil
	}
	if real, err := filepath.EvalSymlinks(path); err != nil || !strings.HasPrefix(real, "/dev/") {
		return nil, err
	}
	return []reason{{
		check: CheckInDev,
		why:   "it is a regular file under /dev, not a device",
		hint:  "check the device's name, and remove the file",
	}}, nil
}

// relation is how the sentence about d's relative begins.
func relation(d, member device) string {
	if member == d {
		return "it "
	}
	if _, ok := member.disk(); ok {
		return "its partition " + member.name() + " "
	}
	return "its disk " + member.name() + " "
}

// users is who uses files and devices, at one moment.
type users struct {
	kernel  kernel
	root    []string // numbers of the devices that the running system lies on
	mounts  []mountinfo.Mount
	unknown error // why root and mounts are not known, which matters only where a device is involved
	swaps   []swap
	loops   []loop
}

// swap is a file or device that is swapped to.
type swap struct {
	inode
	path string
}

// loop is a loop device, and the file or device it is attached to.
type loop struct {
	inode
	device
}

func (k kernel) users() (u users, err error) {
	u.kernel = k
	if u.mounts, u.unknown = k.mounts(); u.unknown == nil {
		u.root, u.unknown = k.rootDevices(u.mounts)
	}
	if u.swaps, err = k.swaps(); err != nil {
		return u, err
	}
	u.loops, err = k.loops()
	return u, err
}

func (k kernel) loops() ([]loop, error) {
	disks, err := k.disks()
	if err != nil {
		return nil, err
	}
	var all []loop
	for _, disk := range disks {
		if b, ok := disk.backing(); ok {
			all = append(all, loop{b.inode, disk})
		}
	}
	return all, nil
}

// of is who uses a file or device through another name than its own. The reasons begin with a verb.
func (u users) of(target inode) (all []reason, err error) {
	for _, swap := range u.swaps {
		if swap.same(target) {
			all = append(all, reason{CheckSwap, "is used as swap", "swapoff " + swap.path})
		}
	}
	for _, loop := range u.loops {
		if !loop.same(target) {
			continue
		}
		above, err := u.ofLoop(loop)
		if err != nil {
			return nil, err
		}
		all = append(all, above...)
	}
	return all, nil
}

// ofLoop is who uses what the loop device is attached to, through it.
func (u users) ofLoop(l loop) ([]reason, error) {
	attached := "is what the loop device " + l.node() + " is attached to"
	above, err := u.ofFamily(l.device)
	if err != nil {
		return nil, err
	}
	if busy, is := u.kernel.claimed(l.device); is && len(above) == 0 {
		above = []reason{busy}
	}
	for i := range above {
		above[i].why = attached + "; there, " + above[i].why
	}
	return append(above, reason{CheckLoop, attached, "losetup -d " + l.node() + ", or name that"}), nil
}

// ofFamily is who uses a device, its partitions, or the disk it is a partition of.
func (u users) ofFamily(d device) ([]reason, error) {
	var all []reason
	for _, member := range d.family() {
		reasons, err := u.ofDevice(member)
		if err != nil {
			return nil, err
		}
		for _, r := range reasons {
			all = append(all, reason{r.check, relation(d, member) + r.why, r.hint})
		}
	}
	return all, nil
}

// ofDevice is who uses a device, without its relatives. The reasons begin with a verb.
func (u users) ofDevice(d device) (all []reason, err error) {
	id, err := d.id()
	if err = errors.Join(u.unknown, err); err != nil {
		return nil, err
	}
	if slices.Contains(u.root, id) {
		all = append(all, reason{CheckRoot, "holds the running system (/)", "choose the other slot"})
	}
	all = append(all, mountedOn(u.mounts, id)...)
	holders, err := d.linked("holders")
	if err != nil {
		return nil, err
	}
	for _, top := range holders {
		hint := "name " + top.node() + ", or take it apart first"
		all = append(all, reason{CheckHolder, "is part of " + top.title(), hint})
	}
	number, err := parseDeviceID(id)
	if err != nil {
		return nil, err
	}
	others, err := u.of(inode{rdev: number})
	return append(all, others...), err
}

func mountedOn(mounts []mountinfo.Mount, id string) (all []reason) {
	for _, m := range mounts {
		if mountedDevice(m) == id {
			hint := "umount " + m.Point + ", or choose the other slot"
			all = append(all, reason{CheckMounted, "is mounted on " + m.Point, hint})
		}
	}
	return all
}

// mountedDevice is the number of the device that is mounted. A file system over several devices (btrfs) has a
// number of its own; then the source counts.
func mountedDevice(m mountinfo.Mount) string {
	if !m.Anonymous() || !strings.HasPrefix(m.Source, "/dev/") {
		return m.Device
	}
	info, err := os.Stat(m.Source)
	if err != nil || !IsBlockDevice(info) {
		return m.Device
	}
	return deviceID(inodeOf(info).rdev)
}

// rootDevices are the devices that the running system lies on: what is mounted on /, or the layers of an
// overlay there, and whatever these are stacked on.
func (k kernel) rootDevices(mounts []mountinfo.Mount) ([]string, error) {
	var ids []string
	for _, m := range mounts {
		if m.Point == "/" {
			ids = append(ids, mountedDevice(m))
			ids = append(ids, layerIDs(m.Layers())...)
		}
	}
	for i := 0; i < len(ids); i++ { // below the devices that are being added, too
		below, err := k.slaveIDs(ids[i])
		if err != nil {
			return nil, err
		}
		ids = append(ids, below...)
	}
	return ids, nil
}

// layerIDs are the devices of an overlay's directories, as far as they can be seen from here.
func layerIDs(l mountinfo.Layers) []string {
	var ids []string
	for _, dir := range slices.Concat(l.Lower, l.Data, []string{l.Upper}) {
		if info, err := os.Stat(dir); err == nil {
			ids = append(ids, deviceID(inodeOf(info).dev))
		}
	}
	return ids
}

// slaveIDs are the numbers of the devices that the device is stacked on. What is no device, as the file
// system of number 0:22, has none.
func (k kernel) slaveIDs(id string) ([]string, error) {
	number, err := parseDeviceID(id)
	if err != nil || unix.Major(number) == 0 {
		return nil, err
	}
	d, err := k.device(number)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // not to be seen from this container
	}
	if err != nil {
		return nil, err
	}
	slaves, err := d.linked("slaves")
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, slave := range slaves {
		id, err := slave.id()
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}
