package crashtest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/test/looptest"
	"cairn/testimages"
)

// slots is a loop device with two slots, and the nodes of the partitions.
type slots struct {
	disk, a, b string
	size       int64 // size of a slot
}

// newSlots makes slots of size bytes that hold the images, or zeros for "".
func newSlots(t testing.TB, size int64, sector int, a, b string) slots {
	t.Helper()
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := testimages.GPTDisk(disk, sector, testimages.Slots(size, a, b)...); err != nil {
		t.Fatal(err)
	}
	node := looptest.Attach(t, disk, sector)
	return slots{node, node + "p2", node + "p3", size}
}

// counts are the bytes of a device that the kernel has counted.
type counts struct{ read, written int64 }

// counted returns the bytes read from and written to a partition while do runs, as the kernel counts them.
func counted(t testing.TB, node string, do func()) counts {
	t.Helper()
	before := kernelCounts(t, node)
	do()
	after := kernelCounts(t, node)
	return counts{after.read - before.read, after.written - before.written}
}

// kernelCounts reads the statistics of a block device, whose sectors always have 512 bytes
// (Documentation/block/stat.rst).
func kernelCounts(t testing.TB, node string) counts {
	t.Helper()
	text, err := os.ReadFile("/sys/class/block/" + filepath.Base(node) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	var n [7]int64
	for i, field := range strings.Fields(string(text))[:7] {
		if _, err := fmt.Sscan(field, &n[i]); err != nil {
			t.Fatal(err)
		}
	}
	return counts{n[2] * 512, n[6] * 512}
}

// forget drops the device's page cache, so that reads can be counted.
func forget(t testing.TB, node string) {
	t.Helper()
	must(t, "blockdev", "--flushbufs", node)
}

// sum returns the digest of the first n bytes of a file or device.
func sum(t testing.TB, path string, n int64) (s [32]byte) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if k, err := io.Copy(h, io.LimitReader(f, n)); err != nil || k != n {
		t.Fatalf("%s: %d of %d bytes, %v", path, k, n, err)
	}
	copy(s[:], h.Sum(nil))
	return s
}

// wantImage checks that the device begins with the image.
func wantImage(t testing.TB, device, image string) {
	t.Helper()
	info, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	if sum(t, device, info.Size()) != sum(t, image, info.Size()) {
		t.Errorf("%s does not hold %s", device, image)
	}
}

// fill writes an image, or a part of one, to a device.
func fill(t testing.TB, device, image string) {
	t.Helper()
	must(t, "dd", "if="+image, "of="+device, "bs=1M", "conv=fsync,notrunc")
}

// patch writes bytes to a file or device.
func patch(t testing.TB, path string, p []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// mounts reports whether the kernel mounts the device.
func mounts(t testing.TB, device string) bool {
	t.Helper()
	dir := t.TempDir()
	for _, kind := range []string{"ext4", "squashfs"} {
		if unix.Mount(device, dir, kind, unix.MS_RDONLY, "") != nil {
			continue
		}
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		return true
	}
	return false
}

// outcome is the content of a slot after an interrupted assemble.
type outcome string

const (
	isOld      outcome = "the whole old image"
	isNew      outcome = "the whole new image"
	unfinished outcome = "an unfinished assemble"
)

// judge returns the outcome in the slot. Any other content fails the test.
func judge(t testing.TB, device string, old, new [32]byte, size int64, index string) outcome {
	t.Helper()
	now := sum(t, device, size)
	switch {
	case bytes.Equal(now[:], new[:]):
		return isNew
	case bytes.Equal(now[:], old[:]):
		return isOld
	}
	if mounts(t, device) {
		t.Errorf("%s holds neither image, and can be mounted", device)
	}
	fails(t, damaged, "not finished", "verify", index, device)
	return unfinished
}
