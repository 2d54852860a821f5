package blockdev

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

func inodeWords(info os.FileInfo) string {
	i := inodeOf(info)
	return fmt.Sprintf(" device=%s inode=%d", deviceID(i.dev), i.ino)
}

func deviceIdentity(info os.FileInfo) (string, error) {
	d, err := live().device(inodeOf(info).rdev)
	if err != nil {
		return "", err
	}
	return d.identity(), nil
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
