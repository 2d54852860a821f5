package crashtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/test/need"
	"cairn/testimages"
)

// TestPeakMemory: assemble takes at most 64 MiB at default flags, whether it downloads or scans and reads seeds. On a busy
// machine, where Go's collector comes late, it may be some more.
func TestPeakMemory(t *testing.T) {
	t.Parallel()
	need.Root(t)
	size := int64(128 * mib)
	if long() {
		size = gib
	}
	r := releases{t.TempDir()}
	for _, name := range []string{"a", "b"} {
		must(t, "truncate", "-s", "0", r.image(name))
		for at := int64(0); at < size; at += 32 * mib { // a quarter of b is new
			number := uint64(at)
			if name == "b" && at/(32*mib)%4 == 1 {
				number++
			}
			patch(t, r.image(name), testimages.Random(number, 32*mib), at)
		}
		r.publish(t, name)
	}
	d, s := newDepot(t, r), newSlots(t, size, 512, r.image("a"), "")
	for _, args := range [][]string{
		{d.url + "/a.caibx", s.b},                  // downloads everything
		{d.url + "/b.caibx", s.b, "--seed", s.a},   // scans a seed
		{d.url + "/a.caibx", s.b},                  // scans the target
		{d.url + "/b.caibx", r.dir + "/b.out"},     // writes a file
		{d.url + "/a.caibx", s.b, "--seed", r.dir}, // several seeds
	} {
		got := peak(t, append([]string{"assemble", "--state", ""}, args...)...)
		t.Logf("%d MiB: %q", got/mib, args)
		if got > 80*mib {
			t.Errorf("cairn %q has taken %d bytes, want at most 80 MiB", args, got)
		}
	}
}

// peak returns the peak memory of a cairn command, which must succeed, as GNU time reports it. The kernel
// includes the memory of the process that starts a program, and this test needs more.
func peak(t testing.TB, args ...string) int64 {
	t.Helper()
	file := filepath.Join(t.TempDir(), "peak")
	must(t, "time", append([]string{"-f", "%M", "-o", file, "cairn"}, args...)...)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var blocks int64
	if _, err := fmt.Sscan(strings.TrimSpace(string(text)), &blocks); err != nil {
		t.Fatal(err)
	}
	return blocks * kib
}
