package e2e

import (
	"bytes"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/internal/test/vmtest"
)

// TestVMNBDClient: in a guest, Debian's nbd-client attaches images over TCP, also with TLS, by the recipes of
// docs/vms.md. All data is read correctly. A chunk that the store has lost fails one file until it is restored.
// Devices are detached. Finally the guest switches to an attached root.
func TestVMNBDClient(t *testing.T) {
	t.Parallel()
	g := guests(t)
	store := filepath.Join(t.TempDir(), "images")
	must(t, "cp", "-r", g.dir, store)
	lost := chunkFile(filepath.Join(store, "default.castr"), chunkOf(t, filepath.Join(store, "data.caibx"), g.ext4, guestPart(systemParts)).Digest)
	must(t, "mv", lost, lost+".lost")
	web := newNginx(t, store)
	server := serve(t, 2, web.url+"/root.caibx", web.url+"/data.caibx", "--listen", "tcp:127.0.0.1:0", "-v")
	certs := certificates(t, "--key-type", "ecdsa", "--curve", "secp256r1")
	secure := serve(t, 1, web.url+"/root.caibx", "--listen", "tcp:127.0.0.1:0", "--tls-cert", filepath.Join(certs, "server-cert.pem"),
		"--tls-key", filepath.Join(certs, "server-key.pem"), "--tls-client-ca", filepath.Join(certs, "ca-cert.pem"))

	files := vmtest.Program(t, "nbd-client")
	for _, name := range []string{"ca-cert.pem", "client-cert.pem", "client-key.pem"} {
		files["/certs/"+name] = filepath.Join(certs, name)
	}
	vm := vmtest.Boot(t, vmtest.Config{
		Modules: []string{"virtio_pci", "virtio_net", "nbd", "squashfs", "ext4"},
		Files:   files,
		Init:    g.nbdScript(t, port(t, server.uris[0]), port(t, secure.uris[0])),
		Args:    []string{"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="},
	})
	vm.Wait(t, "guest: attached", guestPatience)
	if n := strings.Count(server.stderr.String(), "msg=connected"); n != 4 {
		t.Errorf("nbd-client has made %d connections, want 4:\n%s", n, server.stderr)
	}
	wantLines(t, vm, "guest: read-only 1, block size 512", "guest: squashfs "+g.digest, "guest: detached",
		"guest: lost: Input/output error", "guest: others failed 0")
	must(t, "mv", lost+".lost", lost)
	vm.Type(t, "healed")
	wantLines(t, vm, "guest: ext4 "+g.dataDigest, "guest: detached", "guest: secure "+g.digest, "guest: detached")
	wantLines(t, vm, "guest: running from its root")
	g.wantSystem(t, vm, 0)
}

// nbdScript returns the guest's script.
func (g guestImages) nbdScript(t testing.TB, open, secure string) string {
	t.Helper()
	values := func(name, port string) map[string]string {
		return map[string]string{"HOST": "10.0.2.2", "PORT": port, "EXPORT": pinned(t, filepath.Join(g.dir, name+".caibx")),
			"CERTS": "/certs", "NAME": "localhost"}
	}
	detached := `
for try in $(seq 100); do [ "$(cat /sys/block/nbd0/size)" = 0 ] && break; usleep 100000; done
[ "$(cat /sys/block/nbd0/size)" = 0 ] && echo guest: detached
`
	second := strings.NewReplacer("/dev/nbd0", "/dev/nbd1", "nbd0/", "nbd1/")
	return `
ifconfig lo up
ifconfig eth0 10.0.2.15 up
mkdir -p /mnt
` + shell(t, "attach", values("root", open)) + `
echo guest: attached
echo "guest: read-only $(cat /sys/block/nbd0/ro), block size $(cat /sys/block/nbd0/queue/logical_block_size)"
echo "guest: squashfs $(cd /mnt && ` + digestAll + `)"
` + shell(t, "detach", nil) + detached +
		shell(t, "attach", values("data", open)) + `
cat /mnt/parts/3 2>&1 >/dev/null | sed 's/.*: /guest: lost: /'
echo "guest: others failed $(find /mnt -type f | grep -v parts/3 | xargs cat 2>&1 >/dev/null | grep -c rror)"
read word
echo "guest: ext4 $(cd /mnt && ` + digestAll + `)"
dmesg -c >/tmp/messages # the error that was wanted
` + shell(t, "detach", nil) + detached +
		shell(t, "attach-tls", values("root", secure)) + `
mount -t squashfs -o ro /dev/nbd1 /mnt
echo "guest: secure $(cd /mnt && ` + digestAll + `)"
` + second.Replace(shell(t, "detach", nil)+detached) +
		"mkdir -p /root\n" + shellUntilSwitch(t, values("root", open))
}

// shellUntilSwitch returns the recipe "root", with the additions that guestSystem needs.
func shellUntilSwitch(t testing.TB, values map[string]string) string {
	t.Helper()
	script := shell(t, "root", values)
	return strings.Replace(script, "exec switch_root", "mount -t devtmpfs dev /root/dev\nexec switch_root", 1)
}

// chunkOf returns a chunk that only data, somewhere in the image, needs.
func chunkOf(t testing.TB, index, image string, data []byte) blob.Chunk {
	t.Helper()
	middle := data[len(data)/2:]
	at := bytes.Index(readFile(t, image), middle[:4096])
	if at < 0 {
		t.Fatalf("%s does not hold the data", image)
	}
	x := readIndex(t, index)
	for i := range x.Len() {
		if c := x.At(i); c.Offset <= int64(at) && int64(at) < c.Offset+c.Size {
			return c
		}
	}
	t.Fatalf("%s has no chunk at %d", index, at)
	return blob.Chunk{}
}

// port returns the port of an export's URI.
func port(t testing.TB, uri string) string {
	t.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	return u.Port()
}
