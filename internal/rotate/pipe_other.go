//go:build !linux

package rotate

// Path returns the path itself: only Linux has files in memory.
func (r *Reader) Path(path string) (string, error) { return path, nil }
