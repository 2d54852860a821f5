package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/internal/test/vmtest"
)

// updateRig is a machine with two slots, a boot loader, and a repository that it follows. Each boot is a VM of its own,
// which ends when the guest reboots.
type updateRig struct {
	loader guestLoader
	dir    string // of the disk and what is in it
	repo   string
	disk   string
	server *httptest.Server
	vm     *vmtest.VM
}

// guestLoader is a boot loader of the guest.
type guestLoader struct {
	name   string // of the backend
	parts  []diskPart
	mounts string // a script
	slots  string // of the configuration
	verity bool   // the root file systems are mounted through dm-verity
}

// diskPart is a part of the disk.
type diskPart struct {
	name string
	kind string // as sfdisk has it
	size int    // MiB
}

var guestGRUB = guestLoader{
	name: "grub",
	parts: []diskPart{
		{"bios", "21686148-6449-6E6F-744E-656564454649", 1}, {"boot", "linux", 16}, {"kernel-a", "linux", 32}, {"root-a", "linux", 64},
		{"kernel-b", "linux", 32}, {"root-b", "linux", 64}, {"state", "linux", 16},
	},
	mounts: "mount -t ext4 /dev/vda2 /boot\nmount -t ext4 /dev/vda7 /var/lib/cairn",
	slots: `
[[slot]]
name = "a"
targets = { kernel = "PARTLABEL=kernel-a", root = "PARTLABEL=root-a" }

[[slot]]
name = "b"
targets = { kernel = "PARTLABEL=kernel-b", root = "PARTLABEL=root-b" }
`,
}

var guestSystemdBoot = guestLoader{
	name:   "systemd-boot",
	verity: true,
	parts:  []diskPart{{"esp", "uefi", 100}, {"root-a", "linux", 64}, {"root-b", "linux", 64}, {"state", "linux", 16}},
	mounts: "mount -t vfat /dev/vda1 /boot\nmount -t ext4 /dev/vda4 /var/lib/cairn",
	slots: `
[[slot]]
name = "a"
targets = { linux = "/boot/cairn/a/linux", initrd = "/boot/cairn/a/initrd", root = "PARTLABEL=root-a" }

[[slot]]
name = "b"
targets = { linux = "/boot/cairn/b/linux", initrd = "/boot/cairn/b/initrd", root = "PARTLABEL=root-b" }
`,
}

// guestInit is process 1 of the guest: it mounts the parts, and runs the lines that the test types.
const guestInit = `#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
MOUNTS
ifconfig lo up
ifconfig eth0 10.0.2.15 up
echo "guest: runs $(cat /etc/version) in slot $(sed 's/.*cairn.slot=//; s/ .*//' /proc/cmdline)"
while read -r line; do
  eval "$line"
  echo "guest: status $?"
done
`

const guestConfig = `channel = "SERVER/stable.channel"
name = "example.com/os"
compatible = "vm"
SLOTS
[boot]
backend = "BACKEND"

[health]
check = ["/bin/healthy"]
deadline = "1s"

[hooks]
reboot = ["/bin/reboot", "-f"]
`

// guestKind is how a release of the guest behaves.
type guestKind string

const (
	wellGuest  guestKind = "well"
	sickGuest  guestKind = "sick"  // its check of the health fails
	panicGuest guestKind = "panic" // its kernel finds no root file system
)

// newUpdateRig returns a machine that runs release 1 from slot a.
func newUpdateRig(t *testing.T, loader guestLoader) *updateRig {
	t.Helper()
	for _, tool := range []string{"grub-mkimage", "grub-editenv", "mkfs.ext4", "mksquashfs", "sfdisk", "mkfs.vfat", "mcopy", "dmsetup", "veritysetup"} {
		need.Tool(t, tool)
	}
	r := &updateRig{loader: loader, dir: t.TempDir()}
	r.repo = mkdir(t, filepath.Join(r.dir, "repo"))
	r.server = httptest.NewServer(http.FileServer(http.Dir(r.repo)))
	t.Cleanup(r.server.Close)
	cairn(t, "key", "generate", "example.com/os", filepath.Join(r.dir, "key"))
	r.publish(t, 1, wellGuest)
	r.makeDisk(t)
	return r
}

