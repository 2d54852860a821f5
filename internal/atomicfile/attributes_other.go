//go:build !linux

package atomicfile

import "os"

// inherit gives f the mode of the file that it is about to replace. Elsewhere that is all.
func inherit(f *os.File, _ string, old os.FileInfo) error { return f.Chmod(old.Mode().Perm()) }
