package deploy

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
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

// flashKind returns "ubi" for a UBI volume, "mtd" for raw flash, or "".
func flashKind(name string, info fs.FileInfo) string {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		number := fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))) //nolint:unconvert // 32 bits on some machines
		link, err := os.Readlink(filepath.Join("/sys/dev/char", number, "subsystem"))
		if kind := filepath.Base(link); err == nil && (kind == "ubi" || kind == "mtd") {
			return kind
		}
	}
	if m := regexp.MustCompile(`^(ubi)\d+_\d+$|^(mtd)\d+$`).FindStringSubmatch(filepath.Base(name)); m != nil {
		return m[1] + m[2]
	}
	return ""
}
