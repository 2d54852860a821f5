package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/testimages"
)

// TestInterruptedStream interrupts commands whose reader does not read on. The hint is that of a stream.
func TestInterruptedStream(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "image"), testimages.Random(1, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	command := func(args ...string) *exec.Cmd {
		c := exec.CommandContext(t.Context(), "cairn", args...)
		c.Dir = dir
		return c
	}
	if out, err := command("make", "image.caibx", "image").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, args := range [][]string{{"cat", "image.caibx"}, {"assemble", "image.caibx", "-", "--state", ""}} {
		t.Run(args[0], func(t *testing.T) { interruptStream(t, command(args...)) })
	}
}

func interruptStream(t *testing.T, c *exec.Cmd) {
	var stderr bytes.Buffer
	c.Stderr = &stderr
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(30*time.Second, func() { _ = c.Process.Kill() })
	defer late.Stop()
	_ = c.Wait()
	if status := c.ProcessState.ExitCode(); status != exitSignal+int(syscall.SIGTERM) {
		t.Errorf("exit status %d, want %d", status, exitSignal+int(syscall.SIGTERM))
	}
	const hint = "cairn: hint: the output is the beginning of the image; run it again to begin anew\n"
	if !strings.Contains(stderr.String(), hint) {
		t.Errorf("stderr is %q, without %q", stderr.String(), hint)
	}
}
