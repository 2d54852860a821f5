package blockdev

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// refuse says why path, which info describes, must not be written, as a *RefusedError. O_EXCL closes the gap
// between this look and the opening; this look gives the reasons, and sees what O_EXCL does not.
func refuse(path string, info os.FileInfo) error { return live().refuse(path, info) }

func (k kernel) refuse(path string, info os.FileInfo) error {
	if isBlockDevice(info) {
		return k.refuseDevice(path, inodeOf(info).rdev)
	}
	users, err := k.users()
	if err != nil {
		return err
	}
	if why, hint := users.of(inodeOf(info)); why != "" {
		return &RefusedError{path, "it " + why, hint}
	}
	return refuseStray(path, info)
}

// refuseStray finds the file that someone made where a device node was meant: it would fill memory.
func refuseStray(path string, info os.FileInfo) error {
	dev, err := os.Stat("/dev")
	if err != nil || inodeOf(dev).dev != inodeOf(info).dev {
		return nil
	}
	if real, err := filepath.EvalSymlinks(path); err != nil || !strings.HasPrefix(real, "/dev/") {
		return err
	}
	return &RefusedError{
		Path: path,
		Why:  "it is a regular file under /dev, not a device",
		Hint: "check the device's name, and remove the file",
	}
}

func (k kernel) refuseDevice(path string, number uint64) error {
	d, err := k.device(number)
	if err != nil {
		return err
	}
	users, err := k.deviceUsers()
	if err != nil {
		return err
	}
	for _, member := range d.family() {
		why, hint, err := users.ofDevice(member)
		if err != nil {
			return err
		}
		if why != "" {
			return &RefusedError{path, relation(d, member) + why, hint}
		}
	}
	return nil
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
	root   []string // numbers of the devices that the running system lies on
	mounts []mount
	swaps  []use
	loops  []use
}

// use is a file or device that the kernel reads and writes for someone.
type use struct {
	inode
	by string // the swap's path, or the loop device
}

// users finds the users of files and devices.
func (k kernel) users() (u users, err error) {
	if u.swaps, err = k.swaps(); err != nil {
		return u, err
	}
	u.loops, err = k.loops()
	return u, err
}

// deviceUsers finds also those that only devices have.
func (k kernel) deviceUsers() (u users, err error) {
	if u, err = k.users(); err != nil {
		return u, err
	}
	if u.mounts, err = k.mounts(); err != nil {
		return u, err
	}
	u.root, err = k.rootDevices(u.mounts)
	return u, err
}

// loops are the files and devices that loop devices are attached to.
func (k kernel) loops() ([]use, error) {
	disks, err := k.disks()
	if err != nil {
		return nil, err
	}
	var all []use
	for _, disk := range disks {
		if b, ok := disk.backing(); ok {
			all = append(all, use{b.inode, disk.node()})
		}
	}
	return all, nil
}

// of says what a file or device is used for, and what to do about it; "" if nothing is known.
func (u users) of(target inode) (why, hint string) {
	for _, swap := range u.swaps {
		if swap.same(target) {
			return "is used as swap", "swapoff " + swap.by
		}
	}
	for _, loop := range u.loops {
		if loop.same(target) {
			return "is what the loop device " + loop.by + " is attached to", "losetup -d " + loop.by + ", or name that"
		}
	}
	return "", ""
}

// ofDevice is of for a device, without its relatives.
func (u users) ofDevice(d device) (why, hint string, err error) {
	id, err := d.id()
	if err != nil {
		return "", "", err
	}
	if slices.Contains(u.root, id) {
		return "holds the running system (/)", "choose the other slot", nil
	}
	for _, m := range u.mounts {
		if m.deviceID() == id {
			return "is mounted on " + m.point, "umount " + m.point + ", or choose the other slot", nil
		}
	}
	holders, err := d.linked("holders")
	if err != nil {
		return "", "", err
	}
	if len(holders) > 0 {
		top := holders[0]
		return "is part of " + top.title(), "name " + top.node() + ", or take it apart first", nil
	}
	number, err := parseDeviceID(id)
	why, hint = u.of(inode{rdev: number})
	return why, hint, err
}

// deviceID is the number of the device that is mounted. A file system over several devices (btrfs) has a
// number of its own; then the source counts.
func (m mount) deviceID() string {
	if !strings.HasPrefix(m.id, "0:") || !strings.HasPrefix(m.source, "/dev/") {
		return m.id
	}
	info, err := os.Stat(m.source)
	if err != nil || !isBlockDevice(info) {
		return m.id
	}
	return deviceID(inodeOf(info).rdev)
}

// rootDevices are the devices that the running system lies on: what is mounted on /, or the layers of an
// overlay there, and whatever these are stacked on.
func (k kernel) rootDevices(mounts []mount) ([]string, error) {
	var ids []string
	for _, m := range mounts {
		if m.point == "/" {
			ids = append(ids, m.deviceID())
			ids = append(ids, layerIDs(m)...)
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
func layerIDs(m mount) []string {
	var ids []string
	for option := range strings.SplitSeq(m.options, ",") {
		key, value, _ := strings.Cut(option, "=")
		if key != "upperdir" && !strings.HasPrefix(key, "lowerdir") {
			continue
		}
		for dir := range strings.SplitSeq(value, ":") {
			if info, err := os.Stat(dir); err == nil {
				ids = append(ids, deviceID(inodeOf(info).dev))
			}
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
