package blockdev

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/blockdev/sysfs"
	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

// holdLock lets another program lock a node until release is called.
func holdLock(t *testing.T, kind, node string) (release func()) {
	t.Helper()
	cmd := exec.Command(need.Tool(t, "flock"), kind, node, "sh", "-c", "echo locked; read line")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = bufio.NewReader(out).ReadString('\n')
	}
	if err != nil {
		t.Fatal(err)
	}
	release = func() {
		in.Close()
		_ = cmd.Wait() // fails, since sh reads no line
	}
	t.Cleanup(release)
	return release
}

// TestDiskIsLocked: while a target is open, its disk is locked for other programs.
func TestDiskIsLocked(t *testing.T) {
	node, _ := disk(t)
	tryLock := func() error { return exec.Command(need.Tool(t, "flock"), "--nonblock", node, "true").Run() }
	for _, path := range []string{node, node + "p2"} {
		target, err := OpenTarget(t.Context(), path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if tryLock() == nil {
			t.Errorf("%s is not locked while %s is a target", node, path)
		}
		if err := target.Close(); err != nil {
			t.Error(err)
		}
		if err := tryLock(); err != nil {
			t.Errorf("%s is still locked: %v", node, err)
		}
	}
}

// TestLockedDiskIsRefused: another program's lock of either kind refuses the target.
func TestLockedDiskIsRefused(t *testing.T) {
	node, _ := disk(t)
	for _, kind := range []string{"--exclusive", "--shared"} {
		release := holdLock(t, kind, node)
		for _, path := range []string{node, node + "p2"} {
			target, err := OpenTarget(t.Context(), path, Options{LockWait: time.Millisecond})
			if err == nil {
				target.Close()
			}
			e, ok := errors.AsType[*RefusedError](err)
			if !ok || e.Check != CheckClaimed || !strings.Contains(e.Why, "locked the disk "+node+": flock (process ") {
				t.Errorf("OpenTarget(%s) with a %s lock = %v, want refusal with the name of flock", path, kind, err)
			}
		}
		release()
		accepted(t, node+"p2")
	}
}

// TestInheritedLock: the lock of flock(1) is inherited by the program that it runs. A lock that this process took
// itself counts as another program's.
func TestInheritedLock(t *testing.T) {
	node, _ := disk(t)
	f, err := os.Open(node)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := tryLock(f); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTarget(t.Context(), node+"p2", Options{}); !isClaimed(err) {
		t.Errorf("OpenTarget with a lock of this process = %v, want refusal", err)
	}
	setInherited := func() error {
		return withDescriptor(f, func(fd int) error { _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); return err })
	}
	if err := setInherited(); err != nil {
		t.Fatal(err)
	}
	accepted(t, node+"p2")
	if exec.Command(need.Tool(t, "flock"), "--nonblock", node, "true").Run() == nil {
		t.Error("the lock is gone")
	}
}

// TestLockIsAwaited: the target is opened when the other program ends, and not when the context ends first.
func TestLockIsAwaited(t *testing.T) {
	node, _ := disk(t)
	release := holdLock(t, "--exclusive", node)
	notices := make(chan string, 1)
	o := Options{LockWait: time.Hour, Notice: func(text string) { notices <- text }}
	opened := make(chan error, 1)
	go func() {
		target, err := OpenTarget(t.Context(), node+"p1", o)
		if err == nil {
			err = target.Close()
		}
		opened <- err
	}()
	select {
	case text := <-notices:
		if !strings.Contains(text, "flock (process ") {
			t.Errorf("the notice is %q", text)
		}
	case err := <-opened:
		t.Fatalf("OpenTarget does not wait: %v", err)
	}
	release()
	if err := <-opened; err != nil {
		t.Error(err)
	}

	holdLock(t, "--exclusive", node)
	ctx, cancel := context.WithCancel(t.Context())
	o.Notice = func(string) { cancel() }
	if _, err := OpenTarget(ctx, node+"p1", o); !errors.Is(err, context.Canceled) {
		t.Errorf("OpenTarget of a job that was cancelled = %v", err)
	}
}

// TestOwnNode: the lock on the node in /dev counts.
func TestOwnNode(t *testing.T) {
	node, _ := disk(t)
	var st unix.Stat_t
	mine := t.TempDir() + "/node"
	if err := errors.Join(unix.Stat(node, &st), unix.Mknod(mine, unix.S_IFBLK|0o600, int(st.Rdev))); err != nil {
		t.Fatal(err)
	}
	holdLock(t, "--exclusive", node)
	if _, err := OpenTarget(t.Context(), mine, Options{}); err == nil {
		t.Error("a target whose disk is locked by another name is opened")
	}
}

// TestRereadPartitions: the kernel learns the written table. A kernel without GPT support forgets the old
// partitions.
func TestRereadPartitions(t *testing.T) {
	node, _ := disk(t)
	if d := deviceOf(t, node); len(d.Partitions()) != 2 {
		t.Fatalf("the kernel has the partitions %v, want two", d.Partitions())
	}
	table := filepath.Join(t.TempDir(), "table")
	if err := testimages.GPTDisk(table, 512, testimages.Part{Name: "one", Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(table)
	if err != nil {
		t.Fatal(err)
	}
	target := openTarget(t, node, Section{})
	if _, err := target.WriteAt(image, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(target.Sync(), target.RereadPartitions()); err != nil {
		t.Fatal(err)
	}
	for _, p := range deviceOf(t, node).Partitions() {
		if size, err := p.Bytes("size"); err != nil || size != 8<<20 {
			t.Errorf("the kernel has %s of %d bytes, %v", p.Name(), size, err)
		}
	}
	if err := openTarget(t, looptest.File(t, 1<<20), Section{}).RereadPartitions(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("RereadPartitions of a file = %v", err)
	}
}

// TestRereadNoPartitions: the kernel reads no table of a partition, nor of a loop device without partitions.
func TestRereadNoPartitions(t *testing.T) {
	node, file := disk(t)
	if err := openTarget(t, node+"p1", Section{}).RereadPartitions(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("RereadPartitions of a partition = %v", err)
	}
	plain := strings.TrimSpace(looptest.Run(t, need.Tool(t, "losetup"), "--find", "--show", "--read-only", file))
	defer looptest.Run(t, need.Tool(t, "losetup"), "--detach", plain)
	f, err := os.Open(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	target := &Target{File: File{f: f, path: plain, device: true, bytes: io.NewSectionReader(f, 0, 1)}}
	if err := target.RereadPartitions(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("RereadPartitions of a loop device without partitions = %v", err)
	}
}

func deviceOf(t *testing.T, path string) sysfs.Device {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	d, err := liveKernel().sys.Device(sysfs.ID(inodeOf(info).rdev))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func isClaimed(err error) bool {
	e, ok := errors.AsType[*RefusedError](err)
	return ok && e.Check == CheckClaimed
}