// publish publishes a release, and points the channel to it.
func (r *updateRig) publish(t *testing.T, serial int, kind guestKind) {
	t.Helper()
	root := r.makeRoot(t, serial, kind)
	table := ""
	if r.loader.verity {
		table = addVerity(t, root)
	}
	if kind == panicGuest {
		root = writeFile(t, r.dir, fmt.Sprint("root", serial), []byte(strings.Repeat("no file system ", 1<<16)))
	}
	args := []string{"release", "publish", r.repo, "--name", "example.com/os", "--version", fmt.Sprint("v", serial), "--serial", fmt.Sprint(serial),
		"--compatible", "vm", "--image", "root=" + root, "--key", filepath.Join(r.dir, "key"), "--channel", "stable"}
	tree := r.makeKernel(t, serial, table)
	if r.loader.name == "grub" {
		args = append(args, "--image", "kernel="+r.squashfs(t, tree, fmt.Sprint("kernel", serial))+",order=1")
	} else {
		args = append(args, "--image", "linux="+filepath.Join(tree, "vmlinuz")+",order=1,target=file,name=linux",
			"--image", "initrd="+filepath.Join(tree, "initrd")+",order=2,target=file,name=initrd")
	}
	cairn(t, args...)
}

// squashfs packs a tree.
func (r *updateRig) squashfs(t *testing.T, tree, name string) string {
	t.Helper()
	image := filepath.Join(r.dir, name)
	must(t, "mksquashfs", tree, image, "-all-root", "-quiet", "-no-progress", "-comp", "gzip", "-Xcompression-level", "1", "-noappend")
	return image
}

// addVerity adds a hash tree to an image, and returns the table for dmsetup, with DEVICE in the place of the device.
func addVerity(t *testing.T, image string) (table string) {
	t.Helper()
	const block, sector = 4096, 512
	size := (fileSize(t, image) + block - 1) / block * block
	must(t, "truncate", "-s", fmt.Sprint(size), image)
	salt := strings.Repeat("0", 64)
	out := must(t, "veritysetup", "format", image, image, "--hash-offset", fmt.Sprint(size), "--data-blocks", fmt.Sprint(size/block), "--salt", salt)
	found := regexp.MustCompile(`Root hash:\s+([0-9a-f]{64})`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("veritysetup: %s", out)
	}
	return fmt.Sprintf("0 %d verity 1 DEVICE DEVICE %d %d %d %d sha256 %s %s", size/sector, block, block, size/block, size/block+1, found[1], salt)
}

// makeKernel makes a directory with a kernel and an initramfs that finds the root file system of its slot. With a table for
// dm-verity, it mounts no other root than that of its release.
func (r *updateRig) makeKernel(t *testing.T, serial int, table string) string {
	t.Helper()
	tree := mkdir(t, filepath.Join(r.dir, fmt.Sprint("kernel-tree", serial)))
	files := vmtest.Program(t, "dmsetup")
	files["/verity"] = writeFile(t, tree, "verity", []byte(table))
	initramfs := vmtest.Initramfs(t, vmtest.Config{
		Modules: []string{"virtio_pci", "virtio_blk", "virtio_net", "squashfs", "ext4", "vfat", "nls_cp437", "nls_ascii", "nls_utf8", "dm-verity"},
		Files:   files,
		Init: `
set -- $(cat /proc/cmdline)
for word; do case $word in cairn.root=*) root=${word#*=} ;; esac; done
device=$root
if [ -s /verity ]; then
  dmsetup create root --readonly --table "$(sed "s#DEVICE#$root#g" /verity)"
  root=/dev/dm-0
fi
if mount -t squashfs -o ro $root /root; then
  mount -t devtmpfs dev /root/dev
  exec switch_root /root /init
fi
echo "guest: no root file system on $device"
reboot -f
`,
	})
	for from, to := range map[string]string{vmtest.Kernel(t): "vmlinuz", initramfs: "initrd"} {
		must(t, "cp", from, filepath.Join(tree, to))
	}
	return tree
}

