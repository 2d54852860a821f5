package blockdev

import (
	"fmt"
	"path/filepath"
)

// Identity is a text that stays the same as long as the section is the same one, also over a restart of the
// machine, for remembering by it what was found there. It says which bytes are meant and nothing of what they are:
// a device goes by its PARTUUID, the serial number of its disk, what it is mapped or attached to, and
// its size; a file by its inode, size and path. Where the kernel tells nothing but a device's name it is that,
// and another device may bear it tomorrow. It is not parsed, and may change with the version of this program.
func (f *File) Identity() (string, error) {
	info, err := f.f.Stat()
	if err != nil {
		return "", fmt.Errorf("identifying %s: %w", f.path, err)
	}
	name, err := filepath.Abs(f.path)
	if err != nil {
		return "", err
	}
	name = fmt.Sprintf("file path=%q%s", name, inodeWords(info))
	if f.device {
		if name, err = deviceIdentity(info); err != nil {
			return "", fmt.Errorf("identifying %s: %w", f.path, err)
		}
	}
	return fmt.Sprintf("%s size=%d at=%d", name, f.Size(), f.offset()), nil
}
