package imagecache

import (
	"fmt"
	"path"
	"slices"
	"time"
)

// evictToLimit evicts chunks if the images exceed the limit. It first evicts images that no process has open, the
// least recently used one before the others, then extents of open images by their last use. It evicts pinned chunks
// last.
func (k *keeper) evictToLimit() {
	d := k.dir
	if d.limit <= 0 {
		return
	}
	used := d.usedBytes()
	d.nearFull.Store(used > d.limit-d.limit/8)
	if used <= d.limit {
		return
	}
	files, target, before := d.listFiles(), d.limit-d.limit/16, used
	used -= d.evictClosed(files, used-target)
	used -= evictOpen(files, used-target, false)
	if used > d.limit {
		used -= evictOpen(files, used-target, true)
	}
	d.evicted.Add(before - used)
	if used > d.limit {
		err := fmt.Errorf("the images take %d bytes after the eviction, and the limit is %d", used, d.limit)
		d.health.noteFailure("keeping to the limit", err)
	}
}

// usedBytes returns the bytes that the images take on disk.
func (d *Dir) usedBytes() (bytes int64) {
	for _, name := range byUse(d.root.Load()) {
		bytes += d.imageSize(name)
	}
	return bytes
}

func (d *Dir) imageSize(name string) (bytes int64) {
	for _, file := range []string{rawName, partialName} {
		if info, err := d.root.Load().Lstat(path.Join(name, file)); err == nil {
			n, _ := diskUsage(info)
			bytes += n
		}
	}
	return bytes
}

// evictClosed removes images that no process has open, until the wanted number of bytes is free. It returns the
// number of freed bytes.
func (d *Dir) evictClosed(open []*File, wanted int64) (freed int64) {
	names := byUse(d.root.Load())
	slices.Reverse(names)
	for _, name := range names {
		if freed >= wanted {
			break
		}
		if slices.ContainsFunc(open, func(f *File) bool { return f.name == name }) {
			continue
		}
		size := d.imageSize(name)
		if d.removeImage(name) {
			freed += size
			d.removeDonor(name)
		}
	}
	return freed
}

// removeImage removes an image, unless a process has it open. It reports whether the directory is gone.
func (d *Dir) removeImage(name string) bool {
	root := d.root.Load()
	locked, err := lockImage(root, name)
	if err != nil {
		return false
	}
	defer locked.Close()
	for _, file := range []string{rawName, partialName, mapName, indexName, lockName} {
		_ = root.Remove(path.Join(name, file)) // a file that stays keeps the directory
	}
	return root.Remove(name) == nil
}

// victim is an extent of an open image with chunks to evict, which are among the chunks [lo, hi).
type victim struct {
	lo, hi int
	file   *File
	used   time.Time // of the last use
}

// evictOpen punches holes into open images, until the wanted number of bytes is free. It returns the number of freed
// bytes.
func evictOpen(files []*File, wanted int64, pinned bool) (freed int64) {
	var all []victim
	for _, f := range files {
		all = append(all, f.findVictims(pinned)...)
	}
	slices.SortStableFunc(all, func(a, b victim) int { return a.used.Compare(b.used) })
	for _, v := range all {
		if freed >= wanted {
			break
		}
		freed += v.file.evictChunks(v.lo, v.hi, pinned)
	}
	return freed
}

// findVictims returns the extents of the file that have chunks to evict. A file with a second hard link has none.
func (f *File) findVictims(pinned bool) (all []victim) {
	if info, err := f.data.Stat(); err == nil {
		if _, links := diskUsage(info); links > 1 {
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
			all = append(all, victim{lo: i, file: f, used: f.opened.Add(time.Duration(f.used[e].Load()) * time.Second)})
		}
		all[len(all)-1].hi = i + 1
	}
	return all
}

func (f *File) mayEvict(i int, pinned bool) bool {
	return !f.isEmpty(i) && (pinned || !f.pinned.Has(i))
}

// isEmpty reports whether chunk i takes no space on disk.
func (f *File) isEmpty(i int) bool { return f.index.IsZero(i) || !f.chunks.present.Has(i) }

// evictChunks evicts the chunks [lo, hi) and frees their disk blocks. It first makes the chunks unreadable, then
// removes the file's name of a complete image, then punches holes. It returns the number of freed bytes.
func (f *File) evictChunks(lo, hi int, pinned bool) (freed int64) {
	var chunks []int
	for i := lo; i < hi; i++ {
		if f.mayEvict(i, pinned) {
			f.chunks.markMissing(i)
			chunks = append(chunks, i)
		}
	}
	before := f.dir.imageSize(f.name)
	err := f.setComplete(false)
	for _, i := range chunks {
		if err == nil {
			from, to := f.punchRange(i)
			err = f.data.punchHole(from, to-from)
		}
	}
	if err != nil {
		f.dir.health.noteFailure("evicting from "+f.path, err)
	}
	return before - f.dir.imageSize(f.name)
}

// punchRange returns the range of chunk i, extended into empty neighbours, since the file system frees only whole
// blocks.
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