// makeRoot makes the image for the role root: a small system with cairn.
func (r *updateRig) makeRoot(t *testing.T, serial int, kind guestKind) string {
	t.Helper()
	tree := mkdir(t, filepath.Join(r.dir, fmt.Sprint("root-tree", serial)))
	for _, dir := range []string{"bin", "boot", "dev", "proc", "sys", "tmp", "root", "etc/cairn/keys.d", "usr/lib/cairn", "var/lib/cairn"} {
		must(t, "mkdir", "-p", filepath.Join(tree, dir))
	}
	busybox := vmtest.Busybox(t)
	must(t, "cp", busybox, filepath.Join(tree, "bin/busybox"))
	for _, applet := range strings.Fields(must(t, busybox, "--list")) {
		if applet != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(tree, "bin", applet)); err != nil {
				t.Fatal(err)
			}
		}
	}
	files := vmtest.Program(t, "grub-editenv")
	files["/bin/cairn"] = need.Tool(t, "cairn")
	files["/etc/cairn/keys.d/os.pub"] = filepath.Join(r.dir, "key.pub")
	for to, from := range files {
		must(t, "install", "-D", "-m", "755", from, filepath.Join(tree, to))
	}
	health := "exit 0"
	if kind == sickGuest {
		health = "exit 1"
	}
	_, port, _ := strings.Cut(strings.TrimPrefix(r.server.URL, "http://"), ":")
	for name, text := range map[string]string{
		"init": strings.ReplaceAll(guestInit, "MOUNTS", r.loader.mounts), "bin/healthy": "#!/bin/sh\n" + health + "\n", "etc/version": fmt.Sprintln(serial),
		"etc/machine-id":           "0123456789abcdef0123456789abcdef\n",
		"usr/lib/cairn/build.toml": fmt.Sprintf("version = \"v%d\"\nserial = %d\n", serial, serial),
		"etc/cairn/update.toml":    strings.NewReplacer("SERVER", "http://10.0.2.2:"+port, "SLOTS", r.loader.slots, "BACKEND", r.loader.name).Replace(guestConfig),
	} {
		writeFile(t, tree, name, []byte(text))
		must(t, "chmod", "755", filepath.Join(tree, name))
	}
	return r.squashfs(t, tree, fmt.Sprint("root", serial))
}

// makeDisk makes the disk, as an installer would: the boot loader, and release 1 in slot a.
func (r *updateRig) makeDisk(t *testing.T) {
	t.Helper()
	r.disk = filepath.Join(r.dir, "disk")
	table, total := "label: gpt\n", 2
	for _, p := range r.loader.parts {
		table += fmt.Sprintf("size=%dMiB, type=%s, name=%s\n", p.size, p.kind, p.name)
		total += p.size
	}
	must(t, "truncate", "-s", fmt.Sprint(total, "M"), r.disk)
	if ran := runInput(t, table, "sfdisk", "--quiet", r.disk); ran.status != 0 {
		t.Fatalf("sfdisk: %s", ran.stderr)
	}
	r.writeExt4(t, "state", mkdir(t, filepath.Join(r.dir, "state")))
	r.writePart(t, "root-a", readFile(t, filepath.Join(r.dir, "root1")))
	if r.loader.name == "grub" {
		boot := mkdir(t, filepath.Join(r.dir, "boot"))
		mkdir(t, filepath.Join(boot, "grub"))
		writeFile(t, filepath.Join(boot, "grub"), "grub.cfg", []byte("serial\nterminal_output serial\n"+r.grubConfig(t)))
		must(t, "grub-editenv", filepath.Join(boot, "grub/grubenv"), "create")
		r.writeExt4(t, "boot", boot)
		r.writePart(t, "kernel-a", readFile(t, filepath.Join(r.dir, "kernel1")))
		r.installGRUB(t)
		return
	}
	r.installSystemdBoot(t)
}

