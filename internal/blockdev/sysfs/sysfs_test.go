package sysfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// fakeDisk returns a sysfs with the disk cciss!c0d0, its partition c0d0p1, and the mapped device dm-0 on the
// partition. The link of another disk leads nowhere, as that of an unplugged one.
func fakeDisk(t *testing.T) FS {
	t.Helper()
	root := t.TempDir()
	part := "devices/cciss!c0d0/cciss!c0d0p1"
	files := map[string]string{
		"devices/cciss!c0d0/dev": "104:0\n",
		part + "/dev":            "104:1\n",
		part + "/partition":      "1\n",
		part + "/start":          "2048\n",
		part + "/uevent":         "DEVNAME=cciss!c0d0p1\nPARTNAME=root=a \nPARTUUID=AA-01\n",
		"devices/dm-0/dev":       "253:0\n",
	}
	links := map[string]string{
		"block/cciss!c0d0": "devices/cciss!c0d0", "block/dm-0": "devices/dm-0", "block/sdz": "devices/sdz",
		"dev/block/104:1": part, part + "/holders/dm-0": "devices/dm-0",
	}
	for name, content := range files {
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err := errors.Join(err, os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range links {
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err := errors.Join(err, os.Symlink(filepath.Join(root, to), path)); err != nil {
			t.Fatal(err)
		}
	}
	return FS(root)
}

func TestDevice(t *testing.T) {
	s := fakeDisk(t)
	d, err := s.Device("104:1")
	if err != nil {
		t.Fatal(err)
	}
	start, startErr := d.Bytes("start")
	name, nameErr := d.Uevent("PARTNAME")
	absent, absentErr := d.Uevent("PART")
	id, idErr := d.ID()
	if err := errors.Join(startErr, nameErr, absentErr, idErr); err != nil {
		t.Fatal(err)
	}
	if d.Node() != "/dev/cciss/c0d0p1" || start != 1<<20 || name != "root=a " || absent != "" || id != "104:1" {
		t.Errorf("%s: node %s, start %d, PARTNAME %q, PART %q, ID %s", d, d.Node(), start, name, absent, id)
	}
	disk, ok := d.Disk()
	if !ok || disk.Name() != "cciss/c0d0" || !slices.Equal(disk.Partitions(), []Device{d}) {
		t.Errorf("the disk of %s is %s, %v with the partitions %v", d, disk, ok, disk.Partitions())
	}
	if whole, ok := disk.Disk(); ok {
		t.Errorf("the disk %s is a partition of %s", disk, whole)
	}
	if top, err := d.Linked("holders"); err != nil || len(top) != 1 || top[0].Name() != "dm-0" {
		t.Errorf("the holders of %s are %v, %v", d, top, err)
	}
	if below, err := d.Linked("slaves"); err != nil || len(below) != 0 {
		t.Errorf("the slaves of %s are %v, %v", d, below, err)
	}
	if _, err := d.Number("size"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Number of an absent attribute = %v, want ErrNotExist", err)
	}
	if _, err := s.Device("9:9"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Device of an unknown number = %v, want ErrNotExist", err)
	}
}

func TestDisks(t *testing.T) {
	disks, err := fakeDisk(t).Disks()
	if err != nil || len(disks) != 2 || disks[0].Name() != "cciss/c0d0" || disks[1].Name() != "dm-0" {
		t.Errorf("Disks = %v, %v, want two without the unplugged one", disks, err)
	}
	if disks, err := FS(t.TempDir()).Disks(); err != nil || len(disks) != 0 {
		t.Errorf("Disks without a sysfs = %v, %v, want none", disks, err)
	}
}

func TestID(t *testing.T) {
	for _, id := range []string{"8:1", "259:1048575"} {
		if number, err := ParseID(id); err != nil || ID(number) != id {
			t.Errorf("ID(ParseID(%s)) = %s, %v", id, ID(number), err)
		}
	}
	for _, id := range []string{"", "8", "8:", ":1", "a:1", "8:-1", "8:1:1"} {
		if number, err := ParseID(id); err == nil {
			t.Errorf("ParseID(%q) = %d, want an error", id, number)
		}
	}
}
