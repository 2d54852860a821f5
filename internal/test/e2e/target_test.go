package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

// refuses checks that assemble refuses a target, and leaves its bytes unchanged.
func refuses(t testing.TB, words, bytes string, args ...string) {
	t.Helper()
	n := fileSize(t, bytes)
	before := sum(t, bytes, 0, n)
	fails(t, refused, words, append([]string{"assemble"}, args...)...)
	if sum(t, bytes, 0, n) != before {
		t.Errorf("assemble %q has written to %s", args, bytes)
	}
}

func TestTargetTooSmall(t *testing.T) {
	t.Parallel()
	r := noise(t, 2*mib+1)
	disk := filepath.Join(t.TempDir(), "disk.img")
	parts := []testimages.Part{{Name: "small", Size: 2 * mib}, {Name: "next", Size: 2 * mib}}
	if err := testimages.GPTDisk(disk, 512, parts...); err != nil {
		t.Fatal(err)
	}
	const words = "holds 2097152 bytes and 2097153 are needed"
	refuses(t, words, disk, r.index("b"), disk+"#small")
	fails(t, refused, words, "plan", r.index("b"), disk+"#small")
	node := looptest.Attach(t, disk, 512)
	refuses(t, words, node, r.index("b"), node+"p1")
	refuses(t, words, node, r.index("b"), node+"#small")
}

// TestTargetInUse: mounted, a disk with a mounted partition, attached to a loop device, claimed by another program.
func TestTargetInUse(t *testing.T) {
	t.Parallel()
	need.Root(t)
	r := publish(t, small(t))
	s := newSlots(t, r, true)
	node := strings.TrimSuffix(s.a, "#root-a")
	must(t, "mkfs.ext4", "-q", "-F", node+"p2")
	mount(t, "-o", "ro", node+"p2")
	refuses(t, "is mounted on", node, r.index("b"), s.a)
	refuses(t, "its partition", node, r.index("b"), node)
	refuses(t, "the loop device "+node, s.disk, r.index("b"), s.disk+"#root-b")
	cairn(t, "assemble", r.index("b"), s.b, "--seed", s.a) // a mounted slot may be a seed

	server := newNginx(t, r.dir)
	g := newGate(t, server.url, 0)
	wipe(t, node+"p3")
	first := start(t, nil, "assemble", g.url+"/b.caibx", s.b)
	g.await(t)
	fails(t, refused, "", "assemble", r.index("b"), s.b)
	g.open()
	if ended := first.wait(t); ended.status != 0 {
		t.Errorf("the first of two: %+v", ended)
	}
}

// TestTargetLocked: assemble waits for a disk that another program has locked, as udev and sfdisk do, and then
// refuses it. While assemble runs, the disk is locked for others.
func TestTargetLocked(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	s := newSlots(t, r, true)
	node := strings.TrimSuffix(s.a, "#root-a")
	in, release := pipe(t)
	holder := exec.Command(need.Tool(t, "flock"), node, "sh", "-c", "echo locked; read line")
	said := newWatched()
	holder.Stdin, holder.Stdout = in, said
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	said.await(t, "locked")
	const words = "another program has locked the disk "
	refuses(t, words+node+": flock (process ", node, r.index("b"), s.b, "--lock-wait", "0s")
	refuses(t, words, node, r.index("b"), node, "--lock-wait", "1ms")

	g := newGate(t, newNginx(t, r.dir).url, 0)
	wipe(t, node+"p3")
	j := start(t, nil, "assemble", g.url+"/b.caibx", s.b, "--lock-wait", "1h")
	j.stderr.await(t, "waiting until the lock is free: "+words+node)
	release.Close()
	_ = holder.Wait() // fails, since it reads no line
	g.await(t)
	if got := run(t, "flock", "--nonblock", node, "true"); got.status == 0 {
		t.Error("the disk is not locked while its partition is written")
	}
	g.open()
	if ended := j.wait(t); ended.status != 0 {
		t.Errorf("after the lock was free: %+v", ended)
	}
	must(t, "flock", "--nonblock", node, "true")
}

