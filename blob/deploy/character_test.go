package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev"
	"cairn/internal/test/need"
)

// TestRefuseCharacter: a character device is refused, and the hint for flash names flash's own tools.
func TestRefuseCharacter(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	for name, hint := range map[string]string{
		"ubi0_1": "| ubiupdatevol -s 4711 %s -'",
		"mtd3":   "| nandwrite -p %s -'",
		"other":  "assemble INDEX - >%s'",
	} {
		path := filepath.Join(dir, name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))); err != nil {
			t.Skipf("making a device: %v", err)
		}
		refused, ok := refuseCharacter(path, 4711).(*blockdev.RefusedError)
		if want := fmt.Sprintf(hint, path); !ok || !strings.Contains(refused.Hint, want) {
			t.Errorf("%s: %+v, want the hint %q", name, refused, want)
		}
	}
	if err := refuseCharacter(dir, 1); err != nil {
		t.Errorf("a directory: %v", err)
	}
}

// TestUpdatedVolume: a UBI volume takes a stream while its update marker is set.
func TestUpdatedVolume(t *testing.T) {
	for marker, want := range map[string]bool{"1\n": true, "0\n": false, "": false} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "upd_marker"), []byte(marker), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := isUpdatedVolume(dir); got != want {
			t.Errorf("marker %q: isUpdatedVolume = %v", marker, got)
		}
	}
	info, err := os.Stat("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if isUpdatedVolume(sysfsOf(info)) || isUpdatedVolume(t.TempDir()) {
		t.Error("a device that is not a UBI volume has an update")
	}
}
