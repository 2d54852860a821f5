package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fakeDisk is a disk with two partitions and, over them, mapped devices, in a sysfs made of plain files:
//
//	sda 8:0 ─ sda1 8:1 (512 KiB at 1 MiB) ─ dm-0 253:0 "verity" ─ dm-2 253:2
//	        └ sda2 8:2 (512 KiB at 2 MiB) ─ dm-1 253:1
//	                                      └ dm-3 253:3
func fakeDisk(t *testing.T, mountinfo string) kernel {
	t.Helper()
	k := kernel{sys: t.TempDir(), proc: t.TempDir()}
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
		put(t, filepath.Join(k.sys, name), content)
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
		link(t, filepath.Join(k.sys, name), filepath.Join(k.sys, to))
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
		want      string
	}{
		{elsewhere, sda1, "it is part of dm-0 (verity)"},
		{elsewhere, sda2, "it is part of dm-1"},
		{elsewhere, dm0, "it is part of dm-2"},
		{elsewhere, sda, "its partition sda1 is part of dm-0 (verity)"},
		{elsewhere, dm1, ""},
		{rootOnDM, dm2, "it holds the running system (/)"},
		{rootOnDM, dm0, "it holds the running system (/)"},
		{rootOnDM, sda1, "it holds the running system (/)"},
		{rootOnDM, sda, "its partition sda1 holds the running system (/)"},
		{rootOnDM, dm1, ""},
		{rootOnDisk, sda1, "it is part of dm-0 (verity)"},
		{rootOnDisk, sda, "it holds the running system (/)"},
		{dataOnDisk, sda, "it is mounted on /my data"},
	}
	for _, test := range tests {
		err := fakeDisk(t, test.mountinfo).refuseDevice("TARGET", test.target)
		why := ""
		if e, ok := errors.AsType[*RefusedError](err); ok {
			why = e.Why
		} else if err != nil {
			t.Fatal(err)
		}
		if why != test.want {
			t.Errorf("refusing %s with %q: %q, want %q", deviceID(test.target), test.mountinfo, why, test.want)
		}
	}
}

func TestRefusePartitionOfMountedDisk(t *testing.T) {
	k := fakeDisk(t, "28 27 8:0 / /data rw - ext4 /dev/sda rw\n")
	for _, holder := range []string{"dm-1", "dm-3"} {
		if err := os.Remove(filepath.Join(k.sys, "devices/sda/sda2/holders", holder)); err != nil {
			t.Fatal(err)
		}
	}
	e, ok := errors.AsType[*RefusedError](k.refuseDevice("TARGET", sda2))
	if !ok || e.Why != "its disk sda is mounted on /data" {
		t.Errorf("refusal = %v, want that the disk is mounted", e)
	}
}

func TestRefuseUnknownDevice(t *testing.T) {
	if err := fakeDisk(t, "").refuseDevice("TARGET", unix.Mkdev(9, 9)); err == nil {
		t.Error("a device that sysfs does not know was not refused")
	}
}

func TestRootLayers(t *testing.T) {
	upper := t.TempDir()
	info, err := os.Stat(upper)
	if err != nil {
		t.Fatal(err)
	}
	m := mount{source: "overlay", options: "rw,lowerdir=/absent:/,upperdir=" + upper + ",workdir=/absent"}
	ids := layerIDs(m)
	if id := deviceID(inodeOf(info).dev); !slices.Contains(ids, id) {
		t.Errorf("the layers of %+v lie on %s, want %s among them", m, ids, id)
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
	x, err := k.expand(nil, a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := k.expand(nil, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range x {
		for _, q := range y {
			if _, _, ok := p.shared(q); ok {
				return true
			}
		}
	}
	return false
}

func TestParseMounts(t *testing.T) {
	text := strings.Join([]string{
		`22 27 0:21 / /proc rw,relatime - proc proc rw`,
		`27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw,discard`,
		`40 27 8:1 /sub /with\040blank\134and\011tab rw - btrfs /dev/with\040blank rw,subvol=/sub`,
		`broken line`,
		``,
	}, "\n")
	want := []mount{
		{"0:21", "/proc", "proc", "rw"},
		{"254:0", "/", "/dev/vda", "rw,discard"},
		{"8:1", "/with blank\\and\ttab", "/dev/with blank", "rw,subvol=/sub"},
	}
	if diff := cmp.Diff(want, parseMounts(text), cmp.AllowUnexported(mount{})); diff != "" {
		t.Errorf("parseMounts (-want +got):\n%s", diff)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain": "plain", `a\040b`: "a b", `\134`: `\`, `\0400`: " 0",
		`\`: `\`, `\9`: `\9`, `\999`: `\999`, `\777`: `\777`,
	} {
		if got := unescape(in); got != want {
			t.Errorf("unescape(%q) = %q, want %q", in, got, want)
		}
	}
}
