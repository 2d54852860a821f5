package crashtest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

// cacheSize is the size in bytes of the file systems that hold an image cache.
const cacheSize = 20 * mib

// cachedImage returns the served image: data, zeros, and some of the data again.
func cachedImage() []byte {
	data := testimages.Random(5, 3*mib)
	return slices.Concat(data[:2*mib], make([]byte, mib+5000), data[2*mib:], data[:mib/2])
}

// cacheRig is an image cache on a file system of its own.
type cacheRig struct {
	depot       *depot
	image       []byte
	random      *rand.Rand
	node, point string
}

// newCacheRig mounts the empty ext4 on a device until the test ends.
func newCacheRig(t testing.TB, r releases, node string) *cacheRig {
	t.Helper()
	c := &cacheRig{newDepot(t, r), cachedImage(), chance(t), node, t.TempDir()}
	c.mount(t)
	t.Cleanup(func() { _ = unix.Unmount(c.point, unix.MNT_DETACH) }) // for a failed test
	return c
}

// newLoopRig returns a cacheRig on a loop device.
func newLoopRig(t testing.TB) *cacheRig {
	t.Helper()
	need.Root(t)
	file := looptest.File(t, cacheSize)
	must(t, "mkfs.ext4", "-q", file)
	return newCacheRig(t, single(t, cachedImage()), looptest.Attach(t, file, 512))
}

func (c *cacheRig) mount(t testing.TB) {
	t.Helper()
	if err := unix.Mount(c.node, c.point, "ext4", 0, "errors=remount-ro"); err != nil {
		t.Fatal(err)
	}
}

func (c *cacheRig) unmount(t testing.TB) {
	t.Helper()
	if err := unix.Unmount(c.point, 0); err != nil {
		t.Fatal(err)
	}
}

// again mounts the disk again, and checks that the image is served correctly from it.
func (c *cacheRig) again(t testing.TB) {
	t.Helper()
	c.unmount(t)
	c.mount(t)
	s := serve(t, c.depot, c.point, "--prefetch", "none")
	s.wantAll(t, c.image)
	s.stop(t)
	c.unmount(t)
}

const (
	cacheFails   = "the image cache is not written for now"
	cacheRemoved = "the image cache was removed under the server"
)

// wantDegraded waits until the log and the status report that the disk fails.
func (s *server) wantDegraded(t testing.TB) {
	t.Helper()
	s.await(t, cacheFails)
	within(t, "cairn status", func() error {
		if out := must(t, "cairn", "status", "unix:"+s.at("status")); !strings.Contains(out, "the disk fails") {
			return fmt.Errorf("it does not say that the disk fails:\n%s", out)
		}
		return nil
	})
}

// TestCacheFull: a part of the image does not fit on the disk. It is served, and cached when there is space.
func TestCacheFull(t *testing.T) {
	t.Parallel()
	c := newLoopRig(t)
	ballast := filepath.Join(c.point, "ballast")
	run(t, "dd", "if=/dev/zero", "of="+ballast, "bs=64k", "conv=fsync") // until the disk is full
	info, err := os.Stat(ballast)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(ballast, info.Size()-mib); err != nil {
		t.Fatal(err)
	}
	s := serve(t, c.depot, c.point, "--prefetch", "all")
	s.wantAll(t, c.image)
	s.wantDegraded(t)
	s.wantAll(t, c.image)
	s.stop(t)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	all := total(c.depot.news())
	c.again(t)
	if sent := total(c.depot.news()); sent == 0 || sent >= all {
		t.Errorf("%d bytes are fetched again of %d, want those that had no room", sent, all)
	}
}

// TestCacheReadOnly: the file system becomes read-only, as after an error.
func TestCacheReadOnly(t *testing.T) {
	t.Parallel()
	c := newLoopRig(t)
	s := serve(t, c.depot, c.point, "--prefetch", "none")
	s.wantSome(t, c.image, c.random, 5)
	if err := unix.Mount("", c.point, "", unix.MS_REMOUNT, "abort"); err != nil {
		t.Fatal(err)
	}
	s.wantAll(t, c.image)
	s.wantDegraded(t)
	s.wantAll(t, c.image)
	s.wantSaidOnce(t, cacheFails)
	s.stop(t)
	c.again(t)
}

// TestCacheRemoved: the cache is removed, or its file system is unmounted.
func TestCacheRemoved(t *testing.T) {
	t.Parallel()
	for name, remove := range map[string]func(t *testing.T, c *cacheRig){
		"removed":   func(t *testing.T, c *cacheRig) { must(t, "rm", "-rf", filepath.Join(c.point, "images")) },
		"unmounted": func(t *testing.T, c *cacheRig) { must(t, "umount", "--lazy", c.point) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newLoopRig(t)
			s := serve(t, c.depot, c.point, "--prefetch", "none")
			s.wantSome(t, c.image, c.random, 5)
			remove(t, c)
			s.wantAll(t, c.image)
			s.await(t, cacheRemoved)
			s.wantAll(t, c.image)
			s.wantSaidOnce(t, cacheRemoved)
			s.stop(t)
			if name == "unmounted" {
				c.mount(t)
			}
			c.again(t)
		})
	}
}
