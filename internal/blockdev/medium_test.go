package blockdev

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

func readBack(t *testing.T, f *File) *ReadBack {
	t.Helper()
	r, err := f.ReadBack()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// all reads the whole of r.
func all(t *testing.T, r interface {
	io.ReaderAt
	Size() int64
}) []byte {
	t.Helper()
	p, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The test changes the file behind the device, which the device's page cache does not notice.
func TestReadBackReachesTheMedium(t *testing.T) {
	file := looptest.File(t, 1<<20)
	target := openTarget(t, looptest.Attach(t, file, 512), Section{})
	written := testimages.Random(1, 1<<20)
	if _, err := target.WriteAt(written, 0); err != nil {
		t.Fatal(err)
	}
	if err := target.Sync(); err != nil {
		t.Fatal(err)
	}
	r := readBack(t, &target.File)
	if !r.Direct() {
		t.Error("a loop device was not read directly")
	}
	all(t, target) // back into the page cache
	medium := bytes.Clone(written)
	for _, at := range []int64{0, 5000, 1<<20 - 1} {
		medium[at]++
		change(t, file, at, medium[at])
		if !bytes.Equal(all(t, r), medium) {
			t.Errorf("byte %d changed on the medium, and ReadBack did not see it", at)
		}
	}
	if !bytes.Equal(all(t, target), written) {
		t.Error("the page cache changed too: this test shows nothing")
	}
	if err := target.DropCache(0, target.Size()); err != nil { // ReadBack uses it where there are no direct reads
		t.Fatal(err)
	}
	if !bytes.Equal(all(t, target), medium) {
		t.Error("DropCache left old pages")
	}
}

// change sets a byte of a file.
func change(t *testing.T, path string, off int64, to byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{to}, off)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestReadBackAnyPiece(t *testing.T) {
	const size = 1<<20 + 3*512 // not a multiple of a page
	data := testimages.Random(2, size)
	file := write(t, data)
	need.Root(t)
	memory := filepath.Join(memory(t, "ramfs", ""), "file") // ramfs has no direct reads
	if err := os.WriteFile(memory, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, memory, looptest.Attach(t, file, 512)} {
		for _, s := range []Section{{}, {1, size - 1}, {70_001, 500_000}, {size, 0}} {
			if s.Offset == size && strings.HasPrefix(path, "/dev/") {
				continue
			}
			f := openRead(t, path, s)
			checkPieces(t, f, readBack(t, f), data[s.Offset:s.Offset+f.Size()])
		}
	}
	if r := readBack(t, openRead(t, memory, Section{})); r.Direct() {
		t.Error("ramfs was read directly")
	}
}

// checkPieces reads more pieces concurrently than there are buffers.
func checkPieces(t *testing.T, f *File, r *ReadBack, want []byte) {
	t.Helper()
	var group sync.WaitGroup
	for _, n := range []int64{0, 1, 512, 4096, 5000, 65_536, 1_200_000} {
		for _, off := range []int64{0, 1, 511, 4096, 300_001, f.Size() - 1, f.Size(), f.Size() + 1} {
			group.Go(func() {
				p, q := make([]byte, n), make([]byte, n)
				got, err := r.ReadAt(p, off)
				k, e := bytes.NewReader(want).ReadAt(q, off)
				if got != k || (n > 0 && off >= 0 && err != e) || !bytes.Equal(p, q) {
					t.Errorf("%s: ReadAt(%d bytes, %d) = %d, %v, want %d, %v", f.Path(), n, off, got, err, k, e)
				}
			})
		}
	}
	group.Wait()
}

func TestDiscardDevice(t *testing.T) {
	file := looptest.File(t, 1<<20)
	target := openTarget(t, looptest.Attach(t, file, 512), Section{100, 1<<20 - 100})
	want := testimages.Random(3, 1<<20-100)
	if _, err := target.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := target.Sync(); err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{5000, 200_000}, {300_000, 100}, {0, 0}} {
		if err := target.Discard(r[0], r[1]); err != nil {
			t.Errorf("Discard(%d, %d) = %v", r[0], r[1], err)
		}
	}
	got := all(t, target)
	const lo, hi = 8192 - 100, 204_800 - 100 // the whole pages of 5100 to 205100
	if !bytes.Equal(got[:lo], want[:lo]) || !bytes.Equal(got[hi:], want[hi:]) {
		t.Error("Discard changed bytes outside of the whole blocks")
	}
	if start, _, err := openRead(t, file, Section{}).NextData(8192); err != nil || start != 204_800 {
		t.Errorf("behind the discarded blocks data starts at %d, %v, want a hole up to 204800", start, err)
	}
	if err := target.Discard(5, target.Size()); err == nil {
		t.Error("Discard outside the target succeeded")
	}
}

func TestDiscardFile(t *testing.T) {
	target := openTarget(t, write(t, testimages.Random(4, 1<<20)), Section{})
	if err := target.Discard(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if start, _, err := target.NextData(0); err != nil || start != 1<<20 {
		t.Errorf("after Discard data starts at %d, %v, want none", start, err)
	}
}

func TestDiscardUnsupported(t *testing.T) {
	file := filepath.Join(memory(t, "ramfs", ""), "file")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, looptest.Attach(t, file, 512)} {
		target, err := OpenTarget(t.Context(), path, Options{Force: []string{CheckLoop}})
		if err != nil {
			t.Fatal(err)
		}
		if err := target.Discard(0, 1<<20); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Discard of %s = %v, want ErrUnsupported", path, err)
		}
		target.Close()
	}
}