// writeExt4 writes a file system of 16 MiB with the files of a tree onto a part.
func (r *updateRig) writeExt4(t *testing.T, name, tree string) {
	t.Helper()
	image := filepath.Join(r.dir, name+".ext4")
	must(t, "truncate", "-s", "16M", image)
	must(t, "mkfs.ext4", "-q", "-d", tree, "-E", "root_owner=0:0", image)
	r.writePart(t, name, readFile(t, image))
}

// installSystemdBoot makes the ESP: the loader, a template for each slot, the entry of slot a and its kernel.
func (r *updateRig) installSystemdBoot(t *testing.T) {
	t.Helper()
	esp := mkdir(t, filepath.Join(r.dir, "esp"))
	for _, dir := range []string{"EFI/BOOT", "loader/entries", "loader/cairn", "cairn/a", "cairn/b"} {
		must(t, "mkdir", "-p", filepath.Join(esp, dir))
	}
	must(t, "cp", "/usr/lib/systemd/boot/efi/systemd-bootx64.efi", filepath.Join(esp, "EFI/BOOT/BOOTX64.EFI"))
	writeFile(t, esp, "loader/loader.conf", []byte("timeout 0\n"))
	for n, slot := range []string{"a", "b"} {
		entry := strings.NewReplacer("root=PARTLABEL=root-b ro", fmt.Sprintf("cairn.root=/dev/vda%d %s panic=1", 2+n, vmtest.KernelArgs),
			"/b/", "/"+slot+"/", "slot=b", "slot="+slot, "Slot b", "Slot "+slot).Replace(docFile(t, "loader/cairn/b.conf"))
		writeFile(t, esp, "loader/cairn/"+slot+".conf", []byte(entry))
		if slot == "a" {
			writeFile(t, esp, "loader/entries/cairn-a.conf", []byte(entry+"sort-key cairn\nversion 1\n"))
		}
	}
	for from, to := range map[string]string{"vmlinuz": "linux", "initrd": "initrd"} {
		must(t, "cp", filepath.Join(r.dir, "kernel-tree1", from), filepath.Join(esp, "cairn/a", to))
	}
	image := filepath.Join(r.dir, "esp.fat")
	must(t, "truncate", "-s", "100M", image)
	must(t, "mkfs.vfat", "-F", "32", image)
	must(t, "sh", "-c", `mcopy -s -i "$1" "$2"/* ::/`, "mcopy", image, esp)
	r.writePart(t, "esp", readFile(t, image))
	must(t, "cp", "/usr/share/OVMF/OVMF_VARS_4M.fd", filepath.Join(r.dir, "vars"))
}

// offset returns where a part begins on the disk, in bytes.
func (r *updateRig) offset(name string) int64 {
	at := int64(1)
	for _, p := range r.loader.parts {
		if p.name == name {
			return at << 20
		}
		at += int64(p.size)
	}
	panic("no part " + name)
}

func (r *updateRig) writePart(t *testing.T, name string, data []byte) {
	t.Helper()
	r.write(t, r.offset(name), data)
}

