package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"cairn/internal/atomicfile"
)

// checkFile reports before the work why a file could not be written after it. "" is none, and "-" is stdout.
func checkFile(path string) error {
	if path == "" || path == "-" {
		return nil
	}
	return atomicfile.Check(path)
}

// checkProgram reports before the work why a program could not be run after it. "" is none.
func checkProgram(name string) error {
	if name == "" {
		return nil
	}
	_, err := exec.LookPath(name)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("--exec %s: %w", name, errors.Unwrap(err))
	switch {
	case errors.Is(err, os.ErrPermission):
		return hintError{err, "make it executable (chmod +x), on a file system that is not mounted noexec"}
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, exec.ErrDot):
		return hintError{err, "a program that is not in $PATH is named with its directory, such as ./" + name}
	}
	return err
}
