package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"cairn/internal/atomicfile"
	"cairn/internal/openfile"
)

// checkFile reports before the work why a file could not be written after it. "" is none.
func checkFile(path string) error {
	if path == "" {
		return nil
	}
	return atomicfile.Check(path)
}

// checkOutput is checkFile for what writeWhole writes, which may be a stream.
func checkOutput(path string) error {
	if openfile.Standard(path, stdout) == dash {
		return openfile.RefuseClosed(stdout, os.Stdout)
	}
	if openfile.IsStream(path) {
		return nil
	}
	return checkFile(path)
}

// writeWhole makes data the whole content of a file, or writes it to stdout or whatever else openOutput knows.
func writeWhole(ctx context.Context, path string, data []byte) error {
	out, err := openfile.OpenOutput(ctx, path)
	if err != nil {
		return err
	}
	if out != nil {
		_, err = out.Write(data)
		return errors.Join(err, out.Close())
	}
	f, err := atomicfile.Create(path, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	err = f.Commit()
	if lost := f.Lost(); lost != nil {
		tellLost(path, lost)
	}
	return err
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
