package crashtest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/blob"
)

// guestRoots updates from the running root, @root, of each kind of file system.
func guestRoots(t *testing.T) {
	for _, c := range []struct {
		name, kind string
		writable   bool
	}{
		{"squashfs", "squashfs", false},
		{"erofs", "erofs", false},
		{"read-only ext4", "ext4", false},
		{"ext4 that was written", "ext4", true},
	} {
		t.Run(c.name, func(t *testing.T) { testRoot(t, guestReleases(c.kind), c.kind, c.writable) })
	}
}

func testRoot(t *testing.T, r releases, kind string, writable bool) {
	size := (max(r.size(t, "a"), r.size(t, "b"))/mib + 1) * mib
	a, b := filled(t, r.image("a"), size), newLoop(t, size)
	root := runFrom(t, a, kind, writable)
	held := r.read(t, "a")
	if writable {
		held = scanned(t, a)
	}
	args := []string{root, "/data/bin/cairn", "assemble", "--json", r.index("b"), b, "--state", "", "--seed", "@root"}
	var got assembled
	if err := json.Unmarshal([]byte(must(t, "chroot", args...)), &got); err != nil {
		t.Fatal(err)
	}
	difference, two := r.difference(t, held, "b")
	t.Logf("downloaded %d bytes of %d", got.Bytes, difference)
	if got.Bytes > difference*1005/1000+two {
		t.Errorf("downloaded %d bytes, want at most %d and two chunks", got.Bytes, difference)
	}
	wantImage(t, b, r.image("b"))
	run(t, "chroot", root, "/data/bin/cairn", "assemble", r.index("b"), a).
		wantFailed(t, refused, "holds the running system")
}

// runFrom mounts a root file system as in a running system, and returns the directory for chroot.
func runFrom(t testing.TB, node, kind string, writable bool) string {
	t.Helper()
	root := t.TempDir()
	flags := uintptr(unix.MS_RDONLY)
	if writable {
		flags = 0
	}
	mount(t, node, root, kind, flags)
	if writable {
		if err := os.WriteFile(filepath.Join(root, "tmp/news"), make([]byte, 4711), 0o600); err != nil {
			t.Fatal(err)
		}
		unix.Sync()
	}
	for _, dir := range []string{"data", "dev", "proc", "sys", "tmp"} {
		mount(t, "/"+dir, filepath.Join(root, dir), "", unix.MS_BIND)
	}
	return root
}

// mount mounts a file system until the test ends.
func mount(t testing.TB, source, point, kind string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(source, point, kind, flags, ""); err != nil {
		t.Fatalf("mounting %s on %s: %v", source, point, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(point, 0); err != nil {
			t.Errorf("unmounting %s: %v", point, err)
		}
	})
}

// scanned returns the index of a device's current content.
func scanned(t testing.TB, node string) *blob.Index {
	t.Helper()
	dir := t.TempDir()
	must(t, "cairn", "make", filepath.Join(dir, "x.caibx"), node)
	return readIndex(t, filepath.Join(dir, "x.caibx"))
}
