package blockdev

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"cairn/internal/blockdev/sysfs"
)

// Identity returns a text that identifies the section across restarts of the machine, as a key for facts about
// its content. It names the bytes and does not describe them. A device is identified by its PARTUUID, the serial
// number of its disk, its mapping or backing file, and its size; a file by its inode, size and path. Where the
// kernel has nothing but a device's name, the text holds that name, which another device may get after a
// restart. The text is not parsed, and its form may change between versions of this program.
func (f *File) Identity() (string, error) {
	info, err := f.f.Stat()
	if err != nil {
		return "", fmt.Errorf("identifying %s: %w", f.path, err)
	}
	name, err := filepath.Abs(f.path)
	if err != nil {
		return "", err
	}
	inode := inodeOf(info)
	name = fmt.Sprintf("file path=%q device=%s inode=%d", name, sysfs.ID(inode.dev), inode.ino)
	if f.device {
		d, err := liveKernel().sys.Device(sysfs.ID(inode.rdev))
		if err != nil {
			return "", fmt.Errorf("identifying %s: %w", f.path, err)
		}
		name = deviceIdentity(d)
	}
	return fmt.Sprintf("%s size=%d at=%d", name, f.Size(), f.offset()), nil
}

// deviceIdentity returns the attributes of a device that survive a restart, or its name if there are none.
func deviceIdentity(d sysfs.Device) string {
	words := lastingAttributes(d)
	disk, isPartition := d.Disk()
	if isPartition {
		words = append(words, lastingAttributes(disk)...)
	}
	if len(words) == 0 {
		words = append(words, fmt.Sprintf("name=%q", d.Name()))
	}
	if isPartition {
		words = slices.Concat(words, quoteAttribute(d, "partition"), quoteAttribute(d, "start"))
	}
	return "device " + strings.Join(words, " ")
}

// lastingAttributes returns the attributes that distinguish the device itself, without its disk, from others of
// its type. The driver decides where they are: virtio, NVMe, SCSI, MMC, loop, device-mapper, md.
func lastingAttributes(d sysfs.Device) []string {
	var all []string
	for _, name := range []string{
		"serial", "wwid", "device/serial", "device/wwid", "device/cid",
		"loop/backing_file", "loop/offset", "dm/uuid", "dm/name", "md/uuid",
	} {
		all = append(all, quoteAttribute(d, name)...)
	}
	if value, _ := d.Uevent("PARTUUID"); value != "" {
		all = append(all, fmt.Sprintf("partuuid=%q", value))
	}
	return all
}

// quoteAttribute returns an attribute as a word, and nothing if it is missing or empty.
func quoteAttribute(d sysfs.Device, attribute string) []string {
	value, err := d.Text(attribute)
	if value = strings.TrimSpace(value); err != nil || value == "" {
		return nil
	}
	return []string{fmt.Sprintf("%s=%q", attribute, value)}
}
