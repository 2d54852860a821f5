package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev/sysfs"
)

// kernel finds disks and partitions in a sysfs.
type kernel struct{ sysfs.FS }

func liveKernel() kernel { return kernel{sysfs.Live} }

// deviceAt returns the device that node stands for, whatever the node's name.
func (k kernel) deviceAt(node string) (sysfs.Device, error) {
	id, err := k.numberOf(node)
	if err != nil {
		return "", err
	}
	d, err := k.Device(id)
	if err != nil {
		return "", fmt.Errorf("%s: %w", node, err)
	}
	return d, nil
}

// numberOf returns the number of the device at node, MAJOR:MINOR.
func (kernel) numberOf(node string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(node, &st); err != nil {
		return "", fmt.Errorf("stat %s: %w", node, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("%s is not a block device", node)
	}
	return sysfs.ID(st.Rdev), nil
}

// checkNode checks that node, which was made from the kernel's name of a device, stands for that device: /dev
// need not be the kernel's devtmpfs.
func (k kernel) checkNode(node string) error {
	d, err := k.deviceAt(node)
	if err != nil {
		return err
	}
	if d.Node() != node {
		return fmt.Errorf("%s is the node of another device, %s", node, d.Name())
	}
	return nil
}

// allPartitions returns the partitions of all disks. Some kernels have no PARTUUID of a partition, and kernels
// without GPT support no name either: then they are read from the disk's table. The error joins those of tables
// that could not be read.
func (k kernel) allPartitions() ([]Partition, error) {
	disks, err := k.Disks()
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
		if err == nil && slices.ContainsFunc(parts, func(p Partition) bool { return p.UUID == "" }) {
			parts, err = partitionsFromTable(disk, parts)
		}
		if err != nil {
			unread = append(unread, err)
		}
		all = append(all, parts...)
	}
	return all, errors.Join(unread...)
}

// partitionsFromTable reads the table of a disk whose partitions the kernel cannot name. It returns known if the
// disk has no GPT or the table cannot be read.
func partitionsFromTable(disk sysfs.Device, known []Partition) ([]Partition, error) {
	parts, err := Partitions(disk.Node())
	if errors.Is(err, ErrNoTable) {
		return known, nil
	}
	if err != nil {
		return known, err
	}
	return slices.DeleteFunc(parts, func(p Partition) bool { return p.Node == "" }), nil
}

// kernelPartitions returns the partitions that the kernel has of a disk.
func kernelPartitions(disk sysfs.Device) ([]Partition, error) {
	var all []Partition
	for _, d := range disk.Partitions() {
		number, err1 := d.Number("partition")
		start, err2 := d.Bytes("start")
		size, err3 := d.Bytes("size")
		name, err4 := d.Uevent("PARTNAME")
		uuid, err5 := d.Uevent("PARTUUID")
		if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
			return nil, fmt.Errorf("reading sysfs: %w", err)
		}
		all = append(all, Partition{
			Number: int(number), Name: name, UUID: strings.ToLower(uuid), Start: start, Size: size, Node: d.Node(),
		})
	}
	return all, nil
}

func (k kernel) describeDevice(number string) (blockDevice, error) {
	d, err := k.Device(number)
	if err != nil {
		return blockDevice{}, err
	}
	b := blockDevice{node: d.Node()}
	for name, field := range map[string]*string{"dm/name": &b.mapped, "dm/uuid": &b.uuid} {
		if *field, err = d.Text(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return blockDevice{}, err
		}
	}
	return b, nil
}
