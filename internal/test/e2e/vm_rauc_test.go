package e2e

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/test/need"
	"cairn/internal/test/vmtest"
)

// raucInstallation is an installation in a guest.
type raucInstallation struct {
	rauc   int    // which of the guest's RAUCs
	format string // of the bundle
	desync bool
}

// raucInstallations returns installations in which each RAUC, format and mode meets each of the others, and all of them
// in a long test.
func raucInstallations(raucs int) (all []raucInstallation) {
	for rauc := range raucs {
		for f, format := range []string{"verity", "crypt"} {
			for m, desync := range []bool{false, true} {
				if long() || (rauc+f+m)%2 == 0 {
					all = append(all, raucInstallation{rauc, format, desync})
				}
			}
		}
	}
	return all
}

// TestVMRAUC: in a guest, whose kernel has dm-verity, dm-crypt and nbd, RAUC installs bundles of the formats verity and
// crypt by URL, with cairn as casync and as desync. The store is beside the bundle. Debian 13's RAUC streams the bundle.
func TestVMRAUC(t *testing.T) {
	t.Parallel()
	raucs := needRAUC(t)
	p, ours := small(t), dropIns(t, raucs[0])
	verity := newFormatBundle(t, ours, "verity", false, p.b)
	dir := t.TempDir()
	for format, b := range map[string]raucBundle{"verity": verity, "crypt": verity.encrypted(t)} {
		must(t, "mv", b.dir, filepath.Join(dir, format))
	}
	server, sent := newDeltaServer(t, dir, true)
	disk := newSlots(t, release{pair: p}, false)
	want := disk.parts(t, p.b)
	want.image = sum(t, p.b, 0, fileSize(t, p.b))

	vm := vmtest.Boot(t, vmtest.Config{
		Modules: []string{"virtio_pci", "virtio_blk", "virtio_net", "nbd", "loop", "squashfs", "dm-verity", "dm-crypt"},
		Files:   raucGuestFiles(t, raucs),
		Init: strings.NewReplacer("IMAGE", fmt.Sprint(fileSize(t, p.b)),
			"SERVER", "http://10.0.2.2:"+port(t, server)).Replace(raucGuest),
		Args: []string{"-drive", "if=virtio,format=raw,file=" + disk.disk,
			"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="},
	})
	sent()
	wantLines(t, vm, "guest: booted")
	all := raucInstallations(len(raucs))
	for _, i := range all {
		vm.Type(t, fmt.Sprintf("%d %s %v", i.rauc, i.format, i.desync))
		wantLines(t, vm, fmt.Sprintf("guest: installed, boots B, slot %x", want.image))
	}
	vm.Type(t, "")
	vm.WaitOff(t, guestPatience)
	if disk.parts(t, p.b) != want {
		t.Error("something else on the disk has changed")
	}
	const bundle = 128 << 10 // RAUC reads a streamed one several times
	r := publish(t, p)
	limit := r.difference(t).plus(r.twoChunks(t)).bytes + bundle
	if got := sent().bytes; got > limit*int64(len(all)) {
		t.Errorf("%d bytes were downloaded, want at most %d for each of %d installations", got, limit, len(all))
	}
}

// raucGuestFiles returns the files of a guest with RAUCs.
func raucGuestFiles(t testing.TB, raucs []string) map[string]string {
	t.Helper()
	files := vmtest.Program(t, "dbus-daemon")
	for i, rauc := range raucs {
		maps.Copy(files, vmtest.Program(t, rauc))
		files[fmt.Sprintf("/raucs/%d/rauc", i)] = rauc
	}
	program := need.Tool(t, "cairn")
	if raceDetector { // it needs libraries then
		program = filepath.Join(t.TempDir(), "cairn")
		if err := build(program, false); err != nil {
			t.Fatal(err)
		}
	}
	files["/bin/casync"], files["/bin/desync"] = program, program
	for _, name := range []string{"key.pem", "cert.pem"} {
		files["/rauc/"+name] = raucFile(t, name)
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		"/etc/passwd":       "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n", // RAUC streams as nobody
		"/etc/group":        "root:x:0:\nnogroup:x:65534:\n",
		"/rauc/boot.sh":     fmt.Sprintf(raucBackend, "/rauc"),
		"/rauc/system.conf": raucConfig("/rauc", "/rauc", "/dev/vda2", "/dev/vda3", "use-desync=MODE"),
		"/rauc/bus.conf":    busConfig("unix:path=/run/bus"),
	} {
		files[name] = writeFile(t, dir, strings.ReplaceAll(name, "/", "_"), []byte(text))
	}
	return files
}

// raucGuest is the guest's script. It reads lines with the number of a RAUC, the format of the bundle, and use-desync.
const raucGuest = `
mkdir -p /run /var/lib /var/tmp /rauc/mnt
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 up
export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/bus G_MESSAGES_DEBUG=rauc
dbus-daemon --config-file=/rauc/bus.conf --fork
echo guest: booted
while read rauc format mode && [ "$rauc" ]; do
  echo A >/rauc/primary
  head -c IMAGE /dev/urandom >/dev/vda3
  sed "s/MODE/$mode/" /rauc/system.conf >/tmp/system.conf
  : >/tmp/log
  rauc=/raucs/$rauc/rauc
  $rauc --conf /tmp/system.conf service --override-boot-slot=A >>/tmp/log 2>&1 &
  until grep -q acquired /tmp/log; do usleep 100000; done
  result=failed
  $rauc install SERVER/$format/b.raucb && result=installed
  kill $!
  wait
  [ $result = installed ] || cat /tmp/log
  echo "guest: $result, boots $(cat /rauc/primary), slot $(head -c IMAGE /dev/vda3 | sha256sum)"
done
`
