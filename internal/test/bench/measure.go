package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// sample is the cost of one command. Times are in seconds.
type sample struct {
	Image string  `json:"image"`
	Job   string  `json:"job"`
	Tool  string  `json:"tool"`
	Bytes int64   `json:"bytes"` // of the image, or of all reads of a server's clients
	Ops   int64   `json:"ops"`   // random reads; 0 in other jobs
	User  float64 `json:"user"`
	Sys   float64 `json:"sys"`
	Wall  float64 `json:"wall"` // for a server, the time of the load
	RSS   int64   `json:"peak_rss"`
	// Download is what a client downloads for an update with the made delta; 0 in other jobs.
	Download int64 `json:"download,omitempty"`
}

// measureRound runs every job once with each tool, in new directories. size is the size of the images.
func measureRound(ctx context.Context, work string, jobs []job, size int64) ([]sample, error) {
	var samples []sample
	ready := map[string]bool{}
	for _, j := range jobs {
		for _, c := range j.commands {
			dir := filepath.Join(work, "by-"+c.directory())
			if !ready[dir] {
				if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
					return nil, err
				}
				ready[dir] = true
			}
			if err := touchMemory(work); err != nil {
				return nil, err
			}
			s := sample{Job: j.name, Tool: c.tool, Bytes: size}
			if j.bytes > 0 {
				s.Bytes = j.bytes
			}
			if err := c.measure(ctx, dir, &s); err != nil {
				return nil, fmt.Errorf("%s with %s: %w", j.name, c.tool, err)
			}
			samples = append(samples, s)
		}
	}
	return samples, nil
}

// touchMemory allocates memory and frees it. The host of a virtual machine then has it ready for each tool, and
// the first tool of a job does not pay for the others.
func touchMemory(work string) (err error) {
	f, err := os.Create(filepath.Join(work, "warm"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	const most = 768 << 20
	for p, n := make([]byte, 1<<20), 0; n < most && err == nil; n += len(p) {
		_, err = f.Write(p)
	}
	return err
}

func (c command) directory() string {
	if c.dir != "" {
		return c.dir
	}
	return c.tool
}

// measure runs the command in dir, and adds its cost to s.
func (c command) measure(ctx context.Context, dir string, s *sample) error {
	if c.prepare != nil {
		if err := c.prepare(dir); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, c.args[0], c.args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), c.env...)
	run := runCommand
	if c.server != nil {
		run = c.server.run
	}
	err := run(ctx, cmd, s)
	if err == nil {
		s.RSS = int64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) << 10 //nolint:unconvert // 32 bits on some machines
	}
	if c.download != nil && err == nil {
		s.Download, err = c.download(dir)
	}
	if c.check != nil { // it also removes the output
		err = errors.Join(err, c.check(dir))
	}
	return err
}

func runCommand(_ context.Context, cmd *exec.Cmd, s *sample) error {
	begun := time.Now()
	err := runQuietly(cmd)
	s.Wall = time.Since(begun).Seconds()
	if err == nil {
		s.User, s.Sys = cmd.ProcessState.UserTime().Seconds(), cmd.ProcessState.SystemTime().Seconds()
	}
	return err
}

// runQuietly runs a command. The error holds the command's messages.
func runQuietly(cmd *exec.Cmd) error {
	var words bytes.Buffer
	cmd.Stderr = &words
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(words.Bytes()))
	}
	return nil
}

// checkImage compares the assembled image with b, and removes it.
func checkImage(dir string) error {
	b := filepath.Join(dir, "b")
	return errors.Join(runQuietly(exec.Command("cmp", b, filepath.Join(dir, "../b"))), os.Remove(b))
}
