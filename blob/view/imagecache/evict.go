package imagecache

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// evict makes room when the images take more than the limit. Images that no process has open go first, the least
// recently used one before the others; then extents of the open ones, by their last use. Pinned chunks go when nothing
// else is left.
func (k *keeper) evict() {
	d := k.dir
	if d.limit <= 0 {
		return
	}
	used := d.usedBytes()
	d.nearFull.Store(used > d.limit-d.limit/8)
	if used <= d.limit {
		return
	}
	files, target, before := d.openFiles(), d.limit-d.limit/16, used
	used -= d.evictClosed(files, used-target)
	used -= evictOpen(files, used-target, false)
	if used > d.limit {
		used -= evictOpen(files, used-target, true)
	}
	d.evicted.Add(before - used)
	if used > d.limit {
		err := fmt.Errorf("%d bytes cannot be freed, and %d are allowed", used, d.limit)
		d.health.failed("keeping to the limit", err)
	}
}

// usedBytes returns how many bytes the images take on their disk.
func (d *Dir) usedBytes() (bytes int64) {
	for _, name := range byUse(d.path) {
		bytes += sizeOf(filepath.Join(d.path, name))
	}
	return bytes
}

func sizeOf(path string) (bytes int64) {
	for _, name := range []string{rawName, partialName} {
		if info, err := os.Stat(filepath.Join(path, name)); err == nil {
			n, _ := allocated(info)
			bytes += n
		}
	}
	return bytes
}

// evictClosed removes images that no process has open until so many bytes are free, and returns how many are.
func (d *Dir) evictClosed(open []*File, wanted int64) (freed int64) {
	names := byUse(d.path)
	slices.Reverse(names)
	for _, name := range names {
		path := filepath.Join(d.path, name)
		if freed >= wanted {
			break
		}
		if slices.ContainsFunc(open, func(f *File) bool { return f.path == path }) {
			continue
		}
		size := sizeOf(path)
		if removeImage(path) {
			freed += size
			d.removeDonor(path)
		}
	}
	return freed
}

// removeImage removes an image, unless a process has it open.
func removeImage(path string) bool {
	locked, err := claim(path)
	if err != nil {
		return false
	}
	defer locked.Close()
	for _, name := range []string{rawName, partialName, mapName, indexName, lockName} {
		os.Remove(filepath.Join(path, name))
	}
	return os.Remove(path) == nil
}

// victim is an extent of an open image, as far as it has something to evict: chunks lo up to but not including hi.
type victim struct {
	lo, hi int
	file   *File
	used   int64 // when, in seconds since 1970
}

// evictOpen makes holes in the open images until so many bytes are free, and returns how many are.
func evictOpen(files []*File, wanted int64, pinned bool) (freed int64) {
	var all []victim
	for _, f := range files {
		all = append(all, f.victims(pinned)...)
	}
	slices.SortStableFunc(all, func(a, b victim) int { return cmp.Compare(a.used, b.used) })
	for _, v := range all {
		if freed >= wanted {
			break
		}
		freed += v.file.evict(v.lo, v.hi, pinned)
	}
	return freed
}

// victims returns the extents of the file that have something to evict. A file with a second name keeps all it has.
func (f *File) victims(pinned bool) (all []victim) {
	if info, err := f.data.Stat(); err == nil {
		if _, links := allocated(info); links > 1 {
			return nil
		}
	}
	extent := int64(-1)
	for i := range f.index.Len() {
		if !f.mayEvict(i, pinned) {
			continue
		}
		if e := f.index.At(i).Offset / extentSize; e != extent {
			extent = e
			all = append(all, victim{lo: i, file: f, used: f.opened.Unix() + int64(f.used[e].Load())})
		}
		all[len(all)-1].hi = i + 1
	}
	return all
}

func (f *File) mayEvict(i int, pinned bool) bool {
	return !f.isEmpty(i) && (pinned || !f.pinned.Has(i))
}

// isEmpty reports whether chunk i takes no room on the disk.
func (f *File) isEmpty(i int) bool { return f.index.IsZero(i) || !f.chunks.present.Has(i) }

// evict takes chunks out, and frees their disk blocks: first no read finds them, then the file is not complete any
// more, then come the holes. It returns how many bytes that gave.
func (f *File) evict(lo, hi int, pinned bool) (freed int64) {
	var chunks []int
	for i := lo; i < hi; i++ {
		if f.mayEvict(i, pinned) {
			f.chunks.forget(i)
			chunks = append(chunks, i)
		}
	}
	before := sizeOf(f.path)
	err := f.setComplete(false)
	for _, i := range chunks {
		if err == nil {
			from, to := f.punchRange(i)
			err = f.data.punch(from, to-from)
		}
	}
	if err != nil {
		f.dir.health.failed("evicting from "+f.path, err)
	}
	return before - sizeOf(f.path)
}

// punchRange is where chunk i lies, with what is empty beside it: a disk block is only freed whole.
func (f *File) punchRange(i int) (from, to int64) {
	c := f.index.At(i)
	from, to = c.Offset, c.End()
	if i > 0 && f.isEmpty(i-1) {
		from = max(from-mapAlign, f.index.At(i-1).Offset)
	}
	if i+1 < f.index.Len() && f.isEmpty(i+1) {
		to = min(to+mapAlign, f.index.At(i+1).End())
	}
	return from, to
}
