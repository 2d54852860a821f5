package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev/mountinfo"
	"cairn/internal/blockdev/sysfs"
)

// fakeDisk returns a sysfs of plain files with a disk, two partitions, and mapped devices on them:
//
//	sda 8:0 ─ sda1 8:1 (512 KiB at 1 MiB) ─ dm-0 253:0 "verity" ─ dm-2 253:2
//	        └ sda2 8:2 (512 KiB at 2 MiB) ─ dm-1 253:1
//	                                      └ dm-3 253:3
func fakeDisk(t *testing.T, mountinfo string) kernel {
	t.Helper()
	k := kernel{sys: sysfs.FS(t.TempDir()), proc: t.TempDir()}
	files := map[string]string{
		"devices/sda/dev":            "8:0\n",
		"devices/sda/size":           "8192\n",
		"devices/sda/sda1/dev":       "8:1\n",
		"devices/sda/sda1/partition": "1\n",
		"devices/sda/sda1/start":     "2048\n",
		"devices/sda/sda1/size":      "1024\n",
		"devices/sda/sda2/dev":       "8:2\n",
		"devices/sda/sda2/partition": "2\n",
		"devices/sda/sda2/start":     "4096\n",
		"devices/sda/sda2/size":      "1024\n",
		"devices/dm-0/dev":           "253:0\n",
		"devices/dm-0/size":          "1024\n",
		"devices/dm-0/dm/name":       "verity\n",
		"devices/dm-1/dev":           "253:1\n",
		"devices/dm-1/size":          "512\n",
		"devices/dm-2/dev":           "253:2\n",
		"devices/dm-2/size":          "1024\n",
		"devices/dm-3/dev":           "253:3\n",
		"devices/dm-3/size":          "512\n",
	}
	for name, content := range files {
		put(t, filepath.Join(string(k.sys), name), content)
	}
	links := map[string]string{
		"dev/block/8:0": "devices/sda", "dev/block/8:1": "devices/sda/sda1", "dev/block/8:2": "devices/sda/sda2",
		"block/sda": "devices/sda",
	}
	for n := range 4 {
		links[fmt.Sprintf("dev/block/253:%d", n)] = fmt.Sprintf("devices/dm-%d", n)
	}
	stacks := [][2]string{{"sda/sda1", "dm-0"}, {"sda/sda2", "dm-1"}, {"sda/sda2", "dm-3"}, {"dm-0", "dm-2"}}
	for _, stack := range stacks {
		lower, upper := "devices/"+stack[0], "devices/"+stack[1]
		links[lower+"/holders/"+filepath.Base(upper)] = upper
		links[upper+"/slaves/"+filepath.Base(lower)] = lower
	}
	for name, to := range links {
		link(t, filepath.Join(string(k.sys), name), filepath.Join(string(k.sys), to))
	}
	put(t, filepath.Join(k.proc, "self/mountinfo"), mountinfo)
	return k
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, path, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

var (
	sda  = unix.Mkdev(8, 0)
	sda1 = unix.Mkdev(8, 1)
	sda2 = unix.Mkdev(8, 2)
	dm0  = unix.Mkdev(253, 0)
	dm1  = unix.Mkdev(253, 1)
	dm2  = unix.Mkdev(253, 2)
	dm3  = unix.Mkdev(253, 3)
)

func TestRefuseStackedDevices(t *testing.T) {
	const (
		elsewhere  = "27 1 0:22 / / rw - nfs server:/root rw\n"
		rootOnDM   = "27 1 253:2 / / rw - ext4 /dev/mapper/root rw\n"
		rootOnDisk = "27 1 8:0 / / rw - ext4 /dev/root rw\n"
		dataOnDisk = elsewhere + "28 27 8:0 / /my\\040data rw - ext4 /dev/sda rw\n"
	)
	tests := []struct {
		mountinfo string
		target    uint64
		check     string
		why       string
	}{
		{elsewhere, sda1, CheckHolder, "it is part of dm-0 (verity)"},
		{elsewhere, sda2, CheckHolder, "it is part of dm-1"},
		{elsewhere, dm0, CheckHolder, "it is part of dm-2"},
		{elsewhere, sda, CheckHolder, "its partition sda1 is part of dm-0 (verity)"},
		{elsewhere, dm1, "", ""},
		{rootOnDM, dm2, CheckRoot, "it holds the running system (/)"},
		{rootOnDM, dm0, CheckRoot, "it holds the running system (/)"},
		{rootOnDM, sda1, CheckRoot, "it holds the running system (/)"},
		{rootOnDM, sda, CheckRoot, "its partition sda1 holds the running system (/)"},
		{rootOnDM, dm1, "", ""},
		{rootOnDisk, sda1, CheckHolder, "it is part of dm-0 (verity)"},
		{rootOnDisk, sda, CheckRoot, "it holds the running system (/)"},
		{dataOnDisk, sda, CheckMounted, "it is mounted on /my data"},
	}
	for _, test := range tests {
		first := firstReason(t, fakeDisk(t, test.mountinfo), test.target)
		if first.why != test.why || first.check != test.check {
			t.Errorf("refusing %s with %q: %+v, want %s, %q",
				sysfs.ID(test.target), test.mountinfo, first, test.check, test.why)
		}
	}
}

// firstReason returns the reason of a refusal of the device.
func firstReason(t *testing.T, k kernel, number uint64) reason {
	t.Helper()
	d, err := k.sys.Device(sysfs.ID(number))
	if err != nil {
		t.Fatal(err)
	}
	u, err := k.findUsers()
	if err != nil {
		t.Fatal(err)
	}
	all, err := u.familyReasons(d)
	if err != nil {
		t.Fatal(err)
	}
	return append(all, reason{})[0]
}

func TestRefusePartitionOfMountedDisk(t *testing.T) {
	k := fakeDisk(t, "28 27 8:0 / /data rw - ext4 /dev/sda rw\n")
	for _, holder := range []string{"dm-1", "dm-3"} {
		if err := os.Remove(filepath.Join(string(k.sys), "devices/sda/sda2/holders", holder)); err != nil {
			t.Fatal(err)
		}
	}
	if got := firstReason(t, k, sda2); got.why != "its disk sda is mounted on /data" {
		t.Errorf("refusal = %+v, want that the disk is mounted", got)
	}
}

func TestUnknownDevice(t *testing.T) {
	if _, err := fakeDisk(t, "").sys.Device("9:9"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a device that sysfs does not know: %v, want ErrNotExist", err)
	}
}

// Without /proc the uses of a device are unknown. For a file only the absence of a loop device matters.
func TestRefuseWithoutMounts(t *testing.T) {
	k := fakeDisk(t, "")
	if err := os.Remove(filepath.Join(k.proc, "self/mountinfo")); err != nil {
		t.Fatal(err)
	}
	u, err := k.findUsers()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.deviceReasons(sysfs.Device(filepath.Join(string(k.sys), "devices/sda"))); err == nil {
		t.Error("a device was found unused")
	}
	path := write(t, nil)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.checkTarget(path, info, nil); err != nil {
		t.Errorf("a file: %v", err)
	}
}

func TestRootLayers(t *testing.T) {
	upper := t.TempDir()
	info, err := os.Stat(upper)
	if err != nil {
		t.Fatal(err)
	}
	l := mountinfo.Layers{Lower: []string{"/absent", "/"}, Upper: upper}
	ids := layerIDs(l)
	if id := sysfs.ID(inodeOf(info).dev); !slices.Contains(ids, id) {
		t.Errorf("the layers of %+v lie on %s, want %s among them", l, ids, id)
	}
}

func TestOverlapsStackedDevices(t *testing.T) {
	k := fakeDisk(t, "")
	const kib = 1 << 10
	section := func(number uint64, lo, hi int64) extent {
		return extent{inode: inode{rdev: number}, lo: lo, hi: hi}
	}
	whole := func(number uint64, size int64) extent { return section(number, 0, size) }
	tests := []struct {
		name string
		a, b extent
		want bool
	}{
		{"mapped device and what it is built on", whole(dm0, 512*kib), whole(sda1, 512*kib), true},
		{"mapped device and the disk below", whole(dm2, 512*kib), whole(sda, 4096*kib), true},
		{"mapped device two floors up", whole(dm2, 512*kib), whole(dm0, 512*kib), true},
		{"mapped device and the other partition", whole(dm0, 512*kib), whole(sda2, 512*kib), false},
		{"two volumes of one partition", whole(dm1, 256*kib), whole(dm3, 256*kib), false},
		{"sections of one mapped device", section(dm1, 0, 5), section(dm1, 5, 9), false},
		{"mapped device and the disk before it", whole(dm0, 512*kib), whole(sda, 1024*kib), false},
	}
	for _, test := range tests {
		if got := overlap(t, k, test.a, test.b); got != test.want {
			t.Errorf("%s: overlap = %v, want %v", test.name, got, test.want)
		}
		if got := overlap(t, k, test.b, test.a); got != test.want {
			t.Errorf("%s, exchanged: overlap = %v, want %v", test.name, got, test.want)
		}
	}
}

func overlap(t *testing.T, k kernel, a, b extent) bool {
	t.Helper()
	x, err := k.appendExtents(nil, a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := k.appendExtents(nil, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range x {
		for _, q := range y {
			if _, _, ok := p.intersect(q); ok {
				return true
			}
		}
	}
	return false
}