func (r *updateRig) write(t *testing.T, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(r.disk, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(data, at)
		_ = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// installGRUB puts GRUB into the first sector and the part bios, as grub-bios-setup does. Each has the sector of what
// follows it.
func (r *updateRig) installGRUB(t *testing.T) {
	t.Helper()
	const sector, nextSector, blockList = 512, 0x5c, 512 - 12
	core := filepath.Join(r.dir, "core.img")
	must(t, "grub-mkimage", "-O", "i386-pc", "-p", "(hd0,gpt2)/grub", "-o", core, "biosdisk", "part_gpt", "ext2", "squash4",
		"loadenv", "test", "eval", "echo", "serial", "terminal", "linux", "normal", "configfile", "reboot", "sleep", "minicmd", "regexp")
	first := readFile(t, "/usr/lib/grub/i386-pc/boot.img")
	disk := readFile(t, r.disk)[:sector]
	copy(first[0x1b8:], disk[0x1b8:]) // the table of partitions
	at := uint64(r.offset("bios") / sector)
	binary.LittleEndian.PutUint64(first[nextSector:], at)
	image := readFile(t, core)
	binary.LittleEndian.PutUint64(image[blockList:], at+1)
	r.write(t, 0, first)
	r.writePart(t, "bios", image)
}

// grubConfig returns the configuration of GRUB in the documentation, for this disk.
func (r *updateRig) grubConfig(t *testing.T) string {
	t.Helper()
	return strings.ReplaceAll(docFile(t, "grub.cfg"), "quiet", vmtest.KernelArgs+" panic=1")
}

// docFile returns a file in the documentation.
func docFile(t *testing.T, name string) string {
	t.Helper()
	pattern := regexp.MustCompile("(?s)<!-- file: " + regexp.QuoteMeta(name) + " -->\n```\n(.*?\n)```")
	found := pattern.FindStringSubmatch(string(readFile(t, "../../../docs/agent.md")))
	if found == nil {
		t.Fatalf("docs/agent.md has no %s", name)
	}
	return found[1]
}

// boot boots the machine, and returns the line about what runs.
func (r *updateRig) boot(t *testing.T) string {
	t.Helper()
	firmware := []string{}
	if r.loader.name == "systemd-boot" {
		firmware = []string{"-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
			"-drive", "if=pflash,format=raw,file=" + filepath.Join(r.dir, "vars")}
	}
	r.vm = vmtest.Boot(t, vmtest.Config{
		Firmware: firmware,
		Args: []string{"-drive", "if=virtio,format=raw,file=" + r.disk,
			"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="},
	})
	return r.vm.Wait(t, "guest: ", guestPatience)
}

// do runs a line in the guest, and returns its exit status.
func (r *updateRig) do(t *testing.T, line string) string {
	t.Helper()
	r.vm.Type(t, line)
	return strings.TrimPrefix(r.vm.Wait(t, "guest: status", guestPatience), "guest: status ")
}

// must runs lines in the guest that must succeed.
func (r *updateRig) must(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if status := r.do(t, line); status != "0" {
			t.Fatalf("%s: status %s; the console:\n%s", line, status, r.vm.Console())
		}
	}
}

// reboot has the guest reboot by a command, and boots it again.
func (r *updateRig) reboot(t *testing.T, line string) string {
	t.Helper()
	r.vm.Type(t, line)
	r.vm.WaitOff(t, guestPatience)
	return r.boot(t)
}

// want fails unless a line says that a release runs in a slot.
func (r *updateRig) want(t *testing.T, line string, serial int, slot string) {
	t.Helper()
	if want := fmt.Sprintf("guest: runs %d in slot %s", serial, slot); !strings.Contains(line, want) {
		t.Fatalf("%q, want %q; the console:\n%s", line, want, r.vm.Console())
	}
}

// TestVMUpdate: a machine with a real boot loader goes to a new release, and stays there. In a long test it also falls back
// from one that does not boot and one that is not healthy, and goes on to the next.
func TestVMUpdate(t *testing.T) {
	t.Parallel()
	for _, loader := range []guestLoader{guestGRUB, guestSystemdBoot} {
		t.Run(loader.name, func(t *testing.T) {
			r := newUpdateRig(t, loader)
			r.want(t, r.boot(t), 1, "a")
			if loader.verity {
				r.must(t, "grep -q '^/dev/dm-0 / squashfs' /proc/mounts")
			}
			r.publish(t, 2, wellGuest)
			r.must(t, "cairn update stage", "cairn update status", "cairn update switch")
			r.want(t, r.reboot(t, "reboot -f"), 2, "b")
			r.must(t, "cairn update confirm", "cairn update status", "cairn update")
			if long() {
				r.fallBack(t)
			}
		})
	}
}

// fallBack goes on from release 2, which is confirmed in slot b.
func (r *updateRig) fallBack(t *testing.T) {
	t.Helper()
	r.publish(t, 3, panicGuest)
	r.must(t, "cairn update")
	line := r.reboot(t, "reboot -f")
	for range 3 { // the tries
		if !strings.Contains(line, "no root file system on /dev/vda") {
			t.Fatalf("%q; the console:\n%s", line, r.vm.Console())
		}
		r.vm.WaitOff(t, guestPatience)
		line = r.boot(t)
	}
	r.want(t, line, 2, "b")
	r.must(t, "cairn update", "cairn update status | grep 'failed: release v3.*did not boot'")
	r.publish(t, 4, sickGuest)
	r.must(t, "cairn update")
	r.want(t, r.reboot(t, "reboot -f"), 4, "a")
	r.want(t, r.reboot(t, "cairn update confirm"), 2, "b")
	r.must(t, "cairn update", "cairn update status | grep 'failed: release v4.*not healthy'")
	r.publish(t, 5, wellGuest)
	r.must(t, "cairn update")
	r.want(t, r.reboot(t, "reboot -f"), 5, "a")
	r.must(t, "cairn update")
	r.want(t, r.reboot(t, "cairn update rollback && reboot -f"), 2, "b")
	r.must(t, "cairn update confirm", "cairn update", "cairn update status | grep 'failed: release v5.*rolled back'")
}

// TestVMUpdateCuts: the machine loses its power at random moments of a hundred boots, while it goes from release to release.
// It always boots a release that is confirmed or on trial, and ends on the newest one.
func TestVMUpdateCuts(t *testing.T) {
	if !long() {
		t.Skip("a hundred boots take a quarter of an hour (CAIRN_LONG=1)")
	}
	t.Parallel()
	const boots = 100
	r := newUpdateRig(t, guestGRUB)
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // repeatable
	newest, confirmed, cuts := 2, 1, 0
	r.publish(t, newest, wellGuest)
	runs := regexp.MustCompile("guest: runs ([0-9]+) in slot ([ab])")
	for n := range boots {
		line := r.boot(t)
		found := runs.FindStringSubmatch(line)
		if found == nil {
			t.Fatalf("boot %d: %q; the console:\n%s", n, line, r.vm.Console())
		}
		now, err := strconv.Atoi(found[1])
		if err != nil || now != confirmed && now != newest {
			t.Fatalf("boot %d: release %d runs, %d is confirmed and %d on trial: %v", n, now, confirmed, newest, err)
		}
		if now == newest && random.IntN(2) == 0 { // else confirm is cut, perhaps
			r.must(t, "cairn update confirm")
			confirmed, newest = now, newest+1
			r.publish(t, newest, wellGuest)
		}
		r.vm.Type(t, "cairn update confirm; cairn update; cairn update status --json | grep situation; reboot -f")
		time.Sleep(time.Duration(random.Int64N(int64(4 * time.Second))))
		r.vm.Stop()
		if !strings.Contains(r.vm.Console(), `"situation":`) { // the typed line has no quotes
			cuts++
		}
		if now == newest && strings.Contains(r.vm.Console(), "confirmed; it stays") {
			confirmed, newest = now, newest+1
			r.publish(t, newest, wellGuest)
		}
	}
	t.Logf("%d boots, %d of them cut during a job; release %d is confirmed", boots, cuts, confirmed)
	if cuts < boots/4 || confirmed < 3 {
		t.Error("that proves little")
	}
}
