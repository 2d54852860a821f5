package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cairn/internal/blockdev/sysfs"
	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

const twoSlots = "label: gpt\nsize=2M, name=root-a\nsize=2M, name=root-b\n"

// disk returns a loop device with two partitions, and the file behind it.
func disk(t *testing.T) (node, file string) {
	t.Helper()
	need.Root(t)
	file = looptest.File(t, 16<<20)
	looptest.RunInput(t, twoSlots, need.Tool(t, "sfdisk"), "--quiet", file)
	return looptest.Attach(t, file, 512), file
}

func TestTargetDevice(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		t.Run(fmt.Sprint(sector), func(t *testing.T) {
			file := looptest.File(t, 1<<20)
			target := openTarget(t, looptest.Attach(t, file, sector), Section{})
			if !target.IsDevice() || target.Size() != 1<<20 {
				t.Errorf("IsDevice = %v, Size = %d, want true, 1 MiB", target.IsDevice(), target.Size())
			}
			if got, err := target.SectorSize(); err != nil || got != int64(sector) {
				t.Errorf("SectorSize = %d, %v, want %d", got, err, sector)
			}
			exercise(t, target)
			want := make([]byte, 1<<20)
			if _, err := target.ReadAt(want, 0); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Error("the bytes behind the device are not the synced ones")
			}
		})
	}
}

func TestTargetDeviceSection(t *testing.T) {
	file := looptest.File(t, 1<<20)
	before := testimages.Random(5, 1<<20)
	if err := os.WriteFile(file, before, 0o600); err != nil {
		t.Fatal(err)
	}
	target := openTarget(t, looptest.Attach(t, file, 512), Section{100_001, 200_000})
	exercise(t, target)
	after, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(after[:100_001], before[:100_001]) || !bytes.Equal(after[300_001:], before[300_001:]) {
		t.Error("bytes outside the section changed")
	}
}

func TestDeviceTooSmall(t *testing.T) {
	target := openTarget(t, looptest.Attach(t, looptest.File(t, 1<<20), 512), Section{})
	if err := target.Reserve(1 << 20); err != nil {
		t.Errorf("Reserve of the exact size = %v", err)
	}
	if e, ok := errors.AsType[*RefusedError](target.Reserve(1<<20 + 1)); !ok || e.Check != CheckTooSmall {
		t.Errorf("Reserve of one byte more = %v, want refusal as too small", e)
	}
}

func TestDeviceWithoutMedium(t *testing.T) {
	if _, err := OpenRead(looptest.Attach(t, looptest.File(t, 0), 512), Section{}); err == nil {
		t.Error("OpenRead of an empty device succeeded")
	}
}

func TestNextData(t *testing.T) {
	const hole, data = 1 << 20, 64 << 10
	path := looptest.File(t, 4*hole)
	target := openTarget(t, path, Section{})
	for _, off := range []int64{hole, 2 * hole} {
		if _, err := target.WriteAt(testimages.Random(9, data), off); err != nil {
			t.Fatal(err)
		}
	}
	type run struct{ Start, End int64 }
	tests := []struct {
		section Section
		off     int64
		want    run
	}{
		{Section{}, 0, run{hole, hole + data}},
		{Section{}, hole + 5, run{hole + 5, hole + data}},
		{Section{}, hole + data, run{2 * hole, 2*hole + data}},
		{Section{}, 3 * hole, run{4 * hole, 4 * hole}},
		{Section{}, 4 * hole, run{4 * hole, 4 * hole}},
		{Section{}, 9 * hole, run{4 * hole, 4 * hole}},
		{Section{hole - 10, hole}, 0, run{10, 10 + data}},
		{Section{hole + 10, 100}, 0, run{0, 100}},
		{Section{10, 100}, 0, run{100, 100}},
	}
	for _, test := range tests {
		f := openRead(t, path, test.section)
		start, end, err := f.NextData(test.off)
		if err != nil {
			t.Errorf("NextData(%d) of %+v: %v", test.off, test.section, err)
		}
		if diff := cmp.Diff(test.want, run{start, end}); diff != "" {
			t.Errorf("NextData(%d) of %+v (-want +got):\n%s", test.off, test.section, diff)
		}
	}
	if _, _, err := target.NextData(-1); err == nil {
		t.Error("NextData(-1) succeeded")
	}
}

