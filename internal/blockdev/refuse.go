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
	"cairn/internal/blockdev/sysfs"
)

// checkTarget returns a *RefusedError if path, which info describes, must not be written. It ignores the lifted
// checks. O_EXCL closes the gap between this check and the opening; this check gives the reasons, and finds uses
// that O_EXCL does not.
func (k kernel) checkTarget(path string, info os.FileInfo, lifted []string) error {
	reasons, err := k.findReasons(path, info)
	if err != nil {
		return err
	}
	for _, r := range reasons {
		if !slices.Contains(lifted, r.check) {
			return r.asError(path)
		}
	}
	return nil
}

// reason is a failed check, its explanation, and a remedy.
type reason struct{ check, why, hint string }

func (r reason) asError(path string) *RefusedError {
	return &RefusedError{path, r.check, r.why, r.hint}
}

func (k kernel) findReasons(path string, info os.FileInfo) ([]reason, error) {
	u, err := k.findUsers()
	if err != nil {
		return nil, err
	}
	if !IsBlockDevice(info) {
		return u.fileReasons(path, info)
	}
	d, err := k.sys.Device(sysfs.ID(inodeOf(info).rdev))
	if err != nil {
		return nil, err
	}
	return u.familyReasons(d)
}

func (u users) fileReasons(path string, info os.FileInfo) ([]reason, error) {
	all, err := u.indirectReasons(inodeOf(info))
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i].why = "it " + all[i].why
	}
	stray, err := findStray(path, info)
	return append(all, stray...), err
}

// RefuseStray returns a *RefusedError if path is a regular file under /dev, where a device was meant, unless force
// lifts CheckInDev. It returns ErrNotLiftable if force names a check that cannot be lifted.
func RefuseStray(path string, force []string) error {
	if err := checkForce(force); err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || slices.Contains(force, CheckInDev) {
		return err
	}
	all, err := findStray(path, info)
	if err != nil || len(all) == 0 {
		return err
	}
	return all[0].asError(path)
}

