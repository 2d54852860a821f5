package imagecache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"cairn/blob"
	"cairn/internal/atomicfile"
	"cairn/internal/bitset"
)

// Image opens the file of x's image, or makes it. ErrBusy means that another process has it. Who opens the same
// image again gets the same file. It is closed with the directory, if not before.
func (d *Dir) Image(x *blob.Index) (*File, error) {
	d.opening.Lock()
	defer d.opening.Unlock()
	layout := layoutOf(x)
	if f := d.share(layout); f != nil {
		return f, nil
	}
	f, err := d.openImage(x, layout)
	if err != nil {
		return nil, fmt.Errorf("opening the cache of image %v: %w", layout.digest, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closeDonor(f.path) // it is one of ours now
	f.users = 1
	d.open = append(d.open[:len(d.open):len(d.open)], f)
	return f, nil
}

// share is the file of an image that is open already, for one more user, or nil.
func (d *Dir) share(layout mapLayout) *File {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, f := range d.open {
		if f.layout == layout {
			f.users++
			return f
		}
	}
	return nil
}

func (d *Dir) openImage(x *blob.Index, layout mapLayout) (*File, error) {
	path := filepath.Join(d.path, layout.digest.String())
	locked, err := claim(path)
	if err != nil {
		return nil, err
	}
	f := &File{dir: d, path: path, index: x, table: blob.NewTable(x), layout: layout, lock: locked}
	if err := f.open(); err != nil {
		locked.Close()
		return nil, err
	}
	return f, nil
}

// claim makes the directory of an image this process's own.
func claim(path string) (*os.File, error) {
	for {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
		name := filepath.Join(path, lockName)
		f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // evicted by another process just now
		}
		if err != nil {
			return nil, err
		}
		if err := lock(f); err != nil {
			f.Close()
			return nil, err
		}
		if current(f, name) {
			return f, nil
		}
		f.Close()
	}
}

// current says whether name is still f: who evicts an image removes its lock while it has it.
func current(f *os.File, name string) bool {
	mine, err1 := f.Stat()
	there, err2 := os.Stat(name)
	return err1 == nil && err2 == nil && os.SameFile(mine, there)
}

func (f *File) open() (err error) {
	n := f.index.Len()
	f.proven, f.claimed, f.broken = bitset.New(n), bitset.New(n), bitset.New(n)
	f.pinned, f.recent, f.queued, f.written = bitset.New(n), bitset.New(n), bitset.New(n), bitset.New(n)
	f.used = make([]atomic.Uint32, (f.layout.size+extentSize-1)/extentSize)
	f.epoch = time.Now()
	if err := f.keepIndex(); err != nil {
		return err
	}
	if f.maps, err = openSparse(filepath.Join(f.path, mapName), os.O_CREATE|os.O_RDWR); err != nil {
		return err
	}
	data, fresh, err := f.openData()
	if err != nil {
		f.maps.Close()
		return err
	}
	f.data = data
	if f.dir.wrap != nil {
		f.data = f.dir.wrap(data)
	}
	if err := f.load(fresh); err != nil {
		data.Close()
		f.maps.Close()
		return err
	}
	return nil
}

// keepIndex stores the index beside its image: what a later process needs to copy chunks out of it, or to serve it
// while the index cannot be had from its location.
func (f *File) keepIndex() error {
	name := filepath.Join(f.path, indexName)
	if isIndex(name, f.index) {
		return nil
	}
	return atomicfile.Write(name, f.index.Encode(), 0o600)
}

// openData opens the image's file, and says whether it is new, which is to say all holes.
func (f *File) openData() (data *sparse, fresh bool, err error) {
	raw := filepath.Join(f.path, rawName)
	if data, err = openSparse(raw, os.O_RDWR); err == nil {
		f.complete = true
		return data, false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	data, err = openSparse(filepath.Join(f.path, partialName), os.O_CREATE|os.O_RDWR)
	if err != nil {
		return nil, false, err
	}
	info, err := data.Stat()
	if err != nil {
		data.Close()
		return nil, false, err
	}
	return data, info.Size() == 0, nil
}

// load finds out what is in the file, and has its map say that the file is in use.
func (f *File) load(fresh bool) error {
	file, err := io.ReadAll(io.NewSectionReader(f.maps, 0, 2*f.layout.slotSize()))
	if err != nil {
		return fmt.Errorf("reading its map: %w", err)
	}
	state, noMap := f.layout.newest(file)
	f.sequence = state.sequence
	info, err := f.data.Stat()
	if err != nil {
		return err
	}
	untouched := noMap == nil && state.clean && info.Size() == f.layout.size && info.ModTime().UnixNano() == state.modified
	if info.Size() != f.layout.size {
		if err := f.data.Truncate(f.layout.size); err != nil {
			return err
		}
	}
	switch {
	case fresh:
		f.zeros()
	case untouched:
		f.proven.Load(state.proven)
		f.claimed.Load(missing(state.bits, state.proven))
	default:
		f.salvage(state.bits)
	}
	if f.Missing() > 0 && f.complete {
		if err := f.rename(rawName, partialName); err != nil {
			return err
		}
		f.complete = false
	}
	return f.save(mapState{bits: f.bits()})
}

// missing are the bits that are set in all and not in some.
func missing(all, some []byte) []byte {
	rest := bytes.Clone(all)
	for i := range rest {
		rest[i] &^= some[i]
	}
	return rest
}

// zeros takes the chunks in that are all zero: they are holes.
func (f *File) zeros() {
	for i := range f.index.Len() {
		if f.index.IsZero(i) {
			f.proven.Add(i)
		}
	}
}

// salvage claims what may be in a file that nobody closed: what the map says, and all chunks that have data,
// since the map lags behind. Each is proven before its first use, as it is on the disk: what an earlier process wrote
// may have failed to get there, and be in the kernel's memory still. Zeros are made anew.
func (f *File) salvage(bits []byte) {
	_ = f.data.flush() // what it fails on is not right on the disk, and will not be proven
	f.data.uncache()
	if f.rezero() {
		f.zeros()
	}
	if len(bits) == f.layout.bitBytes() {
		f.claimed.Load(missing(bits, f.proven.AppendTo(nil)))
	}
	for off := int64(0); off < f.layout.size; {
		from, to, err := f.data.nextData(off)
		if err != nil || to <= off {
			return
		}
		f.claim(from, min(to, f.layout.size))
		off = to
	}
}

// claim claims the chunks that overlap a run of data.
func (f *File) claim(from, to int64) {
	for i := f.index.Find(from); i < f.index.Len() && f.index.At(i).Offset < to; i++ {
		if !f.proven.Has(i) {
			f.claimed.Add(i)
		}
	}
}

// rezero makes holes where the image is zero, and says whether it could.
func (f *File) rezero() bool {
	for i := 0; i < f.index.Len(); i++ {
		if !f.index.IsZero(i) {
			continue
		}
		from := f.index.At(i).Offset
		for i+1 < f.index.Len() && f.index.IsZero(i+1) {
			i++
		}
		if f.data.punch(from, f.index.At(i).End()-from) != nil {
			return false
		}
	}
	return true
}
