//go:build !unix

package atomicfile

// syncDir does nothing: elsewhere a directory cannot be opened to be flushed.
func syncDir(string) error { return nil }
