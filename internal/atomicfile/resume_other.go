//go:build !unix

package atomicfile

import "io/fs"

// Resume is Create: elsewhere nothing outlives a Close.
func Resume(name string, mode fs.FileMode) (*File, error) { return Create(name, mode) }