// TestWholeDisk: the kernel drops the partitions of a disk that gets another table.
func TestWholeDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := testimages.GPTDisk(image, 512, testimages.Part{Name: "only", Size: 2 * mib}); err != nil {
		t.Fatal(err)
	}
	cairn(t, "make", filepath.Join(dir, "b.caibx"), image)
	disk := filepath.Join(dir, "disk")
	if err := testimages.GPTDisk(disk, 512, testimages.Slots(2*mib, "", "")...); err != nil {
		t.Fatal(err)
	}
	node := looptest.Attach(t, disk, 512)
	sizes := func() string {
		return run(t, "lsblk", "--noheadings", "--bytes", "--raw", "--output", "SIZE", node).stdout
	}
	if got := sizes(); strings.Count(got, "\n") != 4 {
		t.Fatalf("the kernel has the disk and its partitions of the sizes\n%s", got)
	}
	if got := run(t, "cairn", "assemble", filepath.Join(dir, "b.caibx"), node); got.status != 0 || strings.Contains(got.stderr, "warning") {
		t.Errorf("assemble onto the disk: %+v", got)
	}
	// A kernel without GPT support has no partitions now.
	if got, whole := sizes(), fmt.Sprintln(fileSize(t, node)); got != whole && got != whole+fmt.Sprintln(2*mib) {
		t.Errorf("the kernel has the disk and its partitions of the sizes\n%s", got)
	}
}

// mount mounts a file system on a new directory until the test ends.
func mount(t testing.TB, args ...string) string {
	t.Helper()
	need.Root(t)
	dir := t.TempDir()
	must(t, "mount", append(args, dir)...)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return dir
}

// TestTargetMistyped: a misspelt device name, and targets that are neither a device nor a file.
func TestTargetMistyped(t *testing.T) {
	t.Parallel()
	need.Root(t)
	r := noise(t, 100_001)
	stray := fmt.Sprintf("/dev/e2e-%d", os.Getpid())
	if err := os.WriteFile(stray, []byte("stray"), 0o600); err != nil {
		t.Skip("cannot write to /dev")
	}
	defer os.Remove(stray)
	refuses(t, "regular file under /dev", stray, r.index("b"), stray)
	for _, args := range [][]string{{"assemble", r.index("b"), "-"}, {"cat", r.index("b")}} { // as with >/dev/NAME
		checkFailed(t, onto(t, stray, os.O_WRONLY, args...), refused, "regular file under /dev", args)
	}
	fails(t, notFound, "no such file", "assemble", r.index("b"), stray+"-absent")
	wantNone(t, stray+"-absent")
	fails(t, refused, "character device", "assemble", r.index("b"), "/dev/null")
	fails(t, refused, "directory", "assemble", r.index("b"), t.TempDir())
	fails(t, notFound, "", "assemble", r.index("b"), filepath.Join(t.TempDir(), "absent", "target"))
}

// TestSeedOverlapsTarget: a seed with bytes of the target under another name.
func TestSeedOverlapsTarget(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	image, device := newSlots(t, r, false), newSlots(t, r, true)
	node := strings.TrimSuffix(device.a, "#root-a")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(image.disk, link); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ target, seed, bytes string }{
		{image.b, image.b, image.disk},
		{image.b, image.disk, image.disk},
		{image.b, link + "#root-b", image.disk},
		{device.b, node + "p3", node},
		{device.b, node, node},
		{device.b, device.disk, node},
		{device.b, device.disk + "#root-b=" + r.index("a"), node},
	} {
		refuses(t, "overlaps the seed", c.bytes, r.index("b"), c.target, "--seed", c.seed)
	}
	cairn(t, "assemble", r.index("b"), device.b, "--seed", device.disk+"#root-a")
	cairn(t, "verify", r.index("b"), device.b)
}

// TestPartitionNames: the name of no partition, or of two, is an error.
func TestPartitionNames(t *testing.T) {
	t.Parallel()
	r := noise(t, 100_001)
	disk := filepath.Join(t.TempDir(), "disk.img")
	label := fmt.Sprintf("e2e-twin-%d", os.Getpid())
	parts := []testimages.Part{{Name: label, Size: mib}, {Name: label, Size: mib}}
	if err := testimages.GPTDisk(disk, 512, parts...); err != nil {
		t.Fatal(err)
	}
	refuses(t, "ambiguous", disk, r.index("b"), disk+"#"+label)
	fails(t, notFound, "not found", "assemble", r.index("b"), disk+"#other")
	fails(t, notFound, "no GPT partition table", "assemble", r.index("b"), r.index("b")+"#other")
	node := looptest.Attach(t, disk, 512)
	refuses(t, "ambiguous", node, r.index("b"), "PARTLABEL="+label)
	fails(t, notFound, "not found", "assemble", r.index("b"), "PARTLABEL="+label+"-absent")
	fails(t, notFound, "not found", "assemble", r.index("b"), "PARTUUID=11111111-2222-3333-4444-555555555555")
	cairn(t, "assemble", r.index("b"), node+"#2")
}

