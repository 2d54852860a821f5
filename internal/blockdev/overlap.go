package blockdev

import "fmt"

// Overlaps says why two opened sections share bytes, and "" if they do not. It sees through links, partitions
// and their disks, and loop devices and the files behind them. Of a stacked device (dm, md) it is not known
// where its bytes lie: it overlaps with each device it is built on, but not with others built on the same.
func Overlaps(a, b *File) (why string, err error) {
	return live().overlaps(a, b)
}

func (k kernel) overlaps(a, b *File) (string, error) {
	x, err := k.extents(a)
	if err != nil {
		return "", fmt.Errorf("where the bytes of %s lie: %w", a.path, err)
	}
	y, err := k.extents(b)
	if err != nil {
		return "", fmt.Errorf("where the bytes of %s lie: %w", b.path, err)
	}
	for _, p := range x {
		for _, q := range y {
			if lo, hi, ok := p.shared(q); ok {
				return fmt.Sprintf("%s and %s share bytes %d to %d of %s", a.path, b.path, lo, hi, p.title), nil
			}
		}
	}
	return "", nil
}

// extent is a run of bytes of one file or device that a section is made of.
type extent struct {
	inode
	title  string
	lo, hi int64
	vague  bool // somewhere in here: a stacked device says no more
}

func (e extent) shared(f extent) (lo, hi int64, ok bool) {
	if !e.same(f.inode) || e.vague && f.vague {
		return 0, 0, false
	}
	lo, hi = max(e.lo, f.lo), min(e.hi, f.hi)
	return lo, hi, lo < hi
}

// extents is where f's bytes lie: in what was opened, and in all that is below it.
func (k kernel) extents(f *File) ([]extent, error) {
	info, err := f.f.Stat()
	if err != nil {
		return nil, err
	}
	top := extent{inode: inodeOf(info), title: f.path, lo: f.offset(), hi: f.offset() + f.Size()}
	return k.expand(nil, top)
}

// expand appends e and the extents below it to all.
func (k kernel) expand(all []extent, e extent) ([]extent, error) {
	all = append(all, e)
	if e.rdev == 0 {
		return all, nil
	}
	d, err := k.device(e.rdev)
	if err != nil {
		return nil, err
	}
	below, err := d.below(e)
	if err != nil {
		return nil, err
	}
	for _, next := range below {
		if all, err = k.expand(all, next); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// below is where the bytes of e, which is part of d, lie one floor down.
func (d device) below(e extent) ([]extent, error) {
	if disk, ok := d.disk(); ok {
		start, err := d.sectors("start")
		if err != nil {
			return nil, err
		}
		next, err := disk.extent(e.lo+start, e.hi+start)
		next.vague = e.vague
		return []extent{next}, err
	}
	if b, ok := d.backing(); ok {
		return []extent{{b.inode, b.path, e.lo + b.offset, e.hi + b.offset, e.vague}}, nil
	}
	slaves, err := d.linked("slaves")
	if err != nil {
		return nil, err
	}
	var all []extent
	for _, slave := range slaves {
		size, err := slave.sectors("size")
		if err != nil {
			return nil, err
		}
		next, err := slave.extent(0, size)
		if err != nil {
			return nil, err
		}
		next.vague = true
		all = append(all, next)
	}
	return all, nil
}

func (d device) extent(lo, hi int64) (extent, error) {
	id, err := d.id()
	if err != nil {
		return extent{}, err
	}
	number, err := parseDeviceID(id)
	return extent{inode: inode{rdev: number}, title: d.node(), lo: lo, hi: hi}, err
}
