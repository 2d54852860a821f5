package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/internal/test/need"
)

// The limits of a process among strangers: those of the service that it runs in, and the flag that fits in them.
const (
	fewFiles    = 64
	littleKiB   = 128 << 10
	smallMemory = "--memory=32MiB"
)

// hostileTool builds the hostile client and server once for all tests.
var hostileTool = sync.OnceValues(func() (string, error) {
	file := filepath.Join(scratch, "hostile")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", file, "cairn/internal/test/hostile").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("building the hostile programs: %w\n%s", err, out)
	}
	return file, err
})

// racyCairn builds cairn with the race detector once for all tests.
var racyCairn = sync.OnceValues(func() (string, error) {
	file := filepath.Join(scratch, "cairn-race")
	return file, build(file, true)
})

// eachBuild runs a test with cairn as it is shipped, and with the race detector. The second one needs several times the
// memory, so only the first one must keep the limit. noise is the time of the hostility.
func eachBuild(t *testing.T, test func(t *testing.T, v victim, noise time.Duration)) {
	t.Helper()
	noise := 10 * time.Minute
	if os.Getenv("CAIRN_LONG") != "1" { // then other tests may run at the same time: nothing is measured
		t.Parallel()
		noise = 6 * time.Second
	}
	if !raceDetector {
		t.Run("plain", func(t *testing.T) { test(t, victim{program: need.Tool(t, "cairn")}, noise) })
	}
	t.Run("race", func(t *testing.T) {
		need.Tool(t, "gcc")
		file, err := racyCairn()
		if err != nil {
			t.Fatal(err)
		}
		test(t, victim{program: file, race: true}, min(noise, 30*time.Second))
	})
}

// victim is the program that strangers attack.
type victim struct {
	program string
	race    bool
}

// start starts cairn with few descriptors.
func (v victim) start(t testing.TB, args ...string) *job {
	t.Helper()
	script := fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, fewFiles)
	return startLimited(t, 6*patience, nil, "sh", append([]string{"-c", script, v.program}, forgetful(args)...)...)
}

// checkUse checks that a process kept the limit of memory so far, and returns its peak.
func (v victim) checkUse(t testing.TB, peakKiB int) {
	t.Helper()
	if peakKiB > littleKiB && !v.race {
		t.Errorf("cairn took %d KiB of memory, want at most %d", peakKiB, littleKiB)
	}
}

// checkLog checks that cairn saw no race, did not panic, and kept foreign texts in their lines.
func checkLog(t testing.TB, log string) {
	t.Helper()
	for _, words := range []string{"DATA RACE", "panic:", "fatal error:", "goroutine ", "\ncairn: error: forged", "\x1b", "\u009b", "\u202e"} {
		if at := strings.Index(log, words); at >= 0 {
			t.Errorf("cairn printed %q:\n%s", words, log[at:min(len(log), at+6000)])
		}
	}
}

// use is the memory and the descriptors of a process. The pages of its program file do not count: the kernel drops them
// when it needs the memory.
type use struct{ peakKiB, nowKiB, files int }

func (u use) String() string {
	return fmt.Sprintf("%d MiB of memory, %d MiB at the peak, %d descriptors", u.nowKiB>>10, u.peakKiB>>10, u.files)
}

// useOf returns the use of a running process. The kernel keeps its peak.
func useOf(t testing.TB, process int) (u use) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", process)
	status := string(readFile(t, dir+"status"))
	var program int
	for name, to := range map[string]*int{"VmHWM": &u.peakKiB, "VmRSS": &u.nowKiB, "RssFile": &program} {
		found := regexp.MustCompile(name + `:\s+(\d+) kB`).FindStringSubmatch(status)
		if found == nil {
			t.Fatalf("process %d has ended:\n%s", process, status)
		}
		*to, _ = strconv.Atoi(found[1])
	}
	u.peakKiB, u.nowKiB = u.peakKiB-program, u.nowKiB-program
	files, err := os.ReadDir(dir + "fd")
	if err != nil {
		t.Fatal(err)
	}
	u.files = len(files)
	return u
}

// awaitUse waits until a process has at most that many descriptors and that much memory.
func awaitUse(t testing.TB, process int, most use) use {
	t.Helper()
	for late := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		u := useOf(t, process)
		switch {
		case u.files <= most.files && u.nowKiB <= most.nowKiB:
			return u
		case time.Now().After(late):
			t.Errorf("after the noise the process has %v, and had %v before", u, most)
			return u
		}
	}
}

// startHostile starts a hostile program. CAIRN_SEED repeats its choices.
func startHostile(t testing.TB, kind string, args ...string) *job {
	t.Helper()
	tool, err := hostileTool()
	if err != nil {
		t.Fatal(err)
	}
	if seed := os.Getenv("CAIRN_SEED"); seed != "" {
		args = append([]string{"-seed", seed}, args...)
	}
	// With a low priority the program uses the time that others leave. A test of the victim's fairness would
	// otherwise test the kernel's scheduler.
	return startLimited(t, 6*patience, nil, "nice", append([]string{"-n", "19", tool, kind}, args...)...)
}

// endHostile ends a hostile program and logs what it did.
func endHostile(t testing.TB, j *job) {
	t.Helper()
	j.signal(t, syscall.SIGTERM)
	got := j.wait(t)
	t.Logf("%s%s", got.stderr, got.stdout)
	if got.status != 0 {
		t.Error("the hostile program failed")
	}
}