func TestNextDataOfDevice(t *testing.T) {
	f := openRead(t, looptest.Attach(t, looptest.File(t, 1<<20), 512), Section{})
	if start, end, err := f.NextData(5); start != 5 || end != 1<<20 || err != nil {
		t.Errorf("NextData(5) = %d, %d, %v, want all of the rest", start, end, err)
	}
}

func TestZeroPunchesHoles(t *testing.T) {
	target := openTarget(t, write(t, testimages.Random(4, 1<<20)), Section{})
	if err := target.Zero(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if start, _, err := target.NextData(0); err != nil || start != 1<<20 {
		t.Errorf("after Zero data starts at %d, %v, want none", start, err)
	}
}

// ramfs cannot punch holes: zeros are written.
func TestTargetFileWithoutHoles(t *testing.T) {
	path := filepath.Join(memory(t, "ramfs", ""), "file")
	if err := os.WriteFile(path, make([]byte, 200_000), 0o600); err != nil {
		t.Fatal(err)
	}
	target := openTarget(t, path, Section{})
	exercise(t, target)
	if start, end, err := target.NextData(10); start != 10 || end != 200_000 || err != nil {
		t.Errorf("NextData(10) = %d, %d, %v, want all of the rest", start, end, err)
	}
}

// memory mounts a memory file system until the test ends.
func memory(t *testing.T, kind, options string) (dir string) {
	t.Helper()
	need.Root(t)
	dir = t.TempDir()
	looptest.Run(t, need.Tool(t, "mount"), "-t", kind, "-o", "rw"+options, "none", dir)
	t.Cleanup(func() { looptest.Run(t, "umount", dir) })
	return dir
}

// The file behind the device has no space left. The kernel finds out after WriteAt has succeeded.
func TestSyncReportsLostWrites(t *testing.T) {
	file := filepath.Join(memory(t, "tmpfs", ",size=1M"), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 8<<20); err != nil {
		t.Fatal(err)
	}
	device := looptest.Attach(t, file, 512)
	lost := func(err error) bool { return errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSPC) }
	target := openTarget(t, device, Section{})
	if _, err := target.WriteAt(testimages.Random(1, 4<<20), 0); !lost(err) {
		t.Errorf("a direct write that is lost = %v, want EIO or ENOSPC", err)
	}
	buffered(t, target)
	if _, err := target.WriteAt(testimages.Random(1, 4<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := target.Sync(); !lost(err) {
		t.Errorf("Sync after lost writes = %v, want EIO or ENOSPC", err)
	}
}

// TestLostWritesAreForgotten: after a failed flush the page cache keeps the lost bytes while any program has the
// device open. The next target does not read them.
func TestLostWritesAreForgotten(t *testing.T) {
	const size = 4 << 20
	file := filepath.Join(memory(t, "tmpfs", ",size=1M"), "file")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	device := looptest.Attach(t, file, 512)
	openRead(t, device, Section{})
	target := openTarget(t, device, Section{})
	buffered(t, target)
	if _, err := target.WriteAt(testimages.Random(1, size), 0); err != nil {
		t.Fatal(err)
	}
	if err := target.Sync(); err == nil {
		t.Fatal("no write was lost: this test shows nothing")
	}
	if err := errors.Join(target.File.Close(), target.lock.Close()); err != nil {
		t.Fatal(err)
	}
	again := openTarget(t, device, Section{})
	seen, medium := make([]byte, size), make([]byte, size)
	if _, err := again.ReadAt(seen, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := readBack(t, &again.File).ReadAt(medium, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(seen, medium) {
		t.Error("a target was read where its writes were lost")
	}
}

// buffered makes a target write through the page cache, as where direct writes are not supported.
func buffered(t *testing.T, target *Target) {
	t.Helper()
	if target.direct == nil {
		t.Fatal("the target is not written past the page cache")
	}
	if err := target.direct.Close(); err != nil {
		t.Fatal(err)
	}
	target.direct = nil
}

func TestTargetDeviceBuffered(t *testing.T) {
	target := openTarget(t, looptest.Attach(t, looptest.File(t, 300_032), 512), Section{Offset: 1024})
	buffered(t, target)
	exercise(t, target)
}

// TestDirectWritesBesideEachOther writes neighbouring ranges that share sectors concurrently, from aligned and
// unaligned memory, and reads meanwhile. The page cache never differs from the device.
func TestDirectWritesBesideEachOther(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		const size, pieces = 8 << 20, 61
		file := looptest.File(t, size)
		target := openTarget(t, looptest.Attach(t, file, sector), Section{})
		want := testimages.Random(9, size)
		space := make([]byte, size+4097)
		for _, shift := range []int{0, 1, 8, 511} {
			data := space[shift:][:size]
			for i := range want {
				want[i] ^= byte(shift + 1)
			}
			copy(data, want)
			var wg sync.WaitGroup
			for i := range pieces {
				lo, hi := i*size/pieces, (i+1)*size/pieces
				wg.Go(func() {
					_, _ = target.ReadAt(make([]byte, 100_000), int64(lo))
					if n, err := target.WriteAt(data[lo:hi], int64(lo)); n != hi-lo || err != nil {
						t.Errorf("WriteAt = %d, %v", n, err)
					}
				})
			}
			wg.Wait()
			if err := target.Sync(); err != nil {
				t.Fatalf("Sync: %v", err)
			}
			got := make([]byte, size)
			if _, err := target.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Errorf("sector %d, shift %d: the target's bytes differ (%v)", sector, shift, err)
			}
			if onFile, err := os.ReadFile(file); err != nil || !bytes.Equal(onFile, want) {
				t.Errorf("sector %d, shift %d: the medium's bytes differ (%v)", sector, shift, err)
			}
		}
	}
}

// refused checks that path is refused as a target by that check, whatever other checks are lifted, and that the
// reason contains words.
func refused(t *testing.T, path, check, words string) {
	t.Helper()
	lifted := slices.DeleteFunc(Liftable(), func(name string) bool { return name == check })
	for _, force := range [][]string{nil, lifted} {
		target, err := OpenTarget(t.Context(), path, Options{Force: force})
		if err == nil {
			target.Close()
			t.Errorf("OpenTarget(%s) succeeded, want refusal: %s", path, words)
			continue
		}
		e, ok := errors.AsType[*RefusedError](err)
		if !ok || e.Check != check || !strings.Contains(e.Why, words) || e.Path != path || e.Hint == "" {
			t.Errorf("OpenTarget(%s) = %v (%+v), want a *RefusedError by %s with %q and a hint", path, err, e, check, words)
		}
	}
}

// accepted checks that path is accepted as a target with the checks in force lifted.
func accepted(t *testing.T, path string, force ...string) {
	t.Helper()
	target, err := OpenTarget(t.Context(), path, Options{Force: force})
	if err != nil {
		t.Errorf("OpenTarget(%s) = %v", path, err)
		return
	}
	target.Close()
}

// mounted makes a file system on node and mounts it until the test ends.
func mounted(t *testing.T, node, options string) (point string) {
	t.Helper()
	looptest.Run(t, need.Tool(t, "mkfs.ext4"), "-q", node)
	point = filepath.Join(t.TempDir(), "mount point")
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	looptest.Run(t, need.Tool(t, "mount"), "-o", options, node, point)
	t.Cleanup(func() { looptest.Run(t, "umount", point) })
	return point
}

func TestRefuseMountedPartition(t *testing.T) {
	for _, options := range []string{"rw", "ro"} {
		t.Run(options, func(t *testing.T) {
			node, file := disk(t)
			link := filepath.Join(t.TempDir(), "by-partlabel")
			if err := os.Symlink(node+"p1", link); err != nil {
				t.Fatal(err)
			}
			point := mounted(t, node+"p1", options)
			refused(t, node+"p1", CheckMounted, "it is mounted on "+point)
			refused(t, link, CheckMounted, "it is mounted on "+point)
			refused(t, node, CheckMounted, "its partition "+filepath.Base(node)+"p1 is mounted on "+point)
			refused(t, file, CheckMounted, "it backs the loop device "+node+
				"; there, its partition "+filepath.Base(node)+"p1 is mounted on "+point)
			accepted(t, node+"p2")
		})
	}
}

func TestRefuseMountedDisk(t *testing.T) {
	node := looptest.Attach(t, looptest.File(t, 4<<20), 512)
	point := mounted(t, node, "rw")
	refused(t, node, CheckMounted, "it is mounted on "+point)
}

// btrfs has a device number of its own: only the source in mountinfo leads to the device.
func TestRefuseMountedBtrfs(t *testing.T) {
	node := looptest.Attach(t, looptest.File(t, 128<<20), 512)
	looptest.Run(t, need.Tool(t, "mkfs.btrfs"), "-q", node)
	point := t.TempDir()
	looptest.Run(t, need.Tool(t, "mount"), node, point)
	t.Cleanup(func() { looptest.Run(t, "umount", point) })
	refused(t, node, CheckMounted, "it is mounted on "+point)
}

func TestRefuseSwapDevice(t *testing.T) {
	node, _ := disk(t)
	swapOn(t, node+"p2")
	refused(t, node+"p2", CheckSwap, "it is used as swap")
	refused(t, node, CheckSwap, "its partition "+filepath.Base(node)+"p2 is used as swap")
	accepted(t, node+"p1")
}

func TestRefuseSwapFile(t *testing.T) {
	need.Root(t)
	path := write(t, make([]byte, 1<<20))
	swapOn(t, path)
	refused(t, path, CheckSwap, "it is used as swap")
}

func swapOn(t *testing.T, path string) {
	t.Helper()
	looptest.Run(t, need.Tool(t, "mkswap"), path)
	looptest.Run(t, need.Tool(t, "swapon"), path)
	t.Cleanup(func() { looptest.Run(t, "swapoff", path) })
}

func TestRefuseWhatALoopDeviceIsAttachedTo(t *testing.T) {
	node, file := disk(t)
	inner := looptest.Attach(t, node+"p1", 512)
	refused(t, file, CheckLoop, "the loop device "+node)
	refused(t, node+"p1", CheckLoop, "it backs the loop device "+inner)
	refused(t, node, CheckLoop, "its partition "+filepath.Base(node)+"p1 backs the loop device "+inner)
	accepted(t, inner)

	hard := filepath.Join(filepath.Dir(file), "hard link")
	if err := os.Link(file, hard); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil { // the path in sysfs no longer exists
		t.Fatal(err)
	}
	refused(t, hard, CheckLoop, "the loop device "+node)
}

func TestForceLoopBacking(t *testing.T) {
	node, file := disk(t)
	accepted(t, file, CheckLoop)
	inner := looptest.Attach(t, node+"p1", 512)
	accepted(t, node+"p1", CheckLoop)
	accepted(t, file, CheckLoop)

	claim := openTarget(t, inner, Section{})
	for _, path := range []string{node + "p1", node, file} {
		refused(t, path, CheckClaimed, "the loop device "+inner+"; there, it is in use")
	}
	if err := claim.Close(); err != nil {
		t.Fatal(err)
	}
	accepted(t, file, CheckLoop)
	mounted(t, inner, "ro")
	for _, path := range []string{node + "p1", node, file} {
		refused(t, path, CheckMounted, "the loop device "+inner+"; there, it is mounted on")
	}
}

func TestRefuseMountedInAnotherNamespace(t *testing.T) {
	node, file := disk(t)
	looptest.Run(t, need.Tool(t, "mkfs.ext4"), "-q", node+"p1")
	point := t.TempDir()
	other := beside(t, "unshare", "--mount", "sh", "-c", `mount "$1" "$2" && exec cat`, "-", node+"p1", point)
	where := fmt.Sprintf("it is mounted on %s, as cat (process %d) sees it", point, other)
	refused(t, node+"p1", CheckMounted, where)
	refused(t, node, CheckMounted, where)
	refused(t, file, CheckMounted, "there, "+where)
	accepted(t, node+"p2")
}

func TestRefuseFileLockedByAnother(t *testing.T) {
	path := write(t, make([]byte, 10))
	bystander := openRead(t, path, Section{})
	other := beside(t, "flock", "--no-fork", path, "sh", "-c", "exec cat")
	refused(t, path, CheckClaimed, fmt.Sprintf("another program has locked it: cat (process %d)", other))
	bystander.Close()
}

// TestRefuseImageOfMachine: qemu takes byte locks on disk images, also on those that it only reads.
func TestRefuseImageOfMachine(t *testing.T) {
	for _, flags := range [][]string{{"-f", "raw"}, {"-f", "raw", "-r"}} {
		path := write(t, make([]byte, 1<<20))
		accepted(t, path)
		qemu := besideSaying(t, "length\n", "qemu-io", append(flags, path)...)
		refused(t, path, CheckClaimed, fmt.Sprintf("another program has locked it: qemu-io (process %d)", qemu))
	}
}

// beside runs a program until the test ends, and returns its process number when it has become cat.
func beside(t *testing.T, name string, args ...string) (pid int) {
	t.Helper()
	return besideSaying(t, "?", name, args...)
}

// besideSaying runs a program until the test ends, and returns its process number when it has echoed word.
func besideSaying(t *testing.T, word, name string, args ...string) (pid int) {
	t.Helper()
	cmd := exec.Command(need.Tool(t, name), args...)
	cmd.Stderr = t.Output()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	_, err = io.WriteString(stdin, word)
	if _, e := stdout.Read(make([]byte, 1)); err != nil || e != nil {
		t.Fatalf("%s: %v, %v", name, err, e)
	}
	return cmd.Process.Pid
}

func TestRefuseReadOnlyDevice(t *testing.T) {
	node, _ := disk(t)
	looptest.Run(t, need.Tool(t, "blockdev"), "--setro", node+"p1")
	refused(t, node+"p1", CheckReadOnly, "it is read-only")
	accepted(t, node+"p2")
}

func TestRefuseClaimedDevice(t *testing.T) {
	node, _ := disk(t)
	first := openTarget(t, node+"p1", Section{})
	us := fmt.Sprintf("it is open in blockdev.test (process %d)", os.Getpid())
	refused(t, node+"p1", CheckClaimed, us)
	refused(t, node, CheckClaimed, us)
	refused(t, node+"p2", CheckClaimed, "another program has locked the disk "+node) // by the first target
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	accepted(t, node+"p1")
}

func TestRefuseLockedFile(t *testing.T) {
	path := write(t, make([]byte, 10))
	first := openTarget(t, path, Section{})
	refused(t, path, CheckClaimed, fmt.Sprintf("another program has locked it: blockdev.test (process %d)", os.Getpid()))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	accepted(t, path)
}

func TestRefuseWhatIsNoTarget(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, CheckNotTarget, "it is a directory")
	refused(t, pipe, CheckNotTarget, "it is a pipe")
	refused(t, "/dev/null", CheckNotTarget, "it is a character device")
	if _, err := OpenTarget(t.Context(), filepath.Join(dir, "absent"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenTarget of nothing = %v, want ErrNotExist", err)
	}
}

func TestRefuseFileUnderDev(t *testing.T) {
	need.Root(t)
	f, err := os.CreateTemp("/dev", "cairn-test-*")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	refused(t, f.Name(), CheckInDev, "it is a regular file under /dev")
	accepted(t, f.Name(), CheckInDev)
}

func TestRefuseRootDevice(t *testing.T) {
	need.Root(t)
	info, err := os.Stat("/")
	if err != nil {
		t.Fatal(err)
	}
	number := inodeOf(info).dev
	if unix.Major(number) == 0 {
		t.Skip("/ lies on no single block device here")
	}
	d, err := liveKernel().sys.Device(sysfs.ID(number))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, d.Node(), CheckRoot, "it holds the running system")
}

func TestOverlaps(t *testing.T) {
	node, file := disk(t)
	link, hard := filepath.Join(t.TempDir(), "link"), filepath.Join(filepath.Dir(file), "hard")
	for _, err := range []error{os.Symlink(file, link), os.Link(file, hard)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	second := looptest.Attach(t, file, 512)
	other := write(t, make([]byte, 16<<20))
	const mib = 1 << 20 // p1 is at 1 MiB, p2 at 3 MiB, 2 MiB each
	type at struct {
		path    string
		section Section
	}
	tests := []struct {
		name string
		a, b at
		want bool
	}{
		{"a file and itself", at{path: file}, at{path: file}, true},
		{"a file and another", at{path: file}, at{path: other}, false},
		{"symbolic link", at{path: file}, at{path: link}, true},
		{"hard link", at{path: file}, at{path: hard}, true},
		{"sections side by side", at{file, Section{0, mib}}, at{file, Section{mib, mib}}, false},
		{"sections that share a byte", at{file, Section{0, mib + 1}}, at{file, Section{mib, mib}}, true},
		{"two partitions", at{path: node + "p1"}, at{path: node + "p2"}, false},
		{"partition and its disk", at{path: node + "p1"}, at{path: node}, true},
		{"partition and the disk before it", at{path: node + "p1"}, at{node, Section{0, mib}}, false},
		{"loop device and its file", at{path: node}, at{path: file}, true},
		{"partition and its section of the file", at{path: node + "p2"}, at{file, Section{3 * mib, 2 * mib}}, true},
		{"partition and the other's section", at{path: node + "p2"}, at{file, Section{mib, 2 * mib}}, false},
		{"two loop devices over a file", at{path: node}, at{path: second}, true},
		{"equal partitions of two loop devices", at{path: node + "p1"}, at{path: second + "p1"}, true},
		{"other partitions of two loop devices", at{path: node + "p1"}, at{path: second + "p2"}, false},
		{"loop device and another file", at{path: node}, at{path: other}, false},
	}
	for _, test := range tests {
		a, b := openRead(t, test.a.path, test.a.section), openRead(t, test.b.path, test.b.section)
		for _, pair := range [][2]*File{{a, b}, {b, a}} {
			why, err := Overlaps(pair[0], pair[1])
			if err != nil || (why != "") != test.want {
				t.Errorf("%s: Overlaps = %q, %v, want overlap %v", test.name, why, err, test.want)
			}
		}
	}
}

func TestOverlapsLoopWithOffset(t *testing.T) {
	need.Root(t)
	file := looptest.File(t, 4<<20)
	args := []string{"--find", "--show", "--offset", "1048576", "--sizelimit", "1048576", file}
	node := strings.TrimSpace(looptest.Run(t, need.Tool(t, "losetup"), args...))
	t.Cleanup(func() { looptest.Run(t, "losetup", "--detach", node) })
	loop := openRead(t, node, Section{})
	for _, test := range []struct {
		section Section
		want    bool
	}{
		{Section{0, 1 << 20}, false},
		{Section{1 << 20, 1 << 20}, true},
		{Section{2 << 20, 1 << 20}, false},
	} {
		why, err := Overlaps(loop, openRead(t, file, test.section))
		if err != nil || (why != "") != test.want {
			t.Errorf("Overlaps(loop, %+v) = %q, %v, want overlap %v", test.section, why, err, test.want)
		}
	}
}
