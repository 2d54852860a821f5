// Package sysfs reads the kernel's description of block devices under /sys: names, numbers, attributes, partitions
// and stacked devices (Documentation/ABI/stable/sysfs-block). It opens no device.
package sysfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// FS is the mount point of a sysfs: Live, or a made-up tree in tests.
type FS string

// Live is the sysfs of the running kernel.
const Live FS = "/sys"

// ID returns a device number as sysfs and mountinfo write it, MAJOR:MINOR.
func ID(number uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(number), unix.Minor(number))
}

// ParseID parses MAJOR:MINOR.
func ParseID(id string) (uint64, error) {
	left, right, _ := strings.Cut(id, ":")
	major, err := strconv.ParseUint(left, 10, 32)
	if err != nil {
		return 0, err
	}
	minor, err := strconv.ParseUint(right, 10, 32)
	return unix.Mkdev(uint32(major), uint32(minor)), err
}

// Device is the directory of a block device, without symbolic links. The directory of a partition lies in that
// of its disk.
type Device string

// Device returns the device with a number MAJOR:MINOR. The error is fs.ErrNotExist if sysfs has none.
func (s FS) Device(id string) (Device, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(string(s), "dev/block", id))
	if err != nil {
		return "", fmt.Errorf("looking up device %s in sysfs: %w", id, err)
	}
	return Device(dir), nil
}

// Disks returns all block devices that are not partitions. There are none in a container without sysfs.
func (s FS) Disks() ([]Device, error) {
	names, err := os.ReadDir(filepath.Join(string(s), "block"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Device
	for _, name := range names {
		dir, err := filepath.EvalSymlinks(filepath.Join(string(s), "block", name.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // unplugged meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, Device(dir))
	}
	return all, nil
}

// Name returns the kernel's name of the device, as in /dev. Some drivers have a directory there (cciss/c0d0).
func (d Device) Name() string { return strings.ReplaceAll(filepath.Base(string(d)), "!", "/") }

// Node returns the path that devtmpfs has for the device.
func (d Device) Node() string { return "/dev/" + d.Name() }

// ID returns the device's number, MAJOR:MINOR.
func (d Device) ID() (string, error) { return d.Text("dev") }

// Text returns an attribute without its final newline.
func (d Device) Text(attribute string) (string, error) {
	b, err := os.ReadFile(filepath.Join(string(d), attribute))
	return strings.TrimSuffix(string(b), "\n"), err
}

// Number returns a numeric attribute.
func (d Device) Number(attribute string) (int64, error) {
	text, err := d.Text(attribute)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(text, 10, 64)
}

// Bytes returns an attribute such as start or size in bytes. sysfs has it in units of 512 bytes, whatever the
// sector size.
func (d Device) Bytes(attribute string) (int64, error) {
	n, err := d.Number(attribute)
	return n * 512, err
}

// Uevent returns the value of a key of the device's uevent attribute, and "" if there is none.
func (d Device) Uevent(key string) (string, error) {
	text, err := d.Text("uevent")
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key+"="); ok {
			return strings.TrimSuffix(value, "\n"), nil
		}
	}
	return "", err
}

// Disk returns the disk that d is a partition of.
func (d Device) Disk() (disk Device, ok bool) {
	if _, err := os.Stat(filepath.Join(string(d), "partition")); err != nil {
		return "", false
	}
	return Device(filepath.Dir(string(d))), true
}

// Partitions returns the partitions that the kernel has of a disk.
func (d Device) Partitions() []Device {
	marks, _ := filepath.Glob(filepath.Join(string(d), "*", "partition")) // fails only for malformed patterns
	var all []Device
	for _, mark := range marks {
		all = append(all, Device(filepath.Dir(mark)))
	}
	return all
}

// Linked returns the devices that a directory of links lists: holders are on top of d, slaves below it.
func (d Device) Linked(directory string) ([]Device, error) {
	links, err := filepath.Glob(filepath.Join(string(d), directory, "*"))
	if err != nil {
		return nil, err
	}
	var all []Device
	for _, link := range links {
		dir, err := filepath.EvalSymlinks(link)
		if err != nil {
			return nil, err
		}
		all = append(all, Device(dir))
	}
	return all, nil
}
