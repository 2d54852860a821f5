package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/blob"
	"cairn/blob/profile"
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
	took := awaitLogin(t, index, kind, socket)
	sent := web.sent(t)
	t.Logf("a Debian on %s of %d MiB had its login prompt after %v and %d chunks of %d MiB in all",
		kind, fileSize(t, image)/mib, took, sent.chunks, sent.bytes/mib)
	if sent.chunks == 0 || sent.bytes > fileSize(t, image)/2 {
		t.Errorf("it has fetched %+v", sent)
	}
}

// awaitLogin boots a Debian from a socket of cairn serve. It returns the time until the login prompt.
func awaitLogin(t *testing.T, index, kind, socket string) time.Duration {
	t.Helper()
	values := map[string]string{"SOCKET": socket, "EXPORT": pinned(t, index)}
	began := time.Now()
	vm := vmtest.Boot(t, vmtest.Config{
		Modules: []string{"virtio_pci", "virtio_blk", "squashfs", "ext4", "overlay"},
		Init:    debianInit(t, kind),
		Args:    append(qemuArgs(t, "disk", values), "-m", "1024"),
	})
	vm.Wait(t, "guest: mounted", guestPatience)
	vm.Wait(t, "Debian GNU/Linux", debianPatience) // printed by getty before the prompt, which ends no line
	return time.Since(began).Round(time.Second)
}

// TestVMDebianSeed: a Debian boots the new release from a web server, with the last release as a seed, with and without
// a delta. The server sends no more than the chunks that the boot reads and the seed lacks, or with the delta, less.
//
//	CAIRN_LONG=1 CAIRN_IMAGES=DIR go test -v -timeout 90m -run TestVMDebianSeed ./internal/test/e2e
//
// DIR has the releases a.ext4 and b.ext4.
func TestVMDebianSeed(t *testing.T) {
	need.Tool(t, "qemu-system-x86_64")
	images := os.Getenv("CAIRN_IMAGES")
	if os.Getenv("CAIRN_LONG") == "" || images == "" {
		t.Skip("CAIRN_LONG and CAIRN_IMAGES are not set")
	}
	r := withDelta(t, pair{"ext4", filepath.Join(images, "a.ext4"), filepath.Join(images, "b.ext4")})
	url, sent := newDeltaServer(t, r.dir, true)
	for _, delta := range []bool{false, true} {
		t.Run(fmt.Sprintf("delta %v", delta), func(t *testing.T) { r.bootWithSeed(t, url, sent, delta) })
	}
}

// bootWithSeed boots release b, and checks what the web server sends.
func (r release) bootWithSeed(t *testing.T, url string, sent func() wire, delta bool) {
	socket, record := filepath.Join(socketDir(t), "socket"), filepath.Join(t.TempDir(), "boot.caprf")
	args := []string{url + "/b.caibx", "--listen", "unix:" + socket, "--seed", r.a + "=" + r.index("a"),
		"--record", record, "--record-time", "0"}
	message := deltaIsUsed
	if !delta {
		args, message = append(args, "--no-delta"), "a seed is ready"
	}
	s := serve(t, 1, args...)
	s.stderr.await(t, message)
	took := awaitLogin(t, r.index("b"), "ext4", socket)
	got := sent()
	s.signal(t, os.Interrupt)
	s.wantStopped(t)
	chunks, lacking := r.bootDifference(t, record)
	t.Logf("a login prompt after %v. The boot reads %d chunks that the seed lacks, of %d bytes in the store. "+
		"The server has sent %d bytes in %d answers, %d of them of the delta", took, chunks, lacking, got.bytes, got.requests, got.delta)
	most := lacking
	if !delta {
		most *= 2 // neighbours and read-ahead
	}
	if got.bytes > most {
		t.Errorf("%d bytes were sent, want at most %d", got.bytes, most)
	}
}

// bootDifference returns how many chunks a recorded boot of release b reads that release a lacks, and their bytes in the
// store.
func (r release) bootDifference(t testing.TB, record string) (chunks int, stored int64) {
	t.Helper()
	p, err := profile.Decode(bytes.NewReader(readFile(t, record)))
	if err != nil {
		t.Fatal(err)
	}
	x := readIndex(t, r.index("b"))
	held := blob.NewTable(readIndex(t, r.index("a")))
	for _, i := range p.Plan(x).Chunks {
		if c := x.At(i); !x.IsZero(i) && held.Find(c.Digest) < 0 {
			chunks++
			stored += r.stored(t, c)
		}
	}
	return chunks, stored
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