// smallDisks returns file systems that fill up soon.
func smallDisks(t testing.TB) map[string]string {
	t.Helper()
	need.Root(t)
	device := looptest.File(t, 4*mib)
	must(t, "mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", device)
	return map[string]string{
		"tmpfs": mount(t, "-t", "tmpfs", "-o", "size=2m", "tmpfs"),
		"ext4":  mount(t, "-o", "loop", device),
	}
}

func TestDiskFull(t *testing.T) {
	t.Parallel()
	r := noise(t, 6*mib)
	for name, dir := range smallDisks(t) {
		t.Run(name, func(t *testing.T) {
			const words = "no space left on device"
			elsewhere := t.TempDir()
			index := filepath.Join(elsewhere, "x.caibx")
			fails(t, failed, words, "make", "-s", filepath.Join(dir, "store"), index, r.b)
			wantOnly(t, elsewhere)
			wantOnly(t, filepath.Join(dir, "store"))
			fails(t, failed, words, "assemble", r.index("b"), filepath.Join(dir, "target"))
			wantOnly(t, dir, "store", "store.caroots", "lost+found")
			waitForRoom(t, dir)

			cache, target := filepath.Join(dir, "cache"), filepath.Join(elsewhere, "target")
			for _, when := range []string{"becomes full", "is full"} {
				got := run(t, "cairn", "assemble", "-c", cache, "--cache-limit", "0", r.index("b"), target)
				if got.status != 0 || strings.Count(got.stderr, "warning: the cache") != 1 {
					t.Errorf("with a cache that %s: %+v", when, got)
				}
				wantSame(t, target, r.b)
				must(t, "rm", target)
				run(t, "dd", "if=/dev/zero", "of="+filepath.Join(dir, "fill"), "bs=1k", "status=none")
			}
			store := filepath.Join(elsewhere, "store")
			fails(t, failed, words, "make", filepath.Join(dir, "x.caibx"), r.b, "-s", store)
			wantNone(t, filepath.Join(dir, "x.caibx"))
		})
	}
}

// waitForRoom waits until a file system has room for a MiB. Some kernels free the blocks of a removed file a moment later.
func waitForRoom(t testing.TB, dir string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			t.Fatal(err)
		}
		if int64(s.Bavail)*s.Bsize >= mib {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s has no room", dir)
		}
	}
}

// TestMediumFull: a device reports at the flush that it cannot hold the written data.
func TestMediumFull(t *testing.T) {
	t.Parallel()
	r := noise(t, 6*mib)
	file := filepath.Join(mount(t, "-t", "tmpfs", "-o", "size=2m", "tmpfs"), "thin.img")
	must(t, "truncate", "-s", "8M", file)
	node := looptest.Attach(t, file, 512)
	fails(t, failed, "", "assemble", r.index("b"), node)
}

func TestReadOnlyDirectories(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	dir, elsewhere := mount(t, "-t", "tmpfs", "-o", "ro", "tmpfs"), t.TempDir()
	here := func(name string) string { return filepath.Join(dir, name) }
	there := func(name string) string { return filepath.Join(elsewhere, name) }
	const words = "read-only file system"
	fails(t, failed, words, "make", here("x.caibx"), r.b, "-s", there("store"))
	fails(t, failed, words, "make", there("x.caibx"), r.b, "-s", here("store"))
	fails(t, failed, words, "assemble", r.index("b"), here("target"))
	wantNone(t, there("x.caibx"))
	got := run(t, "cairn", "assemble", "-c", here("cache"), r.index("b"), there("out"))
	if got.status != 0 || strings.Count(got.stderr, "warning: the cache") != 1 {
		t.Errorf("with a cache that cannot be written: %+v", got)
	}
}
