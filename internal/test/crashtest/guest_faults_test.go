package crashtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// guestFaults tests devices that fail, disappear, lose writes, and are in use in several ways.
func guestFaults(t *testing.T) {
	r := guestReleases("ext4")
	t.Run("seed fails", func(t *testing.T) { testSeedFails(t, r) })
	t.Run("target fails", func(t *testing.T) { testTargetFails(t, r) })
	t.Run("target lies", func(t *testing.T) { testTargetLies(t, r) })
	t.Run("target in use", func(t *testing.T) { testTargetInUse(t, r) })
	t.Run("clock", func(t *testing.T) { testClock(t, r) })
	t.Run("memory", func(t *testing.T) { testLittleMemory(t) })
}

const faultSize = 9 * mib // size of a slot; the releases have 7 MiB

// testSeedFails: chunks that a seed cannot give are downloaded.
func testSeedFails(t *testing.T, r releases) {
	below := filled(t, r.image("a"), faultSize)
	const third = faultSize / 3 / 512
	partly := newMapping(t, "partly", fmt.Sprintf("0 %d linear %s 0\n%d %d error\n%d %d linear %s %d\n",
		third, below, third, third, 2*third, third, below, 2*third))
	wholly := newMapping(t, "wholly", broken(below, faultSize, ""))
	target := newLoop(t, faultSize)
	for _, seed := range []string{partly, wholly} {
		for _, index := range []string{"", "=" + r.index("a")} {
			must(t, "dd", "if=/dev/zero", "of="+target, "bs=1M", "count=9", "conv=fsync")
			assemble(t, r.index("b"), target, "--state", "", "--seed", seed+index)
			wantImage(t, target, r.image("b"))
		}
	}
}

// testTargetFails: writes fail from the start, after some chunks, or the device is lost.
func testTargetFails(t *testing.T, r releases) {
	was, will := sum(t, r.image("c"), r.size(t, "b")), sum(t, r.image("b"), r.size(t, "b"))
	for _, c := range []struct {
		name  string
		fault func(below string) string
		after int // that many chunks
		want  outcome
	}{
		{"from the start", func(below string) string { return broken(below, faultSize, errorWrites) }, 0, isOld},
		{"later", func(below string) string { return broken(below, faultSize, errorWrites) }, 5, unfinished},
		{"lost", func(string) string { return fmt.Sprintf("0 %d error\n", faultSize/512) }, 5, unfinished},
	} {
		t.Run(c.name, func(t *testing.T) {
			below := filled(t, r.image("c"), faultSize)
			target := newMapping(t, "target", linear(below, faultSize))
			d := newDepot(t, r)
			d.meanwhile(func(n int) bool {
				if n == c.after {
					remap(t, "target", c.fault(below))
				}
				return true
			})
			args := []string{"assemble", d.url + "/b.caibx", target, "--state", "", "--memory", "1MiB", "--fetches", "1"}
			fails(t, failed, "input/output error", args...)
			remap(t, "target", linear(below, faultSize))
			d.meanwhile(nil)
			if left := judge(t, target, was, will, r.size(t, "b"), r.index("b")); left != c.want {
				t.Errorf("left %s, want %s", left, c.want)
			}
			assemble(t, args[1:]...)
			wantImage(t, target, r.image("b"))
		})
	}
}

// testTargetLies: the device loses writes without an error.
func testTargetLies(t *testing.T, r releases) {
	below := filled(t, r.image("c"), faultSize)
	target := newMapping(t, "liar", broken(below, faultSize, dropWrites))
	fails(t, damaged, "the medium does not hold what was written", "assemble", r.index("b"), target, "--state", "")
	wantImage(t, below, r.image("c"))
	assemble(t, r.index("b"), target, "--state", "", "--verify-after", "none")
}

// testTargetInUse: the error names every use, and only some checks can be lifted.
func testTargetInUse(t *testing.T, r releases) {
	state := []string{"--state", ""}
	refuses := func(node, words string, more ...string) {
		t.Helper()
		before := sum(t, node, faultSize)
		fails(t, refused, words, append(append([]string{"assemble", r.index("b"), node}, state...), more...)...)
		if sum(t, node, faultSize) != before {
			t.Errorf("%s was written to", node)
		}
	}
	mounted := filled(t, r.image("a"), faultSize)
	swap, held, fixed := newLoop(t, faultSize), newLoop(t, faultSize), newLoop(t, faultSize)
	point := t.TempDir()
	mount(t, mounted, point, "ext4", unix.MS_RDONLY)
	refuses(mounted, "is mounted on "+point)
	refuses(mounted, "is mounted on "+point, "--force", "in-dev", "--force", "loop-backing")
	fails(t, usage, "cannot be lifted", "assemble", r.index("b"), mounted, "--force", "mounted")

	must(t, "mkswap", swap)
	must(t, "swapon", swap)
	defer must(t, "swapoff", swap)
	refuses(swap, "is used as swap")

	newMapping(t, "holder", linear(held, faultSize))
	refuses(held, "is part of")

	must(t, "blockdev", "--setro", fixed)
	refuses(fixed, "read-only")
	must(t, "blockdev", "--setrw", fixed)

	second := strings.TrimSpace(must(t, "losetup", "-f"))
	must(t, "losetup", second, fixed)
	defer must(t, "losetup", "-d", second)
	refuses(fixed, second)
	assemble(t, append([]string{r.index("b"), fixed, "--force", "loop-backing"}, state...)...)
}

// testClock: the clock is at 1970, as on a machine without a battery.
func testClock(t *testing.T, r releases) {
	if err := unix.Settimeofday(&unix.Timeval{Sec: 3600}); err != nil {
		t.Fatal(err)
	}
	state, target := t.TempDir(), filled(t, r.image("c"), faultSize)
	seed := filled(t, r.image("a"), faultSize)
	d := newDepot(t, r)
	for range 2 {
		assemble(t, d.url+"/b.caibx", target, "--state", state, "--seed", seed)
		wantImage(t, target, r.image("b"))
	}
	file := filepath.Join(t.TempDir(), "file")
	assemble(t, d.url+"/b.caibx", file)
	wantImage(t, file, r.image("b"))
}

// testLittleMemory: a large image in a control group with 64 MiB, including the page cache.
func testLittleMemory(t *testing.T) {
	group := t.TempDir()
	mount(t, "none", group, "cgroup2", 0)
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(group, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cgroup.subtree_control", "+memory")
	if err := os.Mkdir(filepath.Join(group, "small"), 0o700); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(filepath.Join(group, "small"))
	write("small/memory.max", "64M")
	r := guestReleases("noise")
	must(t, "sh", "-c", "echo $$ >"+group+`/small/cgroup.procs && exec cairn "$@"`, "sh",
		"assemble", r.index("x"), "/dev/vdb", "--state", "", "--memory", "24MiB")
	wantImage(t, "/dev/vdb", r.image("x"))
	events, err := os.ReadFile(filepath.Join(group, "small/memory.events"))
	if err != nil || !strings.Contains(string(events), "oom_kill 0") {
		t.Errorf("%s, %v", events, err)
	}
}
