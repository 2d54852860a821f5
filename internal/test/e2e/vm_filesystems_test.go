package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/test/vmtest"
	"cairn/testimages"
)

// TestVMFilesystems: the recipes of docs/vms.md work with images of each kind of file system, and with a disk whose
// partitions cairn assemble has written. A guest has them as disks from the server, and then attaches them in turn.
func TestVMFilesystems(t *testing.T) {
	t.Parallel()
	images := newFilesystems(t)
	dir := t.TempDir()
	var indexes []string
	for _, fs := range images {
		index := filepath.Join(dir, fs.name+".caibx")
		cairn(t, "make", index, fs.path)
		indexes = append(indexes, index)
	}
	socket := filepath.Join(socketDir(t), "socket")
	tcp := serve(t, len(images), append(indexes, "--listen", "tcp:127.0.0.1:0")...)
	serve(t, len(images), append(indexes, "--listen", "unix:"+socket)...)
	args := []string{"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="}
	for _, fs := range images {
		args = append(args, fs.disk(t, socket)...)
	}
	vm := vmtest.Boot(t, vmtest.Config{
		Modules: []string{"virtio_pci", "virtio_net", "virtio_blk", "nbd", "squashfs", "ext4", "xfs", "erofs"},
		Files:   vmtest.Program(t, "nbd-client"),
		Init:    filesystemsScript(t, images, port(t, tcp.uris[0])),
		Args:    args,
	})
	for _, fs := range images {
		wantLines(t, vm, fs.wanted("disk")...)
	}
	for _, fs := range images {
		wantLines(t, vm, fs.wanted("nbd")...)
	}
	vm.WaitOff(t, guestPatience)
}

// filesystemImage is an image that a guest mounts.
type filesystemImage struct {
	name, path string
	digest     string   // of its files, as digestAll prints it
	partitions []string // the numbers of a disk's partitions
	option     string   // a mount option that it needs
}

// disk returns the arguments of the recipe for qemu, for one of several disks.
func (fs filesystemImage) disk(t testing.TB, socket string) []string {
	t.Helper()
	args := qemuArgs(t, "disk", map[string]string{"SOCKET": socket, "EXPORT": fs.name})
	for i := range args {
		args[i] = strings.NewReplacer("node-name=disk", "node-name="+fs.name, "drive=disk", "drive="+fs.name).Replace(args[i])
	}
	return args
}

// nodes returns the devices to mount of the disk with that name.
func (fs filesystemImage) nodes(disk string) []string {
	if fs.partitions == nil {
		return []string{disk}
	}
	var nodes []string
	for _, p := range fs.partitions {
		nodes = append(nodes, disk+p)
	}
	return nodes
}

// wanted returns the lines that a guest prints.
func (fs filesystemImage) wanted(how string) (lines []string) {
	for range fs.nodes("") {
		if fs.option != "" {
			lines = append(lines, fmt.Sprintf("guest: %s %s is not mounted without %s", how, fs.name, fs.option))
		}
		lines = append(lines, fmt.Sprintf("guest: %s %s %s", how, fs.name, fs.digest))
	}
	return lines
}

// newFilesystems makes the images. Those of xfs and of the large ext4 are mostly holes.
func newFilesystems(t testing.TB) []filesystemImage {
	t.Helper()
	tree, digest := filesystemTree(t, 300_000)
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, "mksquashfs", tree, path("squashfs"), "-all-root", "-noappend", "-quiet", "-no-progress")
	must(t, "mkfs.ext4", "-q", "-d", tree, path("small"), "8M")
	must(t, "mkfs.ext4", "-q", "-d", tree, path("large"), "1G")
	must(t, "mkfs.ext4", "-q", "-d", tree, path("live"), "8M")
	must(t, "debugfs", "-w", "-R", "feature needs_recovery", path("live"))
	must(t, "mkfs.erofs", path("erofs"), tree)
	proto := writeFile(t, dir, "proto", []byte("/\n0 0\nd--755 0 0\na ---644 0 0 "+tree+"/a\nb ---644 0 0 "+tree+"/b\n$\n"))
	must(t, "mkfs.xfs", "-q", "-d", "file,size=320m,name="+path("xfs"), "-p", proto)
	images := []filesystemImage{newUnpadded(t, path("nopad"))}
	for _, name := range []string{"squashfs", "small", "large", "xfs", "erofs"} {
		images = append(images, filesystemImage{name: name, path: path(name), digest: digest})
	}
	parts := []string{path("squashfs"), path("small"), path("erofs")}
	if long() {
		parts = append(parts, path("xfs"), path("large"))
	}
	return append(images, filesystemImage{name: "live", path: path("live"), digest: digest, option: "noload"},
		newFilesystemDisk(t, path("disk"), digest, parts...))
}