// findStray finds a file that was created in place of a device node: writing to it would fill memory.
func findStray(path string, info os.FileInfo) ([]reason, error) {
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

// relationPrefix returns the beginning of a sentence about d's relative.
func relationPrefix(d, member sysfs.Device) string {
	if member == d {
		return "it "
	}
	if _, ok := member.Disk(); ok {
		return "its partition " + member.Name() + " "
	}
	return "its disk " + member.Name() + " "
}

// users is a snapshot of the uses of files and devices.
type users struct {
	kernel  kernel
	root    []string // numbers of the devices that hold the running system
	mounts  []mountinfo.Mount
	unknown error // why root and mounts are unknown; it matters only for devices
	swaps   []swap
	loops   []loop
}

// swap is a file or device that is used as swap.
type swap struct {
	inode
	path string
}

// loop is a loop device, and the inode of the file or device behind it.
type loop struct {
	inode
	device sysfs.Device
}

func (k kernel) findUsers() (u users, err error) {
	u.kernel = k
	if u.mounts, u.unknown = k.readMounts(); u.unknown == nil {
		u.root, u.unknown = k.rootDevices(u.mounts)
	}
	if u.swaps, err = k.readSwaps(); err != nil {
		return u, err
	}
	u.loops, err = k.listLoops()
	return u, err
}

func (k kernel) listLoops() ([]loop, error) {
	disks, err := k.sys.Disks()
	if err != nil {
		return nil, err
	}
	var all []loop
	for _, disk := range disks {
		if b, ok := backingOf(disk); ok {
			all = append(all, loop{b.inode, disk})
		}
	}
	return all, nil
}

// indirectReasons returns the uses of a file or device through swap and loop devices. The reasons begin with a verb.
func (u users) indirectReasons(target inode) (all []reason, err error) {
	for _, swap := range u.swaps {
		if swap.sameBytes(target) {
			all = append(all, reason{CheckSwap, "is used as swap", "swapoff " + swap.path})
		}
	}
	for _, loop := range u.loops {
		if !loop.sameBytes(target) {
			continue
		}
		above, err := u.loopReasons(loop)
		if err != nil {
			return nil, err
		}
		all = append(all, above...)
	}
	return all, nil
}

// loopReasons returns the uses of a file or device through the loop device attached to it.
func (u users) loopReasons(l loop) ([]reason, error) {
	backs := "backs the loop device " + l.device.Node()
	above, err := u.familyReasons(l.device)
	if err != nil {
		return nil, err
	}
	if busy, is := u.kernel.claimedReason(l.device); is && len(above) == 0 {
		above = []reason{busy}
	}
	for i := range above {
		above[i].why = backs + "; there, " + above[i].why
	}
	return append(above, reason{CheckLoop, backs, "losetup -d " + l.device.Node() + ", or name that device"}), nil
}

// familyReasons returns the uses of a device, its partitions, and its disk.
func (u users) familyReasons(d sysfs.Device) ([]reason, error) {
	var all []reason
	for _, member := range familyOf(d) {
		reasons, err := u.deviceReasons(member)
		if err != nil {
			return nil, err
		}
		for _, r := range reasons {
			all = append(all, reason{r.check, relationPrefix(d, member) + r.why, r.hint})
		}
	}
	return all, nil
}

// deviceReasons returns the uses of a device without its relatives. The reasons begin with a verb.
func (u users) deviceReasons(d sysfs.Device) (all []reason, err error) {
	id, err := d.ID()
	if err = errors.Join(u.unknown, err); err != nil {
		return nil, err
	}
	if slices.Contains(u.root, id) {
		all = append(all, reason{CheckRoot, "holds the running system (/)", "choose the other slot"})
	}
	all = append(all, mountedOn(u.mounts, id)...)
	holders, err := d.Linked("holders")
	if err != nil {
		return nil, err
	}
	for _, top := range holders {
		hint := "name " + top.Node() + ", or take it apart first"
		all = append(all, reason{CheckHolder, "is part of " + titleOf(top), hint})
	}
	number, err := sysfs.ParseID(id)
	if err != nil {
		return nil, err
	}
	others, err := u.indirectReasons(inode{rdev: number})
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

// mountedDevice returns the number of the mounted device. A file system over several devices (btrfs) has a
// number of its own; then the source counts.
func mountedDevice(m mountinfo.Mount) string {
	if !m.Anonymous() || !strings.HasPrefix(m.Source, "/dev/") {
		return m.Device
	}
	info, err := os.Stat(m.Source)
	if err != nil || !IsBlockDevice(info) {
		return m.Device
	}
	return sysfs.ID(inodeOf(info).rdev)
}

// rootDevices returns the devices that hold the running system: the device mounted on / or those of an overlay's
// layers there, and all devices below them.
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

// layerIDs returns the devices of an overlay's directories, as far as they are visible.
func layerIDs(l mountinfo.Layers) []string {
	var ids []string
	for _, dir := range slices.Concat(l.Lower, l.Data, []string{l.Upper}) {
		if info, err := os.Stat(dir); err == nil {
			ids = append(ids, sysfs.ID(inodeOf(info).dev))
		}
	}
	return ids
}

// slaveIDs returns the numbers of the devices below a stacked device. The number of a file system without a
// device, such as 0:22, has none.
func (k kernel) slaveIDs(id string) ([]string, error) {
	number, err := sysfs.ParseID(id)
	if err != nil || unix.Major(number) == 0 {
		return nil, err
	}
	d, err := k.sys.Device(sysfs.ID(number))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // not visible in this container
	}
	if err != nil {
		return nil, err
	}
	slaves, err := d.Linked("slaves")
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, slave := range slaves {
		id, err := slave.ID()
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	return ids, nil
}
