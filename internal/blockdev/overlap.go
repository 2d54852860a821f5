package blockdev

import (
	"fmt"

	"cairn/internal/blockdev/sysfs"
)

// Overlaps returns a text that names the bytes which two opened sections share, and "" if they share none. It
// follows links, partitions and their disks, and loop devices and the files behind them. The layout of a stacked
// device (dm, md) is unknown: it overlaps with each device below it, but not with other devices on the same ones.
func Overlaps(a, b *File) (why string, err error) {
	return liveKernel().findOverlap(a, b)
}

func (k kernel) findOverlap(a, b *File) (string, error) {
	x, err := k.fileExtents(a)
	if err != nil {
		return "", fmt.Errorf("finding the devices under %s: %w", a.path, err)
	}
	y, err := k.fileExtents(b)
	if err != nil {
		return "", fmt.Errorf("finding the devices under %s: %w", b.path, err)
	}
	for _, p := range x {
		for _, q := range y {
			if lo, hi, ok := p.intersect(q); ok {
				return fmt.Sprintf("%s and %s share bytes %d to %d of %s", a.path, b.path, lo, hi, p.title), nil
			}
		}
	}
	return "", nil
}

// extent is a range of bytes of a file or device that holds bytes of a section.
type extent struct {
	inode
	title  string
	lo, hi int64
	vague  bool // the bytes lie anywhere in the range: the layout of a stacked device is unknown
}

func (e extent) intersect(f extent) (lo, hi int64, ok bool) {
	if !e.sameBytes(f.inode) || e.vague && f.vague {
		return 0, 0, false
	}
	lo, hi = max(e.lo, f.lo), min(e.hi, f.hi)
	return lo, hi, lo < hi
}

// fileExtents returns the extents of f's bytes in the opened file and in every file and device below it.
func (k kernel) fileExtents(f *File) ([]extent, error) {
	info, err := f.f.Stat()
	if err != nil {
		return nil, err
	}
	top := extent{inode: inodeOf(info), title: f.path, lo: f.offset(), hi: f.offset() + f.Size()}
	return k.appendExtents(nil, top)
}

// appendExtents appends e and the extents below it to all.
func (k kernel) appendExtents(all []extent, e extent) ([]extent, error) {
	all = append(all, e)
	if e.rdev == 0 {
		return all, nil
	}
	d, err := k.sys.Device(sysfs.ID(e.rdev))
	if err != nil {
		return nil, err
	}
	below, err := extentsBelow(d, e)
	if err != nil {
		return nil, err
	}
	for _, next := range below {
		if all, err = k.appendExtents(all, next); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// extentsBelow returns the extents one level below e, which is part of d.
func extentsBelow(d sysfs.Device, e extent) ([]extent, error) {
	if disk, ok := d.Disk(); ok {
		start, err := d.Bytes("start")
		if err != nil {
			return nil, err
		}
		next, err := deviceExtent(disk, e.lo+start, e.hi+start)
		next.vague = e.vague
		return []extent{next}, err
	}
	if b, ok := backingOf(d); ok {
		return []extent{{b.inode, b.path, e.lo + b.offset, e.hi + b.offset, e.vague}}, nil
	}
	slaves, err := d.Linked("slaves")
	if err != nil {
		return nil, err
	}
	var all []extent
	for _, slave := range slaves {
		size, err := slave.Bytes("size")
		if err != nil {
			return nil, err
		}
		next, err := deviceExtent(slave, 0, size)
		if err != nil {
			return nil, err
		}
		next.vague = true
		all = append(all, next)
	}
	return all, nil
}

func deviceExtent(d sysfs.Device, lo, hi int64) (extent, error) {
	id, err := d.ID()
	if err != nil {
		return extent{}, err
	}
	number, err := sysfs.ParseID(id)
	return extent{inode: inode{rdev: number}, title: d.Node(), lo: lo, hi: hi}, err
}
