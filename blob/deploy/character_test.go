package deploy

import (
	"fmt"
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
