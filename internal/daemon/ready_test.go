package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// startServiceManager listens as systemd does. next returns the next notification.
func startServiceManager(t *testing.T) (next func() string) {
	t.Helper()
	at := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: at, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", at)
	return func() string {
		buffer := make([]byte, 100)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, err := conn.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		return string(buffer[:n])
	}
}

// TestBeginReady: the pid file exists while clients can connect, and the service manager is
// notified of start and stop.
func TestBeginReady(t *testing.T) {
	next := startServiceManager(t)
	path := filepath.Join(t.TempDir(), "pid")
	ctx, cancel := context.WithCancel(t.Context())
	end, err := BeginReady(ctx, OpenNotifier(), path, func(state string, err error) { t.Error(state, err) })
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); string(text) != fmt.Sprintln(os.Getpid()) {
		t.Errorf("the pid file holds %q, %v", text, err)
	}
	if got := next(); got != "READY=1" {
		t.Errorf("the service manager receives %s", got)
	}
	cancel()
	end()
	if got := next(); got != "STOPPING=1" {
		t.Errorf("the service manager receives %s", got)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the pid file is left: %v", err)
	}
}

// TestBeginReadyAlone: without a service manager the failure is reported, and the server starts.
func TestBeginReadyAlone(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	var states []string
	end, err := BeginReady(t.Context(), OpenNotifier(), "", func(state string, _ error) { states = append(states, state) })
	if err != nil {
		t.Fatal(err)
	}
	end()
	if fmt.Sprint(states) != "[READY=1]" {
		t.Errorf("reported are %v", states)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := OpenNotifier().Notify("READY=1"); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}

// TestPIDFileOfAnother: the pid file of another process remains, and a link is not removed.
func TestPIDFileOfAnother(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	remove, err := writePID(link)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	remove()
	if text, err := os.ReadFile(file); string(text) != "1\n" {
		t.Errorf("another's pid file holds %q, %v", text, err)
	}
	if remove, err = writePID(link); err != nil {
		t.Fatal(err)
	}
	remove()
	if _, err := os.Lstat(link); err != nil {
		t.Errorf("the link is gone: %v", err)
	}
	if _, err := writePID(filepath.Join(dir, "none", "pid")); err == nil {
		t.Error("a pid file in no directory is written")
	}
}

// TestPIDFileReplaced: a FIFO in the place of the pid file does not block the end of the server.
func TestPIDFileReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	remove, err := writePID(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	remove()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the FIFO is gone: %v", err)
	}
}

// TestWithParent: the context ends with the parent process. The child is this test, started by a
// shell that ends.
func TestWithParent(t *testing.T) {
	if os.Getenv("CAIRN_TEST_CHILD") != "" {
		ctx, stop, err := WithParent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		select {
		case <-ctx.Done():
			fmt.Println("cause:", context.Cause(ctx))
		case <-time.After(20 * time.Second):
			fmt.Println("the context goes on")
		}
		return
	}
	ctx, stop, err := WithParent(t.Context())
	if err != nil || ctx.Err() != nil {
		t.Fatalf("with a parent that lives: %v, %v", err, ctx.Err())
	}
	stop()
	shell := exec.Command("sh", "-c", `"$0" -test.run '^TestWithParent$' & sleep 0.3`, os.Args[0])
	shell.Env = append(os.Environ(), "CAIRN_TEST_CHILD=1")
	out, err := shell.Output() // until the child has closed its output
	if err != nil {
		t.Fatal(err)
	}
	if want := "cause: the parent process has ended\n"; len(out) < len(want) || string(out[:len(want)]) != want {
		t.Errorf("the child says %q, want %q", out, want)
	}
}
