package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/internal/test/vmtest"
)

// debianPatience limits the boot of an emulated machine on a busy host.
const debianPatience = 14 * time.Minute

// TestVMDebian: a real Debian boots from a web server, with an empty cache, up to its login prompt. The image
// is the small one that .ci/install made, or one of testimages/debian in the directory CAIRN_IMAGES.
func TestVMDebian(t *testing.T) {
	t.Parallel()
	need.Tool(t, "qemu-system-x86_64")
	images, kinds := os.Getenv("CAIRN_IMAGES"), []string{"squashfs", "ext4"}
	if images == "" {
		images, kinds = "../../../.cache/debian", []string{"squashfs"}
		if _, err := os.Stat(filepath.Join(images, "a.squashfs")); err != nil {
			need.Missing(t, "there is no Debian in .cache/debian")
		}
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) { bootDebian(t, filepath.Join(images, "a."+kind), kind) })
	}
}

func bootDebian(t *testing.T, image, kind string) {
	dir := t.TempDir()
	index := filepath.Join(dir, "debian.caibx")
	cairn(t, "make", index, image)
	web := newNginx(t, dir)
	socket := filepath.Join(socketDir(t), "socket")
	serve(t, 1, web.url+"/debian.caibx", "--listen", "unix:"+socket)
	values := map[string]string{"SOCKET": socket, "EXPORT": pinned(t, index)}
	began := time.Now()
	vm := vmtest.Boot(t, vmtest.Config{
		Modules: []string{"virtio_pci", "virtio_blk", "squashfs", "ext4", "overlay"},
		Init:    debianInit(t, kind),
		Args:    append(qemuArgs(t, "disk", values), "-m", "1024"),
	})
	vm.Wait(t, "guest: mounted", guestPatience)
	vm.Wait(t, "Debian GNU/Linux", debianPatience) // printed by getty before the prompt, which ends no line
	took := time.Since(began).Round(time.Second)
	sent := web.sent(t)
	t.Logf("a Debian on %s of %d MiB had its login prompt after %v and %d chunks of %d MiB in all",
		kind, fileSize(t, image)/mib, took, sent.chunks, sent.bytes/mib)
	if sent.chunks == 0 || sent.bytes > fileSize(t, image)/2 {
		t.Errorf("it has fetched %+v", sent)
	}
}

// debianInit starts systemd, on a root with an overlay in memory.
func debianInit(t testing.TB, kind string) string {
	t.Helper()
	return `
mkdir -p /lower /over
mount -t ` + kind + ` -o ro /dev/vda /lower || exec poweroff -f
` + shell(t, "writable-root", nil) + `
echo guest: mounted
mount -t devtmpfs dev /root/dev
exec switch_root /root /lib/systemd/systemd
`
}
