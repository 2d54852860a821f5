package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"cairn/blob/deploy"
	"cairn/internal/starter"
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

// hookCommands returns the command of --exec, if there is one.
func (f *assembleFlags) hookCommands() []starter.Command {
	if f.exec == "" {
		return nil
	}
	return []starter.Command{{Program: f.exec}}
}

// runProgram runs the program of --exec without a shell, with the result on its stdin. The program may switch a boot
// loader. Therefore a signal of the terminal does not reach it, and an interrupted job sends it SIGTERM and waits.
func (f *assembleFlags) runProgram(ctx context.Context, r assembleResult) error {
	if f.exec == "" {
		return nil
	}
	text, err := json.Marshal(r)
	if err == nil {
		err = f.runHook(ctx, text)
	}
	if err != nil {
		return hookError{deploy.ShowTarget(r.Target), f.exec, err}
	}
	return nil
}

func (f *assembleFlags) runHook(ctx context.Context, input []byte) error {
	in, stdin, err := os.Pipe()
	if err != nil {
		return err
	}
	hook, err := f.starter.Start(f.hookCommands()[0], in, os.Stderr, os.Stderr)
	_ = in.Close()
	if err != nil {
		_ = stdin.Close()
		return err
	}
	go func() {
		_, _ = stdin.Write(input) // the program need not read it
		_ = stdin.Close()
	}()
	defer stdin.Close()
	defer context.AfterFunc(ctx, func() {
		hook.Signal(syscall.SIGTERM)
		time.AfterFunc(hookGrace, func() { hook.Signal(syscall.SIGKILL) }) // without effect after Wait
	})()
	return hook.Wait()
}
