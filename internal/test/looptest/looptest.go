// Package looptest gives tests real block devices: loop devices on files, with their partitions. It knows
// nothing of the tests.
package looptest

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"cairn/internal/test/need"
)

// Attach attaches the file to a loop device with sectors of sectorSize bytes until the test ends, and returns the
// device's node. The nodes of its partitions end with p1, p2….
func Attach(t testing.TB, file string, sectorSize int) string {
	t.Helper()
	need.Root(t)
	losetup := need.Tool(t, "losetup")
	args := []string{"--find", "--show", "--partscan", "--sector-size", strconv.Itoa(sectorSize), file}
	node := strings.TrimSpace(Run(t, losetup, args...))
	t.Cleanup(func() {
		if out, err := exec.Command(losetup, "--detach", node).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v\n%s", node, err, out)
		}
	})
	addPartitions(t, node)
	return node
}

// addPartitions adds the partitions one by one where the kernel does not support GPT.
func addPartitions(t testing.TB, node string) {
	t.Helper()
	if _, err := os.Stat(node + "p1"); !errors.Is(err, fs.ErrNotExist) {
		return
	}
	// It fails where there is no partition table; a test that needs partitions will notice.
	_ = exec.Command(need.Tool(t, "partx"), "--add", node).Run()
	t.Cleanup(func() { _ = exec.Command("partx", "--delete", node).Run() })
}

// File creates a sparse file of size bytes.
func File(t testing.TB, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "device-*.img")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

// Run runs a program that must succeed and returns its standard output.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	return RunInput(t, "", name, args...)
}

// RunInput is Run with the program's standard input.
func RunInput(t testing.TB, input, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(input)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}
