package cachedir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"

	"cairn/internal/owndir"
	"cairn/store"
)

const (
	sampleChunks = 16      // chunks that one Sample reads
	sampleBytes  = 4 << 20 // largest file that Sample reads
	sampleProbes = 4096    // random directories that it looks for, out of 65,536
)

// Sample reads random chunks from the disk, up to 16 and until ctx ends, and removes those for which isDamaged returns
// true. It returns their number. It does not count as a use of the chunks, and reads nothing if this Dir has neither
// read nor written a chunk. Chunks are verified when they are used, so Sample finds damage that no read has found yet.
func (d *Dir) Sample(ctx context.Context, isDamaged func(ctx context.Context, r store.Reader, name string) bool) (removed int) {
	d.mu.Lock()
	l := d.ledger
	d.mu.Unlock()
	if l == nil || !d.used.Load() {
		return 0
	}
	left := sampleChunks
	for range sampleProbes {
		dir := fmt.Sprintf("%04x", rand.IntN(1<<16))
		err := l.eachName(dir, func(_ *os.File, file string) error {
			name := dir + "/" + file
			if _, _, ok := store.ChunkObject(name); !ok {
				return nil
			}
			if left == 0 || ctx.Err() != nil {
				return fs.SkipAll
			}
			left--
			if isDamaged(ctx, sampleReader{l}, name) && l.removeChunk(name) {
				removed++
			}
			return nil
		})
		if left == 0 || ctx.Err() != nil || err != nil && !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return removed
}

// removeChunk removes a chunk, and reports whether it did.
func (l *ledger) removeChunk(name string) bool {
	info, err := l.root.Lstat(name)
	if err != nil || l.root.Remove(name) != nil {
		return false
	}
	l.releaseSpace(roundToBlocks(info.Size()))
	return true
}

// sampleReader reads chunks from the disk. Where the file system allows, it leaves nothing of them in the page cache. It
// does not mark them as used.
type sampleReader struct{ l *ledger }

func (r sampleReader) String() string { return r.l.root.Name() }

func (r sampleReader) Stat(_ context.Context, name string) (int64, error) {
	info, err := r.l.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%w: %w", store.ErrNotFound, err)
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (r sampleReader) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, info, err := owndir.OpenRegular(r.l.root, name, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", store.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info.Size() > min(limit, sampleBytes) {
		return nil, fmt.Errorf("%s is too large for a sample: %w", f.Name(), errors.ErrUnsupported)
	}
	dropPages(f)
	defer dropPages(f)
	at := len(dst)
	dst = append(dst, make([]byte, info.Size())...)
	if _, err := io.ReadFull(f, dst[at:]); err != nil {
		return nil, err
	}
	return dst, nil
}

// dropPages drops the flushed pages of a file from the page cache.
func dropPages(f *os.File) {
	if c, err := f.SyscallConn(); err == nil {
		_ = c.Control(func(fd uintptr) { _ = unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED) })
	}
}
