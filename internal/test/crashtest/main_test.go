// Package crashtest tests the assembly of images onto A/B slots: the bytes that an update downloads, reads and
// writes, the content of a slot after a kill or a power cut, and faulty disks, stores and seeds. It tests a
// server's image cache against the same faults. It runs the finished binary on real devices: loop devices, and
// in a virtual machine device-mapper targets that record writes and fail. There the same test binary runs again
// (TestGuest). The package knows cairn's index format and, to wrap a target in Go, the package that assembles.
//
// CAIRN_LONG=1 kills and cuts the power 200 times instead of 8, and makes larger images. CAIRN_SEED repeats the
// random moments of a failed test, which prints its seed.
package crashtest

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
)

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

// testAll runs the tests with the product's binary first in PATH. In the virtual machine it is already there.
func testAll(m *testing.M) (status int, err error) {
	if inGuest() {
		return m.Run(), nil
	}
	if err := readSources(); err != nil {
		return 0, err
	}
	if scratch, err = os.MkdirTemp("", "cairn-crashtest-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(scratch)
	if err := static(filepath.Join(scratch, "cairn"), "build", "cairn/cmd/cairn"); err != nil {
		return 0, err
	}
	if err := os.Setenv("PATH", scratch+":"+os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return 0, err
	}
	// The tests wait half of the time, so more of them run in parallel than there are CPUs.
	if err := flag.Set("test.parallel", strconv.Itoa(max(4, runtime.GOMAXPROCS(0)))); err != nil {
		return 0, err
	}
	return m.Run(), nil
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

// static builds a statically linked binary: a program (go build) or a package's tests (go test -c).
func static(file string, args ...string) error {
	build := append(args[:len(args)-1:len(args)-1], "-o", file, args[len(args)-1])
	if args[0] == "build" {
		build = append([]string{"build", "-buildvcs=false"}, build[1:]...)
	}
	cmd := exec.Command("go", build...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %q: %w\n%s", build, err, out)
	}
	return nil
}

// long reports whether CAIRN_LONG is set.
func long() bool { return os.Getenv("CAIRN_LONG") == "1" }

// times returns the number of random tries.
func times() int {
	if long() {
		return 200
	}
	return 8
}
