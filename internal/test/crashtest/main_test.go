// Package crashtest judges how images are assembled onto A/B slots: what an update downloads, reads and writes,
// what is left of a slot when the program is killed or the power fails, and what faulty disks, stores and seeds
// do to it; and what these do to a server's image cache. It uses the finished binary on real devices: loop devices here, and device-mapper targets that
// record writes and fail in a virtual machine, where this same test binary runs again (TestGuest). Of cairn's
// packages it knows the index format and, to wrap a target in Go, what assembles.
//
// CAIRN_LONG=1 kills and cuts the power 200 times instead of 8, and makes images larger. CAIRN_SEED is the
// number that a failed test has printed, to have the same moments again.
package crashtest

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// scratch is a directory that outlives single tests. TestMain makes it before, and removes it after all of them.
var scratch string

func TestMain(m *testing.M) {
	if flag.Parse(); testing.Short() { // `make test` runs them
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

// testAll runs the tests with cairn, as it is shipped, at the front of PATH. In the virtual machine it is there.
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
	return m.Run(), nil
}

// readSources looks at every source file, so that go test knows what its cached result depends on: it does not
// see what the build reads.
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

// static builds a binary that needs no libraries: a program (go build) or a package's tests (go test -c).
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

// long says whether this is a long run.
func long() bool { return os.Getenv("CAIRN_LONG") == "1" }

// times is how often something random is tried.
func times() int {
	if long() {
		return 200
	}
	return 8
}
