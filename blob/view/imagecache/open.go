package imagecache

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sync/atomic"
	"time"

	"cairn/blob"
	"cairn/internal/atomicfile"
	"cairn/internal/bitset"
	"cairn/internal/owndir"
)

// openFile opens the file of an image, and creates it if it does not exist.
func openFile(d *Dir, x *blob.Index, layout mapLayout) (*File, error) {
	name := path.Join(imagesName, layout.digest.String())
	locked, err := lockImage(d.root.Load(), name)
	if err != nil {
		return nil, err
	}
	f := &File{
		dir: d, path: filepath.Join(d.path, name), name: name, index: x, table: blob.NewTable(x), lock: locked, maps: mapFile{layout: layout},
		chunks: newChunks(x.Len()), pinned: bitset.New(x.Len()),
		opened: time.Now(), used: make([]atomic.Uint32, (x.Size()+extentSize-1)/extentSize),
	}
	if err := f.openFiles(); err != nil {
		f.closeFiles()
		return nil, err
	}
	return f, nil
}

// lockImage locks the directory of an image in root for this process, and creates it if it does not exist. It returns
// ErrBusy if another process has the lock.
func lockImage(root *os.Root, name string) (*os.File, error) {
	for {
		if err := owndir.CreateDir(root, name); err != nil {
			return nil, err
		}
		lock := path.Join(name, lockName)
		f, err := owndir.OpenFile(root, lock, os.O_CREATE|os.O_RDWR)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another process has just evicted the image
		}
		if err != nil {
			return nil, err
		}
		if err := lockFile(f); err != nil {
			f.Close()
			return nil, err
		}
		// The process that holds the lock removes the lock file with the image.
		if there, err := root.Lstat(lock); err == nil && isFile(f, there) {
			return f, nil
		}
		f.Close()
	}
}

// isFile reports whether f is the file that info describes.
func isFile(f *os.File, info os.FileInfo) bool {
	mine, err := f.Stat()
	return err == nil && os.SameFile(mine, info)
}

func (f *File) openFiles() (err error) {
	root := f.dir.root.Load()
	if readIndex(root, f.name) == nil { // for Recall, and for copies by later processes
		if err := atomicfile.WriteIn(root, path.Join(f.name, indexName), f.index.Encode(), 0o600); err != nil {
			return err
		}
	}
	if f.maps.file, err = openSparse(root, path.Join(f.name, mapName), os.O_CREATE|os.O_RDWR); err != nil {
		return err
	}
	data, err := openSparse(root, path.Join(f.name, rawName), os.O_RDWR)
	f.complete = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		data, err = openSparse(root, path.Join(f.name, partialName), os.O_CREATE|os.O_RDWR)
	}
	if err != nil {
		return err
	}
	f.data = data
	if f.dir.wrap != nil {
		f.data = f.dir.wrap(data)
	}
	return f.loadState()
}

// closeFiles closes the files that openFiles opened. It ignores errors, since a flush has reported them.
func (f *File) closeFiles() {
	if f.data != nil {
		_ = f.data.Close()
	}
	if f.maps.file != nil {
		_ = f.maps.file.Close()
	}
	_ = f.lock.Close()
}

// loadState loads the map, and writes it without the clean flag, since the file is in use.
func (f *File) loadState() error {
	state, err := f.maps.readState()
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
		f.recoverChunks(state.bits)
	}
	if f.Missing() > 0 {
		if err := f.setComplete(false); err != nil {
			return err
		}
	}
	return f.maps.writeState(mapState{bits: f.chunks.present.AppendTo(nil)})
}

// addZeros marks the chunks of zeros as proven, which are holes.
func (f *File) addZeros() {
	for i := range f.index.Len() {
		if f.index.IsZero(i) {
			f.chunks.present.Add(i)
			f.chunks.proven.Add(i)
		}
	}
}

// recoverChunks marks chunks as present after an unclean stop: those in the map, and all that have data, since the
// map may be older than the file. Each is verified before its first use, as read from the disk: the writes of an
// earlier process may have failed and be left in the page cache. Zeros are punched anew.
func (f *File) recoverChunks(bits []byte) {
	_ = f.data.flushData() // verification finds the chunks that this fails to flush
	f.data.dropCache()
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

// punchZeros punches holes for the chunks of zeros. It reports whether that succeeded.
func (f *File) punchZeros() bool {
	for i := 0; i < f.index.Len(); i++ {
		if !f.index.IsZero(i) {
			continue
		}
		from := f.index.At(i).Offset
		for i+1 < f.index.Len() && f.index.IsZero(i+1) {
			i++
		}
		if f.data.punchHole(from, f.index.At(i).End()-from) != nil {
			return false
		}
	}
	return true
}
