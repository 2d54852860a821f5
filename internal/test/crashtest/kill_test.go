package crashtest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"cairn/testimages"
)

// again is the number of bytes that may be downloaded a second time after an interruption.
const again = 64 * mib

// TestKilled kills assemble at random moments, while it makes release b of c in a slot, and c of b, from the slot's
// content or with release a as a seed.
func TestKilled(t *testing.T) {
	eachKind(t, func(t *testing.T, r releases) {
		random := chance(t)
		d, s := newDepot(t, r), slotsOf(t, r, r.image("c"))
		names := []string{"c", "b"}
		count := map[outcome]int{}
		for n := 0; n < times()/2 || count[unfinished] == 0 && n < 10*times(); n++ { // one kill or more while it writes
			k := killed{r: r, d: d, slot: s.b, old: names[n%2], new: names[(n+1)%2]}
			k.args = []string{d.url + "/" + k.new + ".caibx", s.b, "--state", ""}
			if n/2%2 == 1 {
				k.args = append(k.args, "--seed", s.a+"="+r.index("a"))
			}
			count[k.test(t, time.Duration(random.Float64()*float64(k.typical(t))))]++
		}
		t.Logf("left: %v", count)
		if count[unfinished] == 0 {
			t.Error("no moment was in the midst of the work")
		}
	})
}

// killed is an assemble to be killed.
type killed struct {
	r        releases
	d        *depot
	slot     string
	old, new string
	args     []string
}

// typical returns a little more than the job's duration. It restores the slot.
func (k killed) typical(t testing.TB) time.Duration {
	t.Helper()
	begun := time.Now()
	assemble(t, k.args...)
	took := time.Since(begun)
	fill(t, k.slot, k.r.image(k.old))
	k.d.news()
	return took + took/10
}

// test kills the job at a moment, judges the slot, and assembles again.
func (k killed) test(t testing.TB, moment time.Duration) outcome {
	t.Helper()
	size := k.r.size(t, k.new)
	old, new := sum(t, k.slot, size), sum(t, k.r.image(k.new), size)
	start(t, "cairn", append([]string{"assemble"}, k.args...)...).killAt(t, moment)
	left := judge(t, k.slot, old, new, size, k.r.index(k.new))
	wantAgain(t, k.d, func() { assemble(t, k.args...) })
	wantImage(t, k.slot, k.r.image(k.new))
	if t.Failed() {
		t.Fatalf("killed after %v, which left %s", moment, left)
	}
	return left
}

// wantAgain checks that the run after an interrupted one fetches few chunks a second time.
func wantAgain(t testing.TB, d *depot, run func()) {
	t.Helper()
	before := d.news()
	run()
	var twice int64
	for name, n := range d.news() {
		if _, was := before[name]; was {
			twice += n
		}
	}
	if twice > again {
		t.Errorf("%d bytes were downloaded twice, want at most %d", twice, int64(again))
	}
}

// TestKilledDownload kills assemble during a download much larger than the limit of repeated bytes, onto a device and
// into a file. The next run continues with a file's partial content.
func TestKilledDownload(t *testing.T) {
	t.Parallel()
	const size = 160 * mib
	r := single(t, testimages.Random(8, size))
	d := newDepot(t, r)
	s := newSlots(t, size, 512, "", "")
	random := chance(t)
	chunks := r.read(t, "x").Len()
	dir := t.TempDir()
	for _, target := range []string{s.b, filepath.Join(dir, "file")} {
		for n := range 2 {
			args := []string{"assemble", d.url + "/x.caibx", target, "--state", ""}
			at := chunks*2/8 + random.IntN(chunks/8)
			j := d.startAndKill(t, at, args...)
			if left := j.wait(t); left.status != -1 {
				t.Fatalf("not killed at chunk %d: %+v", at, left)
			}
			if _, err := os.Stat(target); target != s.b && err == nil {
				t.Error("the file has its name already")
			}
			d.meanwhile(nil)
			if n == 1 {
				wantAgain(t, d, func() { assemble(t, args[1:]...) })
			}
		}
		wantImage(t, target, r.image("x"))
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("beside the file are: %v, %v", left, err)
	}
}
