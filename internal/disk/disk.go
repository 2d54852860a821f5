// Package disk finds partitions: by GPT name, PARTUUID or number in a disk or disk image, by name among all
// disks of a running Linux, and the one that / is mounted from; and it reads from a superblock how large a
// file system is, what it can be known by, and whether its journal must be replayed. It only reads. It knows nothing
// of images, and opens nothing for writing.
package disk

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"cairn/internal/blockdev"
)

// What a caller decides by.
var (
	ErrNoTable      = errors.New("no GPT partition table")
	ErrMBR          = fmt.Errorf("%w: it has an MBR (DOS) partition table", ErrNoTable)
	ErrInvalidTable = errors.New("invalid partition table")
	ErrNotFound     = errors.New("not found")
	ErrAmbiguous    = errors.New("ambiguous")
	ErrNoRoot       = errors.New("not known which block device / is mounted from")
)

// Partition is an entry of a GPT. Offsets and sizes are bytes, UUID and Type are lower-case GUIDs.
type Partition struct {
	Number int    `json:"number"` // from 1, as in sda1; numbers may be left out
	Name   string `json:"name"`
	UUID   string `json:"uuid"`
	Type   string `json:"type"` // "" where only the running kernel was asked
	Start  int64  `json:"start"`
	Size   int64  `json:"size"`
	Node   string `json:"node,omitempty"` // the kernel's device for it, "" in disk images
}

// Partitions lists the partitions of a disk or disk image in the order of their numbers. If the table at the
// start is damaged, its backup at the end counts. A table whose partitions overlap or lie outside the disk is
// an ErrInvalidTable, whatever it is used for.
func Partitions(path string) ([]Partition, error) {
	f, err := blockdev.OpenRead(path, blockdev.Section{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	parts, err := partitions(f)
	if err != nil {
		return nil, fmt.Errorf("reading the partitions of %s: %w", path, err)
	}
	return parts, nil
}

func partitions(f *blockdev.File) ([]Partition, error) {
	sector := int64(0) // a file does not say
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
	known, err := sysfs("/sys").partitionsOf(f.Path())
	if err != nil {
		return nil, err
	}
	return withNodes(parts, known), nil
}

// withNodes fills in the nodes of the partitions that the kernel has at the very same place.
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

// Find is the partition with that name, UUID or number: ErrNotFound if there is none, ErrAmbiguous if there
// is more than one, for GPT allows equal names.
func Find(parts []Partition, name string) (Partition, error) {
	return only(parts, fmt.Sprintf("partition %q", name), func(p Partition) bool {
		return name != "" && (p.Name == name || strings.EqualFold(p.UUID, name) || strconv.Itoa(p.Number) == name)
	})
}

// only is the one partition that is wanted; what says in messages which that is.
func only(parts []Partition, what string, wanted func(Partition) bool) (Partition, error) {
	var found []Partition
	for _, p := range parts {
		if wanted(p) {
			found = append(found, p)
		}
	}
	switch len(found) {
	case 0:
		return Partition{}, fmt.Errorf("%s: %w (there is %s)", what, ErrNotFound, list(parts))
	case 1:
		return found[0], nil
	}
	return Partition{}, fmt.Errorf("%s is %w: it is %s", what, ErrAmbiguous, list(found))
}

// list names partitions in a message.
func list(parts []Partition) string {
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
