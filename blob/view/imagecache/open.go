package imagecache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"cairn/blob"
	"cairn/internal/atomicfile"
	"cairn/internal/bitset"
)

// openFile opens the file of an image, or makes it.
func openFile(d *Dir, x *blob.Index, layout mapLayout) (*File, error) {
	path := filepath.Join(d.path, layout.digest.String())
	locked, err := claim(path)
	if err != nil {
		return nil, err
	}
	f := &File{
		dir: d, path: path, index: x, table: blob.NewTable(x), lock: locked, maps: mapFile{layout: layout},
		chunks: newChunks(x.Len()), pinned: bitset.New(x.Len()),
		opened: time.Now(), used: make([]atomic.Uint32, (x.Size()+extentSize-1)/extentSize),
	}
	if err := f.open(); err != nil {
		f.closeFiles()
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
		if isNamed(f, name) {
			return f, nil
		}
		f.Close()
	}
}

// isNamed reports whether name is still f: the lock is removed with its image, by the process that holds it.
func isNamed(f *os.File, name string) bool {
	mine, err1 := f.Stat()
	there, err2 := os.Stat(name)
	return err1 == nil && err2 == nil && os.SameFile(mine, there)
}

func (f *File) open() (err error) {
	if readIndex(f.path) == nil { // for later processes, to copy chunks from here or to serve the image without a store
		if err := atomicfile.Write(filepath.Join(f.path, indexName), f.index.Encode(), 0o600); err != nil {
			return err
		}
	}
	if f.maps.file, err = openSparse(filepath.Join(f.path, mapName), os.O_CREATE|os.O_RDWR); err != nil {
		return err
	}
	data, err := openSparse(filepath.Join(f.path, rawName), os.O_RDWR)
	f.complete = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		data, err = openSparse(filepath.Join(f.path, partialName), os.O_CREATE|os.O_RDWR)
	}
	if err != nil {
		return err
	}
	f.data = data
	if f.dir.wrap != nil {
		f.data = f.dir.wrap(data)
	}
	return f.load()
}

// closeFiles closes what open has opened. All that it could fail of, a flush has told.
func (f *File) closeFiles() {
	if f.data != nil {
		_ = f.data.Close()
	}
	if f.maps.file != nil {
		_ = f.maps.file.Close()
	}
	_ = f.lock.Close()
}

// load finds out what is in the file, and has its map say that the file is in use.
func (f *File) load() error {
	state, err := f.maps.load()
	if err != nil {
		return err
	}
	info, err := f.data.Stat()
	if err != nil {
		return err
	}
	size := f.index.Size()
	untouched := state.clean && info.Size() == size && info.ModTime().UnixNano() == state.modified
	if info.Size() != size {
		if err := f.data.Truncate(size); err != nil {
			return err
		}
	}
	switch {
	case info.Size() == 0:
		f.addZeros()
	case untouched:
		f.chunks.present.Load(state.bits)
		f.chunks.proven.Load(state.proven)
	default:
		f.salvage(state.bits)
	}
	if f.Missing() > 0 {
		if err := f.setComplete(false); err != nil {
			return err
		}
	}
	return f.maps.save(mapState{bits: f.chunks.present.AppendTo(nil)})
}

// addZeros has the chunks proven that are all zero: they are holes.
func (f *File) addZeros() {
	for i := range f.index.Len() {
		if f.index.IsZero(i) {
			f.chunks.present.Add(i)
			f.chunks.proven.Add(i)
		}
	}
}

// salvage claims what may be in a file that was not closed: what the map says, and all chunks that have data, since the
// map lags behind. Each is proven before its first use, as it is on the disk: what an earlier process wrote may have
// failed to get there, and be in the kernel's memory still. Zeros are made anew.
func (f *File) salvage(bits []byte) {
	_ = f.data.flush() // what it fails on is not right on the disk, and will not be proven
	f.data.uncache()
	f.chunks.present.Load(bits)
	if f.punchZeros() {
		f.addZeros()
	}
	for off := int64(0); off < f.index.Size(); {
		from, to, err := f.data.nextData(off)
		if err != nil || to <= off {
			return
		}
		for i := f.index.Find(from); i < f.index.Len() && f.index.At(i).Offset < to; i++ {
			f.chunks.present.Add(i)
		}
		off = to
	}
}

// punchZeros makes holes where the image is zero. It reports whether it could.
func (f *File) punchZeros() bool {
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
