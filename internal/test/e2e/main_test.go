// Package e2e tests the finished binary from outside, as users and their tools see it: casync, desync, libnbd,
// qemu, nginx, loop devices and a virtual machine. Of cairn's packages it knows the index format, to compute
// expected results. Everything else it learns from files, exit statuses and other programs.
//
// CAIRN_LONG=1 adds the real releases that testimages/debian made in the directory CAIRN_IMAGES. CAIRN_RAUC is a RAUC to
// test with instead of the installed one and Debian 13's.
package e2e

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const mib = 1 << 20

// scratch is a directory for all tests. TestMain creates and removes it.
var scratch string

func TestMain(m *testing.M) {
	if flag.Parse(); testing.Short() { // `make test` runs them without -short
		fmt.Println("the finished binary is not tested with -short")
		os.Exit(0)
	}
	status, err := testAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// testAll runs the tests with a fresh binary first in PATH.
func testAll(m *testing.M) (status int, err error) {
	if err := readSources(); err != nil {
		return 0, err
	}
	if scratch, err = os.MkdirTemp("", "cairn-e2e-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(scratch)
	if err := build(filepath.Join(scratch, "cairn"), raceDetector); err != nil {
		return 0, err
	}
	// /usr/bin first, since nbdsh needs the system's python.
	path := []string{scratch, "/usr/bin", os.Getenv("PATH"), "/usr/sbin", "/sbin"}
	err = errors.Join(os.Setenv("PATH", strings.Join(path, ":")), os.Setenv("XDG_RUNTIME_DIR", scratch))
	if err != nil {
		return 0, err
	}
	// The tests wait two thirds of the time, so more of them run in parallel than there are CPUs.
	if err := flag.Set("test.parallel", strconv.Itoa(max(6, runtime.GOMAXPROCS(0)))); err != nil {
		return 0, err
	}
	if signal.Ignored(syscall.SIGHUP) { // under nohup; with a handler, child processes do not ignore it
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	return m.Run(), nil
}

// notWatched is the flag of `make race` whose packages are compiled by then.
const notWatched = "-gcflags=github.com/klauspost/compress/...=-race=false"

// build builds the binary, with the race detector if the tests have it, else as it is shipped.
func build(file string, race bool) error {
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", file, "cairn/cmd/cairn")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if race {
		cmd = exec.Command("go", "build", "-buildvcs=false", "-race", notWatched, "-o", file, "cairn/cmd/cairn")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building cairn: %w\n%s", err, out)
	}
	return nil
}

// readSources looks at every source file. go test then knows the dependencies of its cached result, because it
// does not see which files the build reads.
func readSources() error {
	return filepath.WalkDir("../../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() && filepath.Ext(path) != ".go" {
			return err
		}
		if name := d.Name(); d.IsDir() && (name == ".git" || name == ".cache" || name == ".bin") {
			return fs.SkipDir
		}
		_, err = os.Stat(path)
		return err
	})
}