// SYNC_FILE_RANGE_WAIT_AFTER waits for pages under writeback, and starts no writeback.
func TestStartWriteback(t *testing.T) {
	file := looptest.File(t, 2<<20)
	target := openTarget(t, looptest.Attach(t, file, 512), Section{Offset: 4096})
	buffered(t, target)
	if _, err := target.WriteAt(testimages.Random(5, 2<<20-4096), 0); err != nil {
		t.Fatal(err)
	}
	if start, _, err := openRead(t, file, Section{}).NextData(0); err != nil || start != 2<<20 {
		t.Errorf("data at %d was written before (%v)", start, err)
	}
	if err := target.StartWriteback(1<<20-4096, 64<<10); err != nil {
		t.Fatal(err)
	}
	err := withDescriptor(target.f, func(fd int) error {
		return unix.SyncFileRange(fd, 0, 2<<20, unix.SYNC_FILE_RANGE_WAIT_AFTER)
	})
	if err != nil {
		t.Fatal(err)
	}
	start, end, err := openRead(t, file, Section{}).NextData(1 << 20)
	if err != nil || start != 1<<20 || end < 1<<20+64<<10 {
		t.Errorf("data from %d to %d (%v) was written, want at least 64 KiB from 1 MiB on", start, end, err)
	}
}

// reflinks mounts a new file system on a loop device until the test ends.
func reflinks(t *testing.T, kind string, size int64) (dir string) {
	t.Helper()
	node := looptest.Attach(t, looptest.File(t, size), 512)
	looptest.Run(t, need.Tool(t, "mkfs."+kind), "-q", node)
	dir = t.TempDir()
	looptest.Run(t, need.Tool(t, "mount"), "-t", kind, node, dir)
	t.Cleanup(func() { looptest.Run(t, "umount", dir) })
	return dir
}

func TestCloneFrom(t *testing.T) {
	for kind, size := range map[string]int64{"xfs": 320 << 20, "btrfs": 128 << 20} {
		t.Run(kind, func(t *testing.T) { checkClone(t, reflinks(t, kind, size)) })
	}
}

func checkClone(t *testing.T, dir string) {
	const size = 1 << 20
	source, path := filepath.Join(dir, "source"), filepath.Join(dir, "target")
	data, want := testimages.Random(6, size), testimages.Random(7, size)
	for name, p := range map[string][]byte{source: data, path: want} {
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const shift = 4096 // the target's section starts this many bytes after the source's
	src := openRead(t, source, Section{Offset: 100})
	target := openTarget(t, path, Section{Offset: shift + 100})
	for _, c := range []struct{ srcOff, dstOff, n, cloned int64 }{
		{4096 - 100, 8192 - 100, 65_536, 65_536},
		{200_000, 200_000, 100_000, 98_304},
		{400_001, 400_001 + 4096, 10_000, 8192},
		{500_000, 602_400, 50_000, 45_056},
	} {
		cloned, err := target.CloneFrom(src, c.srcOff, c.dstOff, c.n)
		if err != nil || cloned != c.cloned {
			t.Errorf("CloneFrom(%+v) = %d, %v", c, cloned, err)
		}
		copy(want[shift+100+c.dstOff:][:c.n], data[100+c.srcOff:])
	}
	for _, c := range []struct{ srcOff, dstOff, n int64 }{
		{4096 - 100, 8193 - 100, 65_536}, // offsets differ modulo the block size
		{4096 - 99, 8192 - 99, 4096},     // no whole block
		{0, 0, 0},
	} {
		cloned, err := target.CloneFrom(src, c.srcOff, c.dstOff, c.n)
		if cloned != 0 || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("CloneFrom(%+v) = %d, %v, want ErrUnsupported", c, cloned, err)
		}
	}
	for _, c := range [][3]int64{{-1, 0, 10}, {0, -1, 10}, {0, 0, -1}, {size - 200, 0, 101}, {0, size - 4290, 101}} {
		if _, err := target.CloneFrom(src, c[0], c[1], c[2]); err == nil || errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("CloneFrom(%v) outside = %v", c, err)
		}
	}
	other := openRead(t, write(t, data), Section{})
	if _, err := target.CloneFrom(other, 0, 8192-shift-100+4096, 65_536); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloneFrom of another file system = %v, want ErrUnsupported", err)
	}
	if err := target.Sync(); err != nil {
		t.Fatal(err)
	}
	if extents := looptest.Run(t, need.Tool(t, "filefrag"), "-v", path); !strings.Contains(extents, "shared") {
		t.Errorf("no extent of the target is shared:\n%s", extents)
	}
	if err := os.WriteFile(source, make([]byte, size), 0o600); err != nil { // these bytes must not appear in the result
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the target has other bytes than the source's")
	}
	if !bytes.Equal(all(t, readBack(t, &target.File)), want[shift+100:]) {
		t.Error("ReadBack gave other bytes")
	}
}

func TestCloneFromDevice(t *testing.T) {
	node, file := disk(t)
	device := openTarget(t, node+"p1", Section{})
	if _, err := device.CloneFrom(openRead(t, file, Section{}), 0, 0, 1<<20); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloneFrom onto a device = %v, want ErrUnsupported", err)
	}
	other := openTarget(t, write(t, make([]byte, 1<<20)), Section{})
	if _, err := other.CloneFrom(&device.File, 0, 0, 1<<20); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("CloneFrom of a device = %v, want ErrUnsupported", err)
	}
}
