package crashtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/internal/test/vmtest"
	"cairn/testimages"
)

// bootTime limits a virtual machine's boot, guestTime all its tests.
const bootTime = 5 * time.Minute

func guestTime() time.Duration {
	if long() {
		return time.Hour
	}
	return 14 * time.Minute // less than a machine's lifetime
}

// TestVM runs TestGuest of this binary in virtual machines, one for each part. Each has one CPU, because several run at
// once. Go programs in them work as with two.
func TestVM(t *testing.T) {
	if testing.Short() {
		t.Skip("virtual machines take a minute")
	}
	t.Parallel()
	data := guestData(t)
	for part := range guestParts() {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			spare := filepath.Join(t.TempDir(), "spare")
			must(t, "truncate", "-s", "128M", spare)
			vm := vmtest.Boot(t, vmtest.Config{
				Modules: []string{"virtio_pci", "virtio_blk", "squashfs", "ext4", "xfs", "erofs", "loop", "dm-log-writes", "dm-flakey"},
				Files:   vmtest.Program(t, "dmsetup"),
				Init:    strings.ReplaceAll(guestInit, "PART", part) + passOn("CAIRN_LONG", "CAIRN_SEED") + guestRun,
				Args:    []string{"-drive", drive(data) + ",readonly=on", "-drive", drive(spare)},
			})
			vm.Wait(t, "guest: booted", bootTime)
			end := vm.Wait(t, "guest: status ", guestTime())
			t.Logf("%s", vm.Console())
			if end != "guest: status 0" {
				t.Error(end)
			}
		})
	}
}

func drive(file string) string {
	return "if=virtio,format=raw,file=" + strings.ReplaceAll(file, ",", ",,")
}

const (
	guestInit = `
echo guest: booted
dmesg -n 1 # what devices fail with is no news
mkdir -p /data /var /sbin
mount -t squashfs -o ro /dev/vda /data
mount -t tmpfs -o size=400m tmpfs /tmp
ifconfig lo 127.0.0.1 up
export GOMAXPROCS=2 CAIRN_GUEST='PART' PATH=/data/bin:/bin TMPDIR=/tmp
`
	guestRun = `
cd /tmp
/data/bin/crashtest.test -test.run='^TestGuest$' -test.v -test.timeout=2h
echo guest: status $?
`
)

// passOn returns a script that sets variables in the guest to their values here.
func passOn(names ...string) (script string) {
	for _, name := range names {
		if value := os.Getenv(name); value != "" {
			script += "export " + name + "='" + value + "'\n"
		}
	}
	return script
}

// guestData makes the guest's disk: the programs, and the releases with their stores.
func guestData(t testing.TB) string {
	t.Helper()
	mksquashfs := need.Tool(t, "mksquashfs")
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, args := range map[string][]string{
		"cairn":          {"build", "cairn/cmd/cairn"},
		"crashtest.test": {"test", "-c", "cairn/internal/test/crashtest"},
	} {
		if err := static(filepath.Join(bin, file), args...); err != nil {
			t.Fatal(err)
		}
	}
	for kind, write := range guestKinds(t) {
		r := releases{filepath.Join(dir, kind)}
		if err := r.make(100, write); err != nil {
			t.Fatal(err)
		}
		for _, name := range releaseNames() {
			r.publish(t, name)
		}
	}
	large := single(t, testimages.Random(4, 48*mib))
	if err := os.Rename(large.dir, filepath.Join(dir, "noise")); err != nil {
		t.Fatal(err)
	}
	cached := single(t, cachedImage())
	makeEmpty(t, cached)
	if err := os.Rename(cached.dir, filepath.Join(dir, "cached")); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "data.squashfs")
	must(t, mksquashfs, dir, image, "-noD", "-noF", "-noI", "-no-progress", "-quiet")
	return image
}

// makeEmpty makes the file systems for image caches.
func makeEmpty(t testing.TB, r releases) {
	t.Helper()
	for kind, args := range map[string][]string{"ext4": nil, "xfs": {"--unsupported"}} { // for a small file system
		file := r.image("empty-" + kind)
		must(t, "truncate", "-s", fmt.Sprint(cacheSize), file)
		must(t, "mkfs."+kind, append(args, "-q", file)...)
	}
}

// guestKinds returns the kinds of file systems with releases for the guest, small enough for an emulated machine.
func guestKinds(t testing.TB) map[string]func(string, []testimages.Entry) error {
	t.Helper()
	need.Tool(t, "mkfs.erofs")
	bootable := func(write func(string, []testimages.Entry) error) func(string, []testimages.Entry) error {
		return func(path string, tree []testimages.Entry) error { return write(path, append(tree, mountPoints()...)) }
	}
	return map[string]func(string, []testimages.Entry) error{
		"squashfs": bootable(makeSquashfs),
		"erofs":    bootable(makeErofs),
		"ext4": bootable(func(path string, tree []testimages.Entry) error {
			return testimages.Ext4(path, tree, 7*mib)
		}),
	}
}

// mountPoints returns the directories that a running system needs.
func mountPoints() (dirs []testimages.Entry) {
	for _, name := range []string{"data", "dev", "proc", "sys", "tmp"} {
		dirs = append(dirs, testimages.Entry{Path: name, Mode: os.ModeDir | 0o755})
	}
	return dirs
}
