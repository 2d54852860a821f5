package disk

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"cairn/internal/blockdev/mountinfo"
)

// devices is what the kernel tells of block devices.
type devices interface {
	// number is the number, MAJOR:MINOR, of the block device that a node stands for.
	number(node string) (string, error)
	// describe finds the device of that number.
	describe(number string) (blockDevice, error)
}

// blockDevice is how the kernel calls a device, and a mapped one its user.
type blockDevice struct {
	node   string // the kernel's, which need not be there
	mapped string // "" if it is not mapped
	uuid   string // of the mapping: its prefix says whose it is
}

func resolveRoot() (Location, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Location{}, fmt.Errorf("@root: %w: %w", ErrNoRoot, err)
	}
	return rootLocation(mountinfo.Parse(string(text)), sysfs("/sys"))
}

func rootLocation(mounts []mountinfo.Mount, d devices) (Location, error) {
	var node string
	var device blockDevice
	m, err := rootMount(mounts)
	if err == nil {
		node, device, err = find(m, d)
	}
	if err != nil {
		return Location{}, fmt.Errorf("@root: %w: %w; name the device instead", ErrNoRoot, err)
	}
	l := whole(node)
	l.Note = node + device.title() + ", " + mounted(m)
	return l, nil
}

// mounted says in words how m is mounted.
func mounted(m mountinfo.Mount) string {
	text := "mounted on " + m.Point + " as " + m.Kind
	if m.Root != "/" {
		text = m.Root + " of it " + text
	}
	if m.ReadOnly() {
		text += " (read-only)"
	}
	if m.Point != "/" {
		text += ", the lowest layer of the overlay on /"
	}
	return text
}

// title says what a mapped device is, whose plain bytes are what the file system is made of.
func (b blockDevice) title() string {
	if b.mapped == "" {
		return ""
	}
	for _, kind := range []struct{ prefix, name string }{
		{"CRYPT-VERITY-", "dm-verity"}, {"CRYPT-", "dm-crypt"}, {"LVM-", "LVM volume"},
	} {
		if strings.HasPrefix(b.uuid, kind.prefix) {
			return fmt.Sprintf(" (%s %q)", kind.name, b.mapped)
		}
	}
	return fmt.Sprintf(" (device-mapper %q)", b.mapped)
}

// find is the node of the device that m is mounted from. The kernel's number counts; names, as /dev/root, may
// lie.
func find(m mountinfo.Mount, d devices) (string, blockDevice, error) {
	number := m.Device
	if m.Anonymous() {
		var err error
		if number, err = numberOfSource(m, d); err != nil {
			return "", blockDevice{}, err
		}
	}
	device, err := d.describe(number)
	if err != nil { // no sysfs in this container, but perhaps the node
		device = blockDevice{node: m.Source}
	}
	for _, node := range []string{device.node, "/dev/mapper/" + device.mapped, m.Source} {
		if found, err := d.number(node); err == nil && found == number {
			return node, device, nil
		}
	}
	return "", device, fmt.Errorf("%s is mounted from device %s, whose node %s is missing",
		m.Point, number, device.node)
}

// numberOfSource is the device of a file system that has a number of its own, as btrfs. Of several it is the one
// that was named when mounting.
func numberOfSource(m mountinfo.Mount, d devices) (string, error) {
	if !strings.HasPrefix(m.Source, "/") {
		return "", fmt.Errorf("%s is mounted from %q as %s, which is no block device", m.Point, m.Source, m.Kind)
	}
	number, err := d.number(m.Source)
	if err != nil {
		return "", fmt.Errorf("%s is mounted as %s from what is no block device here: %w", m.Point, m.Kind, err)
	}
	return number, nil
}

// rootMount is the mount that the bytes under / come from: the last one on /, or what is below an overlay
// there.
func rootMount(mounts []mountinfo.Mount) (mountinfo.Mount, error) {
	i := lastIndex(mounts, func(m mountinfo.Mount) bool { return m.Point == "/" })
	if i < 0 {
		return mountinfo.Mount{}, errors.New("nothing is mounted on it (a chroot?)")
	}
	m := mounts[i]
	// What is mounted on / hides what else was, and is itself below none of its layers.
	mounts = slices.DeleteFunc(slices.Clone(mounts), func(m mountinfo.Mount) bool { return m.Point == "/" })
	for m.Kind == "overlay" {
		mounts = slices.DeleteFunc(mounts, func(other mountinfo.Mount) bool { return other.Device == m.Device })
		var err error
		if m, err = lowestLayer(mounts, m); err != nil {
			return mountinfo.Mount{}, err
		}
	}
	return m, nil
}

func lastIndex(mounts []mountinfo.Mount, is func(mountinfo.Mount) bool) int {
	for i, m := range slices.Backward(mounts) {
		if is(m) {
			return i
		}
	}
	return -1
}

// lowestLayer is the mount that the lowest directory of an overlay lies on.
func lowestLayer(mounts []mountinfo.Mount, overlay mountinfo.Mount) (mountinfo.Mount, error) {
	lower := overlay.Layers().Lower
	if len(lower) == 0 {
		return mountinfo.Mount{}, fmt.Errorf("an overlay is mounted on %s, which does not tell its layers", overlay.Point)
	}
	dir := path.Clean("/" + lower[len(lower)-1])
	if m, ok := holding(mounts, dir); ok && onDevice(m) {
		return m, nil
	}
	// The overlay was mounted before this became the root: the directory has another name by now, or none.
	found := fitting(mounts, dir)
	which := fmt.Sprintf("the lowest layer of the overlay on %s is %s", overlay.Point, dir)
	switch len(found) {
	case 0:
		return mountinfo.Mount{}, errors.New(which + ", which cannot be seen from here")
	case 1:
		return found[0], nil
	}
	return mountinfo.Mount{}, fmt.Errorf("%s, which may be what is mounted on %s or on %s",
		which, found[0].Point, found[1].Point)
}

// fitting are the mounts that can be what was dir, one of each file system.
func fitting(mounts []mountinfo.Mount, dir string) (found []mountinfo.Mount) {
	for _, m := range mounts {
		same := func(other mountinfo.Mount) bool { return other.Device == m.Device }
		if onDevice(m) && fits(m, dir) && !slices.ContainsFunc(found, same) {
			found = append(found, m)
		}
	}
	return found
}

// holding is the mount that dir lies on, if mounts has it.
func holding(mounts []mountinfo.Mount, dir string) (m mountinfo.Mount, ok bool) {
	for ; dir != "/"; dir = path.Dir(dir) {
		if i := lastIndex(mounts, func(m mountinfo.Mount) bool { return m.Point == dir }); i >= 0 {
			return mounts[i], true
		}
	}
	return m, false
}

// onDevice says whether there can be a block device below m.
func onDevice(m mountinfo.Mount) bool {
	return !m.Anonymous() || m.Kind == "overlay" || strings.HasPrefix(m.Source, "/dev/")
}

// fits says whether m can be what was dir when the overlay was mounted. What was moved along keeps the last part
// of its name; a part that was bound elsewhere is that directory; and if dir was the root itself, m is all
// of a file system that nothing writes to.
func fits(m mountinfo.Mount, dir string) bool {
	if dir == "/" {
		return m.Root == "/" && m.ReadOnly()
	}
	return path.Base(m.Point) == path.Base(dir) || m.Root == dir
}
