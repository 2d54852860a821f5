package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"cairn/blob/deploy"
	"cairn/internal/childenv"
)

// checkProgram reports, before a job, why the program of --exec could not be run after it. The name "" is no program.
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

// hookError reports that the image is in place, and the program of --exec failed.
type hookError struct {
	target, program string
	err             error
}

func (e hookError) Error() string {
	return fmt.Sprintf("%s holds the image, but running %s afterwards: %v", e.target, e.program, e.err)
}
func (e hookError) Unwrap() error { return e.err }

// hookGrace is the time between SIGTERM and SIGKILL for the program of --exec.
const hookGrace = 10 * time.Second

// runProgram runs the program of --exec without a shell, with the result on its stdin. The program may switch a boot
// loader. Therefore a signal of the terminal does not reach it, and an interrupted job sends it SIGTERM and waits.
func (f *assembleFlags) runProgram(ctx context.Context, r assembleResult) error {
	if f.exec == "" {
		return nil
	}
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	hook := exec.CommandContext(ctx, f.exec)
	hook.Env = childenv.Environ()
	hook.Stdin, hook.Stdout, hook.Stderr = bytes.NewReader(text), os.Stderr, os.Stderr
	hook.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	hook.Cancel = func() error { return syscall.Kill(-hook.Process.Pid, syscall.SIGTERM) }
	hook.WaitDelay = hookGrace
	err = hook.Run()
	if err == nil || hook.ProcessState != nil && hook.ProcessState.Success() { // it succeeded in spite of a signal
		return nil
	}
	return hookError{deploy.ShowTarget(r.Target), f.exec, err}
}
