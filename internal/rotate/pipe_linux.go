package rotate

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Path returns a path that others in this process can open as often as they like and read the text of the file
// there: the file's own, or, if it can be read only once, that of a copy in memory.
func (r *Reader) Path(path string) (string, error) {
	info, err := statFile(path)
	if err != nil || info.Mode().IsRegular() {
		return path, err
	}
	text, err := r.Text(path)
	if err != nil {
		return path, err
	}
	fd, err := unix.MemfdCreate("cairn", unix.MFD_CLOEXEC)
	if err != nil {
		return path, fmt.Errorf("copying %s into memory: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	if _, err := f.Write(text); err != nil {
		return path, fmt.Errorf("copying %s into memory: %w", path, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.copies = append(r.copies, f) // open for as long as the process runs
	return fmt.Sprintf("/proc/self/fd/%d", fd), nil
}
