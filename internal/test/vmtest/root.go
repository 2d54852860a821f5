package vmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/test/need"
)

// bootTime limits a boot. A boot takes some ten seconds on an idle machine.
const bootTime = 5 * time.Minute

// RootImage makes a squashfs image of a small system that prints word from one of its files and powers off. It
// returns the image's path.
func RootImage(t testing.TB, word string) string {
	t.Helper()
	mksquashfs := need.Tool(t, "mksquashfs")
	tree := t.TempDir()
	for _, dir := range []string{"bin", "etc", "dev", "proc", "sys"} {
		if err := os.Mkdir(filepath.Join(tree, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const init = "#!/bin/busybox sh\n/bin/busybox cat /etc/motd\n/bin/busybox poweroff -f\n"
	for name, data := range map[string][]byte{
		"bin/busybox": readFile(t, Busybox(t)),
		"etc/motd":    []byte(word + "\n"),
		"init":        []byte(init),
	} {
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(t.TempDir(), "root.squashfs")
	cmd := exec.CommandContext(t.Context(), mksquashfs, tree, image, "-all-root", "-quiet", "-no-progress")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	return image
}

// BootRoot boots a VM whose disk is the NBD export at uri, in qemu's notation (nbd+unix:///NAME?socket=PATH).
// Its root is the squashfs image in the export, such as RootImage's. BootRoot returns when the VM has printed
// want and powered off.
func BootRoot(t testing.TB, uri, want string) {
	t.Helper()
	file := strings.ReplaceAll(uri, ",", ",,") // a comma ends the value
	vm := Boot(t, Config{
		Modules: []string{"virtio_pci", "virtio_blk", "squashfs"},
		Init: `
mount -t squashfs -o ro /dev/vda /root
mount -t devtmpfs dev /root/dev
exec switch_root /root /init
`,
		Args: []string{"-drive", "file=" + file + ",format=raw,if=virtio,readonly=on"},
	})
	vm.Wait(t, want, bootTime)
	vm.WaitOff(t, bootTime)
}
