package crashtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// inGuest reports whether the test runs in the virtual machine.
func inGuest() bool { return os.Getenv("CAIRN_GUEST") != "" }

// guestParts returns the parts of TestGuest. Each runs in a virtual machine of its own.
func guestParts() map[string]func(*testing.T) {
	parts := map[string]func(*testing.T){
		"power ext4":   func(t *testing.T) { guestPower(t, guestReleases("ext4")) },
		"faults":       guestFaults,
		"roots":        guestRoots,
		"cache power":  guestCachePower,
		"cache faults": guestCacheFaults,
	}
	if long() {
		parts["power squashfs"] = func(t *testing.T) { guestPower(t, guestReleases("squashfs")) }
	}
	return parts
}

// TestGuest is run by TestVM in a virtual machine, which may change all its devices.
func TestGuest(t *testing.T) {
	part, known := guestParts()[os.Getenv("CAIRN_GUEST")]
	if !known {
		t.Skip("TestVM runs this in a virtual machine")
	}
	part(t)
}

// guestReleases returns the releases of a kind on the guest's disk.
func guestReleases(kind string) releases { return releases{"/data/" + kind} }

// newLoop returns a loop device of size bytes in memory.
func newLoop(t testing.TB, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "loop")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	node := strings.TrimSpace(must(t, "losetup", "-f"))
	must(t, "losetup", node, file)
	t.Cleanup(func() { must(t, "losetup", "-d", node) })
	return node
}

// filled returns a loop device of size bytes that begins with an image.
func filled(t testing.TB, image string, size int64) string {
	t.Helper()
	node := newLoop(t, size)
	fill(t, node, image)
	return node
}

// newMapping returns a device-mapper device with a table. It exists until the test ends.
func newMapping(t testing.TB, name, table string) string {
	t.Helper()
	must(t, "dmsetup", "create", "--noudevsync", name, tableFile(t, table))
	t.Cleanup(func() { removeMapping(t, name) })
	return "/dev/" + strings.TrimSpace(must(t, "dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", name))
}

func tableFile(t testing.TB, table string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "table")
	if err := os.WriteFile(file, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// remap changes the table of a mapping in use.
func remap(t testing.TB, name, table string) {
	t.Helper()
	must(t, "dmsetup", "suspend", "--noudevsync", "--noflush", "--nolockfs", name)
	must(t, "dmsetup", "reload", name, tableFile(t, table))
	must(t, "dmsetup", "resume", "--noudevsync", name)
}

// removeMapping removes a mapping after its writes have reached the devices below.
func removeMapping(t testing.TB, name string) {
	t.Helper()
	if run(t, "dmsetup", "info", name).status == 0 {
		must(t, "dmsetup", "remove", "--noudevsync", name)
	}
}

// linear returns the table of a mapping of the first size bytes of a device.
func linear(node string, size int64) string { return fmt.Sprintf("0 %d linear %s 0\n", size/512, node) }

// broken returns a table that fails or, with features, fails or loses only writes.
func broken(node string, size int64, features string) string {
	return fmt.Sprintf("0 %d flakey %s 0 0 3600 %s\n", size/512, node, features)
}

const (
	errorWrites = "1 error_writes"
	dropWrites  = "1 drop_writes"
)
