//go:build !linux

package ioprio

import (
	"errors"
	"fmt"
)

// Idle is supported on Linux only; here it is an errors.ErrUnsupported.
func Idle() error { return fmt.Errorf("making the process idle: %w", errors.ErrUnsupported) }
