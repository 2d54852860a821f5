// Package disk finds partitions: by GPT name, PARTUUID or number on a disk or in a disk image, and by name
// among all disks of a running Linux. It finds the partition that / is mounted from. It reads from a superblock
// the size of a file system, an identity for it, and whether its journal must be replayed. It only reads, and
// knows nothing of images.
package disk

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"cairn/internal/blockdev"
)

// The errors that callers distinguish.
var (
	ErrNoTable      = errors.New("no GPT partition table")
	ErrMBR          = fmt.Errorf("%w: it has an MBR (DOS) partition table", ErrNoTable)
	ErrInvalidTable = errors.New("invalid partition table")
	ErrNotFound     = errors.New("not found")
	ErrAmbiguous    = errors.New("ambiguous")
	ErrNoRoot       = errors.New("the block device of / is unknown")
)

// Partition is an entry of a GPT. Offsets and sizes are bytes, UUID and Type are lower-case GUIDs.
type Partition struct {
	Number int    `json:"number"` // from 1, as in sda1; there may be gaps
	Name   string `json:"name"`
	UUID   string `json:"uuid"`
	Type   string `json:"type"` // "" if it was read from the running kernel only
	Start  int64  `json:"start"`
	Size   int64  `json:"size"`
	Node   string `json:"node,omitempty"` // the kernel's device node; "" in disk images
}

// Partitions returns the partitions of a disk or disk image in the order of their numbers. If the table at the
// start is damaged, it reads the backup at the end. If partitions overlap or lie outside the disk, the error is
// ErrInvalidTable.
func Partitions(path string) ([]Partition, error) {
	f, err := blockdev.OpenRead(path, blockdev.Section{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	parts, err := readPartitions(f)
	if err != nil {
		return nil, fmt.Errorf("reading the partitions of %s: %w", path, err)
	}
	return parts, nil
}

func readPartitions(f *blockdev.File) ([]Partition, error) {
	sector := int64(0) // unknown for a file
	if f.IsDevice() {
		var err error
		if sector, err = f.SectorSize(); err != nil {
			return nil, err
		}
	}
	parts, err := readTable(f, f.Size(), sector)
	if err != nil || !f.IsDevice() {
		return parts, err
	}
	device, err := liveKernel().deviceAt(f.Path())
	if err != nil {
		return nil, err
	}
	known, err := kernelPartitions(device)
	if err != nil {
		return nil, err
	}
	return withNodes(parts, known), nil
}

// withNodes sets the nodes of the partitions that the kernel has with the same number, start and size.
func withNodes(parts, known []Partition) []Partition {
	for i := range parts {
		for _, k := range known {
			if k.Number == parts[i].Number && k.Start == parts[i].Start && k.Size == parts[i].Size {
				parts[i].Node = k.Node
			}
		}
	}
	return parts
}

// Find returns the partition with the name, UUID or number. It returns ErrNotFound if there is none, and
// ErrAmbiguous if there are several: a GPT may hold equal names.
func Find(parts []Partition, name string) (Partition, error) {
	return findOne(parts, fmt.Sprintf("partition %q", name), func(p Partition) bool {
		return name != "" && (p.Name == name || strings.EqualFold(p.UUID, name) || strconv.Itoa(p.Number) == name)
	})
}

// findOne returns the only partition that match accepts. what names that partition in errors.
func findOne(parts []Partition, what string, match func(Partition) bool) (Partition, error) {
	var found []Partition
	for _, p := range parts {
		if match(p) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return Partition{}, fmt.Errorf("%s: %w (there is %s)", what, ErrNotFound, listNames(parts))
	case 1:
		return found[0], nil
	}
	return Partition{}, fmt.Errorf("%s is %w: it is %s", what, ErrAmbiguous, listNames(found))
}

// listNames lists partitions for a message.
func listNames(parts []Partition) string {
	if len(parts) == 0 {
		return "none"
	}
	var words []string
	for _, p := range parts {
		word := fmt.Sprintf("%d %q", p.Number, p.Name)
		if p.Node != "" {
			word = fmt.Sprintf("%s %q", p.Node, p.Name)
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}
