//go:build !amd64 && !arm64 && !arm

package confine

import (
	"fmt"
	"runtime"
)

// Calls returns an ErrUnsupported on this platform.
func Calls(Policy) error { return filterSupported() }

func filterSupported() error {
	return fmt.Errorf("%w: cairn has no filter of system calls for %s", ErrUnsupported, runtime.GOARCH)
}
