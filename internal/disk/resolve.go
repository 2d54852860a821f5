package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cairn/internal/atomicfile"
	"cairn/internal/blockdev"
	"cairn/internal/escape"
)

// Location is where the bytes of a seed, image or target are.
type Location struct {
	Path string // without symbolic links; it need not exist
	blockdev.Section
	Partition *Partition // nil if the text named none
	Note      string     // what @root has turned out to be: "/dev/vda2, mounted on / as squashfs (read-only)"
}

// Resolve finds what a user means by
//
//	PATH            a file or device; it may be about to be created, but not under /dev, /sys or /proc
//	DISK#NAME       a partition, by name, UUID or number, of a disk (the kernel's node) or disk image (a section)
//	PARTLABEL=NAME  a partition of any disk of this machine
//	PARTUUID=UUID   the same
//	@root           the device that / is mounted from; of an overlay, that of the lowest layer
//
// Symbolic links are followed, also one that leads to a file that is about to be created.
// A path with # in it that exists is that path, and so is a new name without # in a directory that exists; \# is
// a # that is part of a path. Names that stand for no partition are ErrNotFound, those that
// stand for more than one ErrAmbiguous; an absent disk is fs.ErrNotExist; ErrNoRoot is about @root. Never does
// the name of a partition give the whole disk. For a whole file or device Size is -1. No node is made in /dev.
func Resolve(text string) (Location, error) {
	if tag, value, ok := strings.Cut(text, "="); ok && (tag == "PARTLABEL" || tag == "PARTUUID") {
		return resolveTag(tag, value)
	}
	if text == "@root" {
		return resolveRoot()
	}
	_, err := os.Stat(text)
	if err == nil {
		return resolvePath(text)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return Location{}, err
	}
	if disk, name, ok := splitName(text); ok {
		return resolveName(disk, name)
	}
	path := escape.Unescape(text, '#')
	if path != text {
		if _, err = os.Stat(path); err == nil {
			return resolvePath(path)
		}
	}
	if len(escape.Separators(text, '#')) > 0 && !isNewFile(text) {
		return Location{}, fmt.Errorf("%w (of DISK#NAME, DISK is not there; write \\# for a # in a file's name)", err)
	}
	path, err = atomicfile.Resolve(path)
	return whole(path), err
}

// isNewFile reports whether text is a path whose directory exists, and has # in the directory's name only.
func isNewFile(text string) bool {
	if len(escape.Separators(filepath.Base(text), '#')) > 0 {
		return false
	}
	info, err := os.Stat(filepath.Dir(text))
	return err == nil && info.IsDir()
}

func whole(path string) Location { return Location{Path: path, Section: blockdev.Section{Size: -1}} }

func resolvePath(path string) (Location, error) {
	real, err := filepath.EvalSymlinks(path)
	return whole(real), err
}

// splitName parts DISK#NAME at the last # that has an existing path before it: both may contain one. A directory is
// no disk, unless the name cannot belong to a path in another one.
func splitName(text string) (disk, name string, ok bool) {
	for _, offset := range slices.Backward(escape.Separators(text, '#')) {
		disk, name = escape.Cut(text, '#', offset)
		info, err := os.Stat(disk)
		if err == nil && (!info.IsDir() || !strings.Contains(name, "/")) {
			return disk, name, true
		}
	}
	return "", "", false
}

func resolveName(path, name string) (Location, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return Location{}, err
	}
	f, err := blockdev.OpenRead(path, blockdev.Section{})
	if err != nil {
		return Location{}, err
	}
	defer f.Close()
	parts, err := partitions(f)
	if err != nil {
		return Location{}, fmt.Errorf("looking for partition %q of %s: %w", name, path, err)
	}
	p, err := Find(parts, name)
	if err != nil {
		return Location{}, fmt.Errorf("%s: %w", path, err)
	}
	if !f.IsDevice() {
		return Location{Path: path, Section: blockdev.Section{Offset: p.Start, Size: p.Size}, Partition: &p}, nil
	}
	if p.Node == "" {
		return Location{}, fmt.Errorf("partition %q of %s: the kernel has no device there (partprobe may help)", name, path)
	}
	return node(p)
}

// node is the location of a partition that the kernel has.
func node(p Partition) (Location, error) {
	if err := sysfs("/sys").checkNode(p.Node); err != nil {
		return Location{}, err
	}
	l := whole(p.Node)
	l.Partition = &p
	return l, nil
}

func resolveTag(tag, value string) (Location, error) {
	if value == "" {
		return Location{}, fmt.Errorf("%s= names no partition: %w", tag, ErrNotFound)
	}
	p, err := sysfs("/sys").findTag(tag, value)
	if err != nil {
		return Location{}, err
	}
	return node(p)
}

// findTag is the one partition of all disks that carries the tag.
func (s sysfs) findTag(tag, value string) (Partition, error) {
	parts, unread := s.allPartitions()
	p, err := only(parts, tag+"="+value, func(p Partition) bool {
		return tag == "PARTLABEL" && p.Name == value || tag == "PARTUUID" && strings.EqualFold(p.UUID, value)
	})
	if errors.Is(err, ErrNotFound) && unread != nil {
		return p, fmt.Errorf("looking for %s=%s: %w", tag, value, unread) // it may be there
	}
	return p, err
}
