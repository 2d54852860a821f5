package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"cairn/testimages"
)

// TestCatToNobody: a signal ends what waits for somebody to read on.
func TestCatToNobody(t *testing.T) {
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
	cat := command("cat", "image.caibx")
	stdout, err := cat.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := cat.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	late := time.AfterFunc(10*time.Second, func() { _ = cat.Process.Kill() })
	defer late.Stop()
	_ = cat.Wait()
	if status := cat.ProcessState.ExitCode(); status != exitSignal+int(syscall.SIGTERM) {
		t.Errorf("exit status %d, want %d", status, exitSignal+int(syscall.SIGTERM))
	}
}
