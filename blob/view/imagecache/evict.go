package imagecache

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// evict makes room when the images take more than they may: images that nobody has open go first, the one
// that was used last at last; then runs of chunks of the open ones, by their last use. Chunks that are pinned go
// when nothing else is left.
func (d *Dir) evict() {
	if d.limit <= 0 {
		return
	}
	d.turn.Lock()
	defer d.turn.Unlock()
	d.mu.Lock()
	files := append([]*File(nil), d.open...)
	d.mu.Unlock()
	used := d.Used()
	d.full.Store(used > d.limit-d.limit/8)
	if used <= d.limit {
		return
	}
	target := d.limit - d.limit/16
	was := used
	defer func() { d.evicted.Add(was - used) }()
	used -= d.evictClosed(files, used-target)
	if used > target {
		used -= d.evictOpen(files, used-target, false)
	}
	if used > d.limit {
		used -= d.evictOpen(files, used-target, true)
	}
	if used > d.limit {
		d.failed("keeping to the limit", fmt.Errorf("%d bytes cannot be freed, and %d are allowed", used, d.limit))
	}
}

// Used is how many bytes the images take on their disk.
func (d *Dir) Used() (bytes int64) {
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

// evictClosed removes images that nobody has open until so many bytes are free, and returns how many are.
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
			d.forgetDonor(path)
		}
	}
	return freed
}

// removeImage removes an image that no process has open.
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

// forgetDonor closes a file that was removed, whose bytes stay on the disk as long as it is open.
func (d *Dir) forgetDonor(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeDonor(path)
}

// closeDonor is forgetDonor for a caller that holds mu.
func (d *Dir) closeDonor(path string) {
	d.donors = slices.DeleteFunc(slices.Clone(d.donors), func(n *donor) bool {
		gone := filepath.Dir(n.file.Name()) == path
		if gone {
			n.file.Close()
		}
		return gone
	})
}

// victim is an extent of an open image.
type victim struct {
	file   *File
	extent int
	used   int64 // when, in seconds since 1970
}

// evictOpen makes holes in the open images until so many bytes are free, and returns how many are.
func (d *Dir) evictOpen(files []*File, wanted int64, pinned bool) (freed int64) {
	var all []victim
	for _, f := range files {
		all = append(all, f.extents(pinned)...)
	}
	slices.SortStableFunc(all, func(a, b victim) int { return cmp.Compare(a.used, b.used) })
	for len(all) > 0 && freed < wanted {
		some := all[:min(len(all), int(min((wanted-freed)/extentSize+1, 16)))]
		all = all[len(some):]
		freed += d.punchAll(some, pinned)
	}
	return freed
}

// extents are the parts of the file that may be evicted.
func (f *File) extents(pinned bool) (all []victim) {
	if info, err := f.data.Stat(); err == nil {
		if _, links := allocated(info); links > 1 {
			return nil // somebody has given the file another name, and counts on it
		}
	}
	for e := range f.used {
		if f.evictable(e, pinned) {
			all = append(all, victim{f, e, f.epoch.Unix() + int64(f.used[e].Load())})
		}
	}
	return all
}

// chunksIn are the chunks that begin in an extent.
func (f *File) chunksIn(extent int) (lo, hi int) {
	begin := func(off int64) int {
		i := f.index.Find(off)
		if i < f.index.Len() && f.index.At(i).Offset < off {
			i++
		}
		return i
	}
	return begin(int64(extent) * extentSize), begin(int64(extent+1) * extentSize)
}

func (f *File) evictable(extent int, pinned bool) bool {
	lo, hi := f.chunksIn(extent)
	for i := lo; i < hi; i++ {
		if f.goes(i, pinned) {
			return true
		}
	}
	return false
}

// goes says whether chunk i may be taken out, and is there.
func (f *File) goes(i int, pinned bool) bool {
	return (f.proven.Has(i) || f.claimed.Has(i)) && (pinned || !f.pinned.Has(i)) && !f.index.IsZero(i)
}

// punchAll takes the chunks of extents out: first of what is read, then of the maps, then of the files.
func (d *Dir) punchAll(victims []victim, pinned bool) (freed int64) {
	d.keeping.Lock()
	defer d.keeping.Unlock()
	touched := map[*File][]int{}
	for _, v := range victims {
		lo, hi := v.file.chunksIn(v.extent)
		for i := lo; i < hi; i++ {
			if v.file.goes(i, pinned) {
				v.file.forget(i)
				touched[v.file] = append(touched[v.file], i)
			}
		}
	}
	for f, chunks := range touched {
		f.holes.Add(1)
		freed += f.punch(chunks)
	}
	return freed
}

// punch frees the disk blocks of chunks that were taken out, and returns how many bytes that gave.
func (f *File) punch(chunks []int) int64 {
	if err := f.unname(); err != nil {
		f.dir.failed(fmt.Sprintf("evicting from %s", f.path), err)
		return 0
	}
	if err := f.save(mapState{bits: f.bits()}); err != nil {
		f.dir.failed(fmt.Sprintf("evicting from %s", f.path), err)
		return 0
	}
	before := f.taken()
	for _, i := range chunks {
		from, to := f.around(i)
		if err := f.data.punch(from, to-from); err != nil {
			f.dir.failed(fmt.Sprintf("evicting from %s", f.path), err)
			return before - f.taken()
		}
	}
	return before - f.taken()
}

// unname takes the final name away from a file that is about to be whole no more.
func (f *File) unname() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.complete {
		return nil
	}
	if err := f.rename(rawName, partialName); err != nil {
		return err
	}
	f.complete = false
	return nil
}

func (f *File) taken() int64 {
	info, err := f.data.Stat()
	if err != nil {
		return 0
	}
	n, _ := allocated(info)
	return n
}

// around is where chunk i lies, with what is empty beside it: a disk block is only freed whole.
func (f *File) around(i int) (from, to int64) {
	c := f.index.At(i)
	from, to = c.Offset, c.End()
	if i > 0 && f.empty(i-1) {
		from = max(from-mapAlign, f.index.At(i-1).Offset)
	}
	if i+1 < f.index.Len() && f.empty(i+1) {
		to = min(to+mapAlign, f.index.At(i+1).End())
	}
	return from, to
}

func (f *File) empty(i int) bool {
	return f.index.IsZero(i) || !f.proven.Has(i) && !f.claimed.Has(i)
}