// filesystemTree returns a directory with two files, and the output of digestAll for it.
func filesystemTree(t testing.TB, size int) (tree, digest string) {
	t.Helper()
	tree = t.TempDir()
	var entries []testimages.Entry
	for i, name := range []string{"a", "b"} {
		e := testimages.Entry{Path: name, Mode: 0o644, Data: testimages.Random(uint64(90+i), size)}
		writeFile(t, tree, name, e.Data)
		entries = append(entries, e)
	}
	return tree, treeDigest(entries)
}

// newUnpadded returns a squashfs that ends in the first half of a block of 1024 bytes.
func newUnpadded(t testing.TB, path string) filesystemImage {
	t.Helper()
	for size := 200_000; size < 201_000; size += 100 {
		tree, digest := filesystemTree(t, size)
		must(t, "mksquashfs", tree, path, "-nopad", "-all-root", "-noappend", "-quiet", "-no-progress")
		if past := fileSize(t, path) % 1024; past > 0 && past < 512 {
			return filesystemImage{name: "nopad", path: path, digest: digest}
		}
	}
	t.Fatal("no squashfs has the size that is wanted")
	return filesystemImage{}
}

// newFilesystemDisk assembles images into the partitions of a disk.
func newFilesystemDisk(t testing.TB, path, digest string, images ...string) filesystemImage {
	t.Helper()
	disk := filesystemImage{name: "disk", path: path, digest: digest}
	var parts []testimages.Part
	for i, image := range images {
		parts = append(parts, testimages.Part{Name: filepath.Base(image), Size: (fileSize(t, image)/mib + 1) * mib})
		disk.partitions = append(disk.partitions, fmt.Sprint("p", i+1))
	}
	if err := testimages.GPTDisk(path, 512, parts...); err != nil {
		t.Fatal(err)
	}
	for _, image := range images {
		index := filepath.Join(t.TempDir(), "part.caibx")
		cairn(t, "make", index, image)
		cairn(t, "assemble", index, path+"#"+filepath.Base(image))
		cairn(t, "verify", index, path+"#"+filepath.Base(image))
	}
	return disk
}

// filesystemsScript returns a script that mounts all disks, then attaches and mounts all exports, and prints
// their digests.
func filesystemsScript(t testing.TB, images []filesystemImage, port string) string {
	t.Helper()
	var script strings.Builder
	script.WriteString("ifconfig lo up\nifconfig eth0 10.0.2.15 up\nmkdir -p /mnt\n")
	for i, fs := range images {
		for _, node := range fs.nodes(fmt.Sprintf("/dev/vd%c", 'a'+i)) {
			node = strings.Replace(node, "p", "", 1)
			script.WriteString(fs.tell("disk", "mount -o ro "+node+" /mnt"))
			script.WriteString("umount /mnt\n")
		}
	}
	for _, fs := range images {
		lines := recipe(t, "attach", map[string]string{"EXPORT": fs.name, "HOST": "10.0.2.2", "PORT": port})
		script.WriteString(lines[0] + " || poweroff -f\n")
		if fs.partitions != nil {
			script.WriteString("blockdev --rereadpt /dev/nbd0\n")
		}
		for i, node := range fs.nodes("/dev/nbd0") {
			if i > 0 {
				script.WriteString("umount /mnt\n")
			}
			script.WriteString(fs.tell("nbd", strings.Replace(lines[1], "/dev/nbd0", node, 1)))
		}
		script.WriteString(shell(t, "detach", nil))
		script.WriteString("while [ \"$(cat /sys/block/nbd0/size)\" != 0 ]; do usleep 10000; done\n")
	}
	return script.String()
}

// tell returns commands that mount a device and print the digest of its files. They report whether the device can be
// mounted without its option.
func (fs filesystemImage) tell(how, mount string) string {
	print := fmt.Sprintf("echo \"guest: %s %s $(cd /mnt && %s)\"\n", how, fs.name, digestAll)
	if fs.option == "" {
		return mount + " || echo 'guest: failed: " + mount + "'\n" + print
	}
	refused := fmt.Sprintf("%s 2>/dev/null || echo 'guest: %s %s is not mounted without %s'\n", mount, how, fs.name, fs.option)
	return refused + strings.Replace(mount, "-o ro", "-o ro,"+fs.option, 1) + "\n" + print
}
