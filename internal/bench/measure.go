package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// sample is what one command cost. Times are in seconds.
type sample struct {
	Image string  `json:"image"`
	Job   string  `json:"job"`
	Tool  string  `json:"tool"`
	User  float64 `json:"user"`
	Sys   float64 `json:"sys"`
	Wall  float64 `json:"wall"` // of a server: of the copies out of it
	RSS   int64   `json:"peak_rss"`
}

// measureRound does every job once with each tool, from nothing.
func measureRound(ctx context.Context, work string, jobs []job) ([]sample, error) {
	var samples []sample
	ready := map[string]bool{}
	for _, j := range jobs {
		for _, c := range j.commands {
			dir := filepath.Join(work, "by-"+c.tool)
			if !ready[dir] {
				if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
					return nil, err
				}
				ready[dir] = true
			}
			s, err := c.measure(ctx, dir)
			if err != nil {
				return nil, fmt.Errorf("%s with %s: %w", j.name, c.tool, err)
			}
			s.Job, s.Tool = j.name, c.tool
			samples = append(samples, s)
		}
	}
	return samples, nil
}

func (c command) measure(ctx context.Context, dir string) (s sample, err error) {
	if c.prepare != nil {
		if err := c.prepare(dir); err != nil {
			return s, err
		}
	}
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Dir = dir
	if c.copies > 0 {
		s.Wall, err = c.serve(ctx, cmd)
	} else {
		begun := time.Now()
		err = quietly(cmd)
		s.Wall = time.Since(begun).Seconds()
	}
	if err == nil && c.check != nil {
		err = c.check(dir)
	}
	if err != nil {
		return s, err
	}
	s.User, s.Sys = cmd.ProcessState.UserTime().Seconds(), cmd.ProcessState.SystemTime().Seconds()
	s.RSS = int64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) << 10 //nolint:unconvert // 32 bits on some machines
	return s, nil
}

// quietly runs a command; what it has to say is part of the error.
func quietly(cmd *exec.Cmd) error {
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(words.Bytes()))
	}
	return nil
}

// serve runs a server while its export is copied out, and returns how long the copies take together.
func (c command) serve(ctx context.Context, cmd *exec.Cmd) (seconds float64, err error) {
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	defer func() {
		// Not every server ends well on a signal, and what counts is what it did before.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	if err := listens(ctx, c.socket); err != nil {
		return 0, err
	}
	begun := time.Now()
	for range c.copies {
		uri := "nbd+unix:///?socket=" + c.socket
		if err := quietly(exec.CommandContext(ctx, "nbdcopy", uri, "null:")); err != nil {
			return 0, err
		}
	}
	return time.Since(begun).Seconds(), nil
}

// listens waits until a server accepts connections.
func listens(ctx context.Context, socket string) error {
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("waiting for the server: %w", err)
		}
	}
}

// sameImage compares what was assembled with what was meant.
func sameImage(dir string) error {
	return quietly(exec.Command("cmp", filepath.Join(dir, "b"), filepath.Join(dir, "../b")))
}
