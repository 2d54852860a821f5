package disk

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

// sysfs is where Linux tells about its devices: /sys, or a made-up one in tests.
type sysfs string

// partitionsOf are the partitions that the kernel has of the disk with that node.
func (s sysfs) partitionsOf(node string) ([]Partition, error) {
	dir, err := s.directory(node)
	if err != nil {
		return nil, err
	}
	return kernelPartitions(dir)
}

// directory is where sysfs describes the device that node stands for, whatever the node is called.
func (s sysfs) directory(node string) (string, error) {
	id, err := deviceID(node)
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(string(s), "dev/block", id))
	if err != nil {
		return "", fmt.Errorf("looking %s up in sysfs: %w", node, err)
	}
	return dir, nil
}

// deviceID is the number of the device at node as sysfs writes it.
func deviceID(node string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		return "", fmt.Errorf("looking at %s: %w", node, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("%s is not a block device", node)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}

// checkNode makes sure that the node, which was made from the kernel's name, stands for the device of that
// name: /dev need not be the kernel's own.
func (s sysfs) checkNode(node string) error {
	dir, err := s.directory(node)
	if err != nil {
		return err
	}
	if nodeOf(dir) != node {
		return fmt.Errorf("%s is the node of another device, %s", node, filepath.Base(dir))
	}
	return nil
}

// nodeOf is where devtmpfs has the device that dir describes.
func nodeOf(dir string) string { return "/dev/" + strings.ReplaceAll(filepath.Base(dir), "!", "/") }

// allPartitions are those of all disks. An old kernel does not tell a PARTUUID, and one that does not know
// GPT not even a name: then the disk's table says it. The error is about tables that could not be read.
func (s sysfs) allPartitions() ([]Partition, error) {
	disks, err := filepath.Glob(filepath.Join(string(s), "block/*"))
	if err != nil {
		return nil, err
	}
	var all []Partition
	var unread []error
	for _, disk := range disks {
		parts, err := kernelPartitions(disk)
		if errors.Is(err, fs.ErrNotExist) {
			continue // unplugged meanwhile
		}
		if err == nil && !named(parts) {
			parts, err = fromTable(disk, parts)
		}
		if err != nil {
			unread = append(unread, err)
		}
		all = append(all, parts...)
	}
	return all, errors.Join(unread...)
}

func named(parts []Partition) bool {
	for _, p := range parts {
		if p.UUID == "" {
			return false
		}
	}
	return true
}

// fromTable reads the table of a disk whose partitions the kernel cannot name; without a GPT, or when it
// cannot be read, known is all there is.
func fromTable(dir string, known []Partition) ([]Partition, error) {
	parts, err := Partitions(nodeOf(dir))
	if errors.Is(err, ErrNoTable) {
		return known, nil
	}
	if err != nil {
		return known, err
	}
	var present []Partition
	for _, p := range parts {
		if p.Node != "" {
			present = append(present, p)
		}
	}
	return present, nil
}

// kernelPartitions are the partitions of the disk that dir describes.
func kernelPartitions(dir string) ([]Partition, error) {
	marks, err := filepath.Glob(filepath.Join(dir, "*/partition"))
	if err != nil {
		return nil, err
	}
	var all []Partition
	for _, mark := range marks {
		p, err := kernelPartition(filepath.Dir(mark))
		if err != nil {
			return nil, fmt.Errorf("reading sysfs: %w", err)
		}
		all = append(all, p)
	}
	return all, nil
}

func kernelPartition(dir string) (p Partition, err error) {
	number, err := attribute(dir, "partition")
	if err != nil {
		return p, err
	}
	// The unit of both is 512 bytes, whatever the sector size.
	start, err := attribute(dir, "start")
	if err != nil {
		return p, err
	}
	size, err := attribute(dir, "size")
	if err != nil {
		return p, err
	}
	event, err := uevent(dir)
	if err != nil {
		return p, err
	}
	return Partition{
		Number: int(number),
		Name:   event["PARTNAME"],
		UUID:   strings.ToLower(event["PARTUUID"]),
		Start:  start * 512,
		Size:   size * 512,
		Node:   nodeOf(dir),
	}, nil
}

func attribute(dir, name string) (int64, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

func uevent(dir string) (map[string]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "uevent"))
	if err != nil {
		return nil, err
	}
	event := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		event[key] = value
	}
	return event, nil
}

func (s sysfs) number(node string) (string, error) { return deviceID(node) }

func (s sysfs) describe(number string) (blockDevice, error) {
	dir, err := filepath.EvalSymlinks(filepath.Join(string(s), "dev/block", number))
	if err != nil {
		return blockDevice{}, err
	}
	b := blockDevice{node: nodeOf(dir)}
	for name, field := range map[string]*string{"dm/name": &b.mapped, "dm/uuid": &b.uuid} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return blockDevice{}, err
		}
		*field = strings.TrimSuffix(string(text), "\n")
	}
	return b, nil
}
