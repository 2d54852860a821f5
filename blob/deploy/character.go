package deploy

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev"
)

// refuseCharacter refuses a character device as the target of an image of size bytes, with a hint at
// the right command.
func refuseCharacter(location string, size int64) error {
	info, err := os.Stat(location)
	if err != nil || info.Mode()&fs.ModeCharDevice == 0 {
		return nil // the caller meets the same error
	}
	refused := &blockdev.RefusedError{
		Path: location, Check: blockdev.CheckNotTarget, Why: "it is a character device",
		Hint: "'cairn assemble INDEX - >" + location + "' writes the image there as a stream",
	}
	switch flashKind(location, info) {
	case "ubi":
		refused.Why = "it is a UBI volume, which takes an update of a known size only"
		refused.Hint = fmt.Sprintf("'cairn assemble INDEX - | ubiupdatevol -s %d %s -'", size, location)
	case "mtd":
		refused.Why = "it is raw flash, which is erased before it is written"
		refused.Hint = fmt.Sprintf("'flash_erase %s 0 0', then 'cairn assemble INDEX - | nandwrite -p %s -'", location, location)
	}
	return refused
}

// isUpdatedVolume reports whether a device, whose directory in sysfs is dir, is a UBI volume of which an update has begun.
// Such a volume takes a stream. RAUC begins the update before it passes the volume on as stdout. If the update was
// interrupted and nobody has begun it again, writes fail.
func isUpdatedVolume(dir string) bool {
	marker, err := os.ReadFile(filepath.Join(dir, "upd_marker"))
	return err == nil && strings.TrimSpace(string(marker)) == "1"
}

// sysfsOf returns the directory in sysfs of a character device, or "".
func sysfsOf(info fs.FileInfo) string {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("/sys/dev/char/%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))) //nolint:unconvert // 32 bits on some machines
}

// flashKind returns "ubi" for a UBI volume, "mtd" for raw flash, or "".
func flashKind(name string, info fs.FileInfo) string {
	if dir := sysfsOf(info); dir != "" {
		link, err := os.Readlink(filepath.Join(dir, "subsystem"))
		if kind := filepath.Base(link); err == nil && (kind == "ubi" || kind == "mtd") {
			return kind
		}
	}
	if m := regexp.MustCompile(`^(ubi)\d+_\d+$|^(mtd)\d+$`).FindStringSubmatch(filepath.Base(name)); m != nil {
		return m[1] + m[2]
	}
	return ""
}
