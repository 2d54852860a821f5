package crashtest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

// TestStoreDies: the store fails for good in the middle of a job. The next run does not fetch the same chunks again.
func TestStoreDies(t *testing.T) {
	t.Parallel()
	r := published(t, ext4)
	d, s := newDepot(t, r), slotsOf(t, r, r.image("c"))
	was, will := sum(t, r.image("c"), r.size(t, "b")), sum(t, r.image("b"), r.size(t, "b"))
	args := []string{d.url + "/b.caibx", s.b, "--state", "", "--memory", "1MiB", "--fetches", "4", "--patience", "10s"}
	must(t, "dd", "if=/dev/zero", "of="+s.b, "bs=1M", "seek=8", "count=8", "conv=fsync") // forces downloads
	d.meanwhile(func(n int) bool { return n < 20 })
	fails(t, notFound, "127.0.0.1", append([]string{"assemble"}, args...)...)
	if left := judge(t, s.b, was, will, r.size(t, "b"), r.index("b")); left != unfinished {
		t.Errorf("left %s", left)
	}
	d.meanwhile(nil)
	wantAgain(t, d, func() { assemble(t, args...) })
	wantImage(t, s.b, r.image("b"))
}

// TestThinDevice: the device has less space than its size, which a write finds out.
func TestThinDevice(t *testing.T) {
	t.Parallel()
	need.Root(t)
	r := published(t, ext4)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, "umount", dir) })
	file := filepath.Join(dir, "thin")
	must(t, "truncate", "-s", "48M", file)
	node := looptest.Attach(t, file, 512)
	got := run(t, "cairn", "assemble", r.index("b"), node, "--state", "")
	words := "no space left" // or, depending on the kernel:
	if !strings.Contains(got.stderr, words) {
		words = "input/output error"
	}
	got.wantFailed(t, failed, words)
	judge(t, node, [32]byte{}, [32]byte{}, r.size(t, "b"), r.index("b"))
}

// TestLoopDetached: detaching a loop device in use takes effect when it is closed.
func TestLoopDetached(t *testing.T) {
	t.Parallel()
	need.Root(t)
	r := published(t, ext4)
	d, file := newDepot(t, r), looptest.File(t, r.size(t, "b"))
	node := strings.TrimSpace(must(t, "losetup", "--find", "--show", file))
	d.meanwhile(func(n int) bool {
		if n == 5 {
			must(t, "losetup", "--detach", node)
		}
		return true
	})
	assemble(t, d.url+"/b.caibx", node, "--state", "")
	wantImage(t, file, r.image("b"))
}

// TestBusySeed: the seed is written to all the time.
func TestBusySeed(t *testing.T) {
	t.Parallel()
	r := published(t, ext4)
	for _, index := range []string{"", "=" + r.index("a")} {
		d, s := newDepot(t, r), slotsOf(t, r, "")
		stop := busy(t, s.a, s.size)
		assemble(t, d.url+"/b.caibx", s.b, "--state", "", "--seed", s.a+index)
		stop()
		wantImage(t, s.b, r.image("b"))
	}
}

// busy writes to a device until stop is called.
func busy(t testing.TB, node string, size int64) (stop func()) {
	t.Helper()
	f, err := os.OpenFile(node, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	random, page := chance(t), testimages.Random(1, 4*kib)
	done := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		defer f.Close()
		for {
			select {
			case <-done:
				return
			default:
			}
			if _, err := f.WriteAt(page, random.Int64N(size/4096)*4096); err != nil {
				t.Error(err)
				return
			}
		}
	})
	return func() {
		close(done)
		writer.Wait()
	}
}

// TestSizes: images of no bytes, of one byte and of a few, as large as the partition, and a sector larger.
func TestSizes(t *testing.T) {
	t.Parallel()
	need.Root(t)
	for _, sector := range []int{512, 4096} {
		s := newSlots(t, 2*mib, sector, "", "")
		for _, size := range []int{0, 1, sector - 1, sector + 1, 2*mib - 1, 2 * mib} {
			r := single(t, testimages.Random(uint64(size), size))
			patch(t, s.b, slices.Repeat([]byte{0x55}, 2*mib), 0)
			behind := sumFrom(t, s.b, int64(size), 2*mib)
			assemble(t, r.index("x"), s.b, "--state", "")
			wantImage(t, s.b, r.image("x"))
			if sumFrom(t, s.b, int64(size), 2*mib) != behind {
				t.Errorf("sectors of %d bytes, an image of %d: what lies behind it has changed", sector, size)
			}
			must(t, "cairn", "verify", r.index("x"), s.b)
		}
		r := single(t, testimages.Random(1, 2*mib+sector))
		before := sum(t, s.disk, 6*mib)
		fails(t, refused, fmt.Sprintf("it holds %d bytes and %d are needed", 2*mib, 2*mib+sector),
			"assemble", r.index("x"), s.b)
		if sum(t, s.disk, 6*mib) != before {
			t.Error("a partition that is too small was written to, or what is beside it")
		}
	}
}

// sumFrom returns the digest of the bytes of a file or device from lo to hi.
func sumFrom(t testing.TB, path string, lo, hi int64) string {
	t.Helper()
	p := make([]byte, hi-lo)
	if _, err := openFile(t, path).ReadAt(p, lo); err != nil && len(p) > 0 {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", p)
}

// TestLargeImage: an image with data on both sides of 4 GiB, onto a device with sectors of 4096 bytes.
func TestLargeImage(t *testing.T) {
	if testing.Short() {
		t.Skip("reads gigabytes of zeros")
	}
	t.Parallel()
	need.Root(t)
	const size int64 = 4*gib + 9*mib
	r := releases{t.TempDir()}
	must(t, "truncate", "-s", fmt.Sprint(size), r.image("x"))
	parts := []int64{0, 2 * gib, 4*gib - mib, size - mib}
	for _, at := range parts {
		patch(t, r.image("x"), testimages.Random(uint64(at), 2*mib)[:min(2*mib, size-at)], at)
	}
	r.publish(t, "x")
	node := looptest.Attach(t, looptest.File(t, size), 4096)
	seed := filepath.Join(t.TempDir(), "seed") // with a seed, the device itself is not scanned
	if err := os.WriteFile(seed, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrote := counted(t, node, func() { assemble(t, r.index("x"), node, "--state", "", "--seed", seed) })
	if wrote.written > 10*mib {
		t.Errorf("%d bytes were written for 7 MiB of data", wrote.written)
	}
	for _, at := range parts {
		lo, hi := max(at-mib, 0), min(at+3*mib, size)
		if sumFrom(t, node, lo, hi) != sumFrom(t, r.image("x"), lo, hi) {
			t.Errorf("the device has other bytes than the image around %d", at)
		}
	}
}
