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

// devices describes the block devices of a machine.
type devices interface {
	// numberOf returns the number, MAJOR:MINOR, of the block device that a node stands for.
	numberOf(node string) (string, error)
	// describeDevice returns the device with that number.
	describeDevice(number string) (blockDevice, error)
}

// blockDevice holds the names of a device and of its mapping.
type blockDevice struct {
	node   string // of the kernel; it may not exist
	mapped string // name of the mapping, "" if there is none
	uuid   string // UUID of the mapping; its prefix names the program that made it
}

func resolveRoot() (Location, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Location{}, fmt.Errorf("@root: %w: %w", ErrNoRoot, err)
	}
	return rootLocation(mountinfo.Parse(string(text)), liveKernel())
}

func rootLocation(mounts []mountinfo.Mount, d devices) (Location, error) {
	var node string
	var device blockDevice
	m, err := rootMount(mounts)
	if err == nil {
		node, device, err = findNode(m, d)
	}
	if err != nil {
		return Location{}, fmt.Errorf("@root: %w: %w; name the device instead", ErrNoRoot, err)
	}
	l := wholeFile(node)
	l.Note = node + device.title() + ", " + describeMount(m)
	return l, nil
}

// describeMount returns a text about the mount m.
func describeMount(m mountinfo.Mount) string {
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

// title returns the type and name of a mapped device, whose plain bytes hold the file system.
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

// findNode returns the node of the device that m is mounted from. It compares numbers, because names such as
// /dev/root may be wrong.
func findNode(m mountinfo.Mount, d devices) (string, blockDevice, error) {
	number := m.Device
	if m.Anonymous() {
		var err error
		if number, err = numberOfSource(m, d); err != nil {
			return "", blockDevice{}, err
		}
	}
	device, err := d.describeDevice(number)
	if err != nil { // a container without sysfs may still have the node
		device = blockDevice{node: m.Source}
	}
	for _, node := range []string{device.node, "/dev/mapper/" + device.mapped, m.Source} {
		if found, err := d.numberOf(node); err == nil && found == number {
			return node, device, nil
		}
	}
	return "", device, fmt.Errorf("%s is mounted from device %s, whose node %s is missing",
		m.Point, number, device.node)
}

// numberOfSource returns the device of a file system that has a number of its own, such as btrfs. Of several devices
// it returns the one named at mount time.
func numberOfSource(m mountinfo.Mount, d devices) (string, error) {
	if !strings.HasPrefix(m.Source, "/") {
		return "", fmt.Errorf("%s is mounted from %q as %s, which is not a block device", m.Point, m.Source, m.Kind)
	}
	number, err := d.numberOf(m.Source)
	if err != nil {
		return "", fmt.Errorf("%s is mounted as %s from a source that is not a block device here: %w",
			m.Point, m.Kind, err)
	}
	return number, nil
}

// rootMount returns the mount that holds the bytes under /: the last mount on /, or the lowest layer of an overlay
// there.
func rootMount(mounts []mountinfo.Mount) (mountinfo.Mount, error) {
	i := lastIndex(mounts, func(m mountinfo.Mount) bool { return m.Point == "/" })
	if i < 0 {
		return mountinfo.Mount{}, errors.New("nothing is mounted on it (a chroot?)")
	}
	m := mounts[i]
	// The mount on / hides earlier mounts there, and cannot be one of its own layers.
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

// lowestLayer returns the mount that holds the lowest directory of an overlay.
func lowestLayer(mounts []mountinfo.Mount, overlay mountinfo.Mount) (mountinfo.Mount, error) {
	lower := overlay.Layers().Lower
	if len(lower) == 0 {
		return mountinfo.Mount{}, fmt.Errorf("the overlay on %s does not list its layers", overlay.Point)
	}
	dir := path.Clean("/" + lower[len(lower)-1])
	if m, ok := mountHolding(mounts, dir); ok && onDevice(m) {
		return m, nil
	}
	// The overlay was mounted before the root changed: the directory now has another name, or none.
	found := mountsFitting(mounts, dir)
	which := fmt.Sprintf("the lowest layer of the overlay on %s is %s", overlay.Point, dir)
	switch len(found) {
	case 0:
		return mountinfo.Mount{}, errors.New(which + ", which cannot be seen from here")
	case 1:
		return found[0], nil
	}
	return mountinfo.Mount{}, fmt.Errorf("%s, which may be the mount on %s or the one on %s",
		which, found[0].Point, found[1].Point)
}

// mountsFitting returns the mounts that may have been dir, one for each file system.
func mountsFitting(mounts []mountinfo.Mount, dir string) (found []mountinfo.Mount) {
	for _, m := range mounts {
		same := func(other mountinfo.Mount) bool { return other.Device == m.Device }
		if onDevice(m) && couldBe(m, dir) && !slices.ContainsFunc(found, same) {
			found = append(found, m)
		}
	}
	return found
}

// mountHolding returns the mount that dir lies on.
func mountHolding(mounts []mountinfo.Mount, dir string) (m mountinfo.Mount, ok bool) {
	for ; dir != "/"; dir = path.Dir(dir) {
		if i := lastIndex(mounts, func(m mountinfo.Mount) bool { return m.Point == dir }); i >= 0 {
			return mounts[i], true
		}
	}
	return m, false
}

// onDevice reports whether m may have a block device below it.
func onDevice(m mountinfo.Mount) bool {
	return !m.Anonymous() || m.Kind == "overlay" || strings.HasPrefix(m.Source, "/dev/")
}

// couldBe reports whether m may have been dir when the overlay was mounted. A mount that was moved keeps the last
// part of its path. A bind mount of dir has it as its root. If dir was /, m is a whole read-only file system.
func couldBe(m mountinfo.Mount, dir string) bool {
	if dir == "/" {
		return m.Root == "/" && m.ReadOnly()
	}
	return path.Base(m.Point) == path.Base(dir) || m.Root == dir
}
