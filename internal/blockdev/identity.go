package blockdev

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Identity is a text that stays the same as long as the section is the same one, also over a restart of the
// machine, for remembering by it what was found there. It says which bytes are meant and nothing of what they are:
// a device goes by its PARTUUID, the serial number of its disk, what it is mapped or attached to, and
// its size; a file by its inode, size and path. Where the kernel tells nothing but a device's name it is that,
// and another device may bear it tomorrow. It is not parsed, and may change with the version of this program.
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
	name = fmt.Sprintf("file path=%q device=%s inode=%d", name, deviceID(inode.dev), inode.ino)
	if f.device {
		d, err := live().device(inode.rdev)
		if err != nil {
			return "", fmt.Errorf("identifying %s: %w", f.path, err)
		}
		name = d.identity()
	}
	return fmt.Sprintf("%s size=%d at=%d", name, f.Size(), f.offset()), nil
}

// identity is what sysfs tells of the device that will hold tomorrow, and its name if that is nothing.
func (d device) identity() string {
	words := d.marks()
	disk, isPartition := d.disk()
	if isPartition {
		words = append(words, disk.marks()...)
	}
	if len(words) == 0 {
		words = append(words, fmt.Sprintf("name=%q", d.name()))
	}
	if isPartition {
		words = slices.Concat(words, d.mark("partition"), d.mark("start"))
	}
	return "device " + strings.Join(words, " ")
}

// marks are the attributes that tell the device, without its relatives, from its like. Disks have theirs in
// different places: virtio, NVMe, SCSI, MMC, loop, device-mapper, md.
func (d device) marks() []string {
	var all []string
	for _, name := range []string{
		"serial", "wwid", "device/serial", "device/wwid", "device/cid",
		"loop/backing_file", "loop/offset", "dm/uuid", "dm/name", "md/uuid",
	} {
		all = append(all, d.mark(name)...)
	}
	event, _ := d.text("uevent")
	for line := range strings.Lines(event) {
		if value, ok := strings.CutPrefix(line, "PARTUUID="); ok {
			all = append(all, fmt.Sprintf("partuuid=%q", strings.TrimSpace(value)))
		}
	}
	return all
}

// mark is an attribute as a word; none if it is missing or empty.
func (d device) mark(attribute string) []string {
	value, err := d.text(attribute)
	if value = strings.TrimSpace(value); err != nil || value == "" {
		return nil
	}
	return []string{fmt.Sprintf("%s=%q", attribute, value)}
}
