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

// Location is the place of a seed, image or target.
type Location struct {
	Path string // without symbolic links; it may not exist
	blockdev.Section
	Partition *Partition // nil if the text named none
	Note      string     // the device of @root: "/dev/vda2, mounted on / as squashfs (read-only)"
}

// Resolve returns the location that a text names:
//
//	PATH            a file or device; a file may not exist yet, but not under /dev, /sys or /proc
//	DISK#NAME       a partition, by name, UUID or number, of a disk (the kernel's node) or disk image (a section)
//	PARTLABEL=NAME  a partition of any disk of this machine
//	PARTUUID=UUID   a partition of any disk of this machine
//	@root           the device that / is mounted from; for an overlay the device of the lowest layer
//
// Resolve follows symbolic links, also those to a file that does not exist yet. An existing path with # in it is that
// path. So is a new name without # in an existing directory. \# is a # that is part of a path.
//
// A name without a partition is ErrNotFound, and a name of several partitions ErrAmbiguous. An absent disk is
// fs.ErrNotExist. ErrNoRoot is about @root. The name of a partition never gives the whole disk. Size is -1 for
// a whole file or device. Resolve creates no node in /dev.
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
	return wholeFile(path), err
}

// isNewFile reports whether text is a path in an existing directory, and has # in the directory's name only.
func isNewFile(text string) bool {
	if len(escape.Separators(filepath.Base(text), '#')) > 0 {
		return false
	}
	info, err := os.Stat(filepath.Dir(text))
	return err == nil && info.IsDir()
}

func wholeFile(path string) Location {
	return Location{Path: path, Section: blockdev.Section{Size: -1}}
}

func resolvePath(path string) (Location, error) {
	real, err := filepath.EvalSymlinks(path)
	return wholeFile(real), err
}

// splitName splits DISK#NAME at the last # after an existing path, because both parts may contain #. A directory
// counts only if NAME has no slash: then NAME cannot be in another directory.
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
	parts, err := readPartitions(f)
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
	return nodeLocation(p)
}

// nodeLocation returns the location of a partition that the kernel has.
func nodeLocation(p Partition) (Location, error) {
	if err := liveKernel().checkNode(p.Node); err != nil {
		return Location{}, err
	}
	l := wholeFile(p.Node)
	l.Partition = &p
	return l, nil
}

func resolveTag(tag, value string) (Location, error) {
	if value == "" {
		return Location{}, fmt.Errorf("%s= names no partition: %w", tag, ErrNotFound)
	}
	p, err := liveKernel().findTag(tag, value)
	if err != nil {
		return Location{}, err
	}
	return nodeLocation(p)
}

// findTag returns the only partition of all disks with the tag.
func (k kernel) findTag(tag, value string) (Partition, error) {
	parts, unread := k.allPartitions()
	p, err := findOne(parts, tag+"="+value, func(p Partition) bool {
		return tag == "PARTLABEL" && p.Name == value || tag == "PARTUUID" && strings.EqualFold(p.UUID, value)
	})
	if errors.Is(err, ErrNotFound) && unread != nil {
		return p, fmt.Errorf("looking for %s=%s: %w", tag, value, unread) // an unread table may hold it
	}
	return p, err
}
