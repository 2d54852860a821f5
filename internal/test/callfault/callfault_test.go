//go:build linux && amd64

package callfault

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// programVariable makes the test binary the program under test.
const programVariable = "CAIRN_CALLFAULT_PROGRAM"

func TestMain(m *testing.M) {
	if name := os.Getenv(programVariable); name != "" {
		if err := programs[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// programs are small programs in the directory of the test.
var programs = map[string]func() error{
	"write": func() error { // three calls of pwrite64 and one of fsync
		f, err := os.Create("file")
		if err != nil {
			return err
		}
		for i := range 3 {
			if _, err := f.WriteAt([]byte("0123456789"), int64(10*i)); err != nil {
				return err
			}
		}
		return errors.Join(f.Sync(), f.Close())
	},
	"hang": func() error {
		_, err := os.Stat("file")
		for errors.Is(err, fs.ErrNotExist) {
			time.Sleep(time.Hour)
		}
		return err
	},
	"execute": func() error {
		out, err := exec.Command("cat", "/proc/self/comm").CombinedOutput()
		fmt.Printf("%s", out)
		return err
	},
	"open": func() error {
		for range 100 {
			f, err := os.Open(os.DevNull)
			if err != nil {
				return err
			}
			defer f.Close()
		}
		return nil
	},
	"clock": func() error {
		before := time.Now()
		_, _ = os.Stat("file")
		after := time.Now()
		fmt.Println(after.Round(0).Sub(before.Round(0)).Round(time.Hour), after.Sub(before) < time.Hour)
		return nil
	},
}

// runProgram runs one of programs with a fault, in dir.
func runProgram(t *testing.T, name, dir string, f Fault) Result {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(Program{
		Path: self, Dir: dir, Env: append(os.Environ(), programVariable+"="+name), Limit: time.Minute,
	}, f)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Unknown) > 0 {
		t.Errorf("unknown calls: %v", r.Unknown)
	}
	return r
}

// TestFaults: the named call fails in the named way, and no other.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		f       Fault
		stderr  string
		written string
	}{
		{Fault{}, "", "012345678901234567890123456789"},
		{Fault{Call: "pwrite64", N: 1, Error: unix.ENOSPC}, "no space left on device", ""},
		{Fault{Call: "pwrite64", N: 3, Error: unix.EIO}, "input/output error", "01234567890123456789"},
		{Fault{Call: "pwrite64", N: 2, Error: unix.EINTR}, "", "012345678901234567890123456789"}, // Go repeats it
		{Fault{Call: "pwrite64", N: 3, Error: Short}, "", "012345678901234567890123456789"},      // Go writes the rest
		{Fault{Call: "pwrite64", N: 4, Error: unix.EIO}, "", "012345678901234567890123456789"},   // not reached
		{Fault{Call: "fsync", N: 1, Error: unix.EIO}, "input/output error", "012345678901234567890123456789"},
		{Fault{Call: "close", N: 1, Error: unix.EIO}, "", "012345678901234567890123456789"},
	} {
		t.Run(c.f.String(), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if c.f.Call == "close" {
				c.f.N = runProgram(t, "write", dir, Fault{}).Counts["close"] // the last one closes the file
				c.stderr = "input/output error"
			}
			r := runProgram(t, "write", dir, c.f)
			if r.Counts["pwrite64"] != 3 && c.stderr == "" && c.f.Error == 0 {
				t.Errorf("counted %v, want 3 of pwrite64", r.Counts)
			}
			if (r.Status == 0) != (c.stderr == "") || !strings.Contains(r.Stderr, c.stderr) {
				t.Errorf("status %d, stderr %q, want %q", r.Status, r.Stderr, c.stderr)
			}
			if c.f.Call != "" && c.f.N <= 3 && !strings.HasSuffix(r.Failed, filepath.Join(dir, "file")) {
				t.Errorf("the failed call is %q", r.Failed)
			}
			if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(got) != c.written {
				t.Errorf("the file holds %q, %v, want %q", got, err, c.written)
			}
		})
	}
}

// TestHang: a program that does not end is aborted, and prints where it stood.
func TestHang(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), programVariable+"=hang")
	r, err := Run(Program{Path: self, Dir: t.TempDir(), Env: env, Limit: time.Second}, Fault{})
	if err != nil || !r.Hung || r.Status == 0 {
		t.Errorf("Run = %+v, %v, want a hung program", r, err)
	}
}

// TestExecuted: executed programs run, and their calls do not count.
func TestExecuted(t *testing.T) {
	dir := t.TempDir()
	if r := runProgram(t, "execute", dir, Fault{}); r.Status != 0 || r.Stdout != "cat\n" {
		t.Errorf("status %d, %q %q", r.Status, r.Stdout, r.Stderr)
	}
}

// TestClock: the wall clock jumps at the call, and the monotonic one does not.
func TestClock(t *testing.T) {
	clean := runProgram(t, "clock", t.TempDir(), Fault{})
	last := Fault{Call: "newfstatat", N: clean.Counts["newfstatat"]}
	for _, jump := range []time.Duration{100 * time.Hour, -100 * time.Hour} {
		last.Jump = jump
		r := runProgram(t, "clock", t.TempDir(), last)
		if want := fmt.Sprintln(jump, true); r.Stdout != want {
			t.Errorf("Stdout = %q, want %q; %s", r.Stdout, want, r.Stderr)
		}
	}
}

// TestFaultsOfResult: every counted call has each of its errors.
func TestFaultsOfResult(t *testing.T) {
	r := Result{Counts: map[string]int{"fsync": 2, "close": 1}}
	want := "[close 1: EIO close 1: EINTR fsync 1: EIO fsync 1: ENOSPC fsync 2: EIO fsync 2: ENOSPC]"
	if got := fmt.Sprint(r.Faults()); got != want {
		t.Errorf("Faults = %s, want %s", got, want)
	}
}

// TestFiles: the program has the limit of descriptors.
func TestFiles(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), programVariable+"=open")
	r, err := Run(Program{Path: self, Dir: t.TempDir(), Env: env, Files: 32, Limit: time.Minute}, Fault{})
	if err != nil || r.Status == 0 || !strings.Contains(r.Stderr, unix.EMFILE.Error()) {
		t.Errorf("Run = %+v, %v, want a program without descriptors", r, err)
	}
}
