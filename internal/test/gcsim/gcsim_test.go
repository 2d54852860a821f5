// Package gcsim runs the protocol of gc and publishers in many random schedules against a simulated service. The code
// under test is the product's: release.Publisher, release.Outlet, gcroot.Dir and keep.Collect. Publishers, collectors
// and removers run in a synctest bubble, in which time is simulated. Each of their requests waits until a scheduler
// carries it out. The scheduler delays requests, loses them or their answers, carries them out late or twice, and
// crashes, interrupts and stops processes. A listing is carried out in parts, at several moments.
//
// A seed decides everything: the service, the processes, and each event. CAIRN_SEED repeats the schedule of one seed and
// prints its events. CAIRN_LONG runs a million schedules.
//
// In half of the schedules most publishers write packs, and the maps beside the indexes tell where their chunks are.
// release.Repack does not run here, since it opens locations by itself.
//
// Three things must hold at every moment. The chunks of each visible index are there. They stay for the grace after
// the index has gone, for the clients that have opened it. When all is quiet, the last collector leaves the chunks of
// the visible indexes and nothing else. The same schedules must find the faults of protocols that are known to be
// wrong (variants).
package gcsim

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"cairn/internal/test/need"
)

// TestMain runs a schedule on one processor, since only one of its goroutines runs at a time.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}

// simulate runs the schedule of a seed. Its events are in the trace of the result if they are wanted.
func simulate(t *testing.T, seed uint64, v variant, traced bool) *world {
	t.Helper()
	var w *world
	synctest.Test(t, func(*testing.T) {
		w = newWorld(seed, v)
		if traced {
			w.trace = []string{}
		}
		if err := w.runAll(); err != nil {
			w.fail("%v", err)
		}
	})
	return w
}

// replayed returns the seed of CAIRN_SEED.
func replayed(t *testing.T) (seed uint64, is bool) {
	t.Helper()
	text, is := os.LookupEnv("CAIRN_SEED")
	if !is {
		return 0, false
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("CAIRN_SEED: %v", err)
	}
	return seed, true
}

// TestSchedules runs many schedules of the real protocol.
func TestSchedules(t *testing.T) {
	if seed, is := replayed(t); is {
		w := simulate(t, seed, variant{}, true)
		t.Logf("%s\n%+v", strings.Join(w.trace, "\n"), w.setting)
		if w.failure != "" {
			t.Error(w.failure)
		}
		return
	}
	switch {
	case os.Getenv(seedsVariable) != "":
		var first, end uint64
		if _, err := fmt.Sscanf(os.Getenv(seedsVariable), "%d-%d", &first, &end); err != nil {
			t.Fatalf("%s: %v", seedsVariable, err)
		}
		runSchedules(t, first, end)
	case os.Getenv("CAIRN_LONG") != "":
		runInChildren(t, 1_000_000)
	case testing.Short() || need.Race:
		runSchedules(t, 0, 300)
	default:
		runSchedules(t, 0, 10_000).check(t)
	}
}

// runSchedules runs the schedules of the seeds from first to end.
func runSchedules(t *testing.T, first, end uint64) counts {
	t.Helper()
	var sum counts
	for seed := first; seed < end; seed++ {
		w := simulate(t, seed, variant{}, false)
		if sum.add(w.counts); w.failure != "" {
			t.Fatalf("%s\nCAIRN_SEED=%d prints the schedule", w.failure, seed)
		}
	}
	t.Logf("%d schedules, %+v", end-first, sum)
	return sum
}

// seedsVariable names the environment variable with the seeds of a child process.
const seedsVariable = "CAIRN_SEEDS"

// runInChildren runs schedules in a process for each processor.
func runInChildren(t *testing.T, schedules uint64) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	children := uint64(runtime.NumCPU())
	var running sync.WaitGroup
	for i := range children {
		running.Go(func() {
			child := exec.CommandContext(t.Context(), self, "-test.run=^TestSchedules$", "-test.v", "-test.timeout=0")
			child.Env = append(os.Environ(), fmt.Sprintf("%s=%d-%d", seedsVariable, schedules*i/children, schedules*(i+1)/children))
			out, err := child.CombinedOutput()
			if t.Log(string(out)); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
}

// check fails if events are missing without which the schedules prove little.
func (c counts) check(t *testing.T) {
	t.Helper()
	for event, n := range map[string]int{
		"published": c.published, "failed": c.failed, "lapsed": c.lapsed, "vanished": c.vanished, "waited": c.waited, "busy": c.busy,
		"collected": c.collected, "chunks": c.chunks, "crashed": c.crashed, "interrupted": c.interrupted, "stopped": c.stopped, "removed": c.removed,
	} {
		if n == 0 {
			t.Errorf("no schedule has an event of the kind %q", event)
		}
	}
}

// TestVariants checks that the schedules find the faults of protocols that are known to be wrong.
func TestVariants(t *testing.T) {
	const most = 10_000
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			if v.rare > 0 && (testing.Short() || need.Race) {
				t.Skip("it takes many schedules")
			}
			if seed, is := replayed(t); is {
				t.Log(strings.Join(simulate(t, seed, v, true).trace, "\n"))
				return
			}
			for seed := v.rare; seed < v.rare+most; seed++ {
				if w := simulate(t, seed, v, false); w.failure != "" {
					t.Logf("CAIRN_SEED=%d: %s", seed, w.failure)
					return
				}
			}
			t.Errorf("%d schedules found no fault", most)
		})
	}
}

// TestRepeat checks that a seed decides everything.
func TestRepeat(t *testing.T) {
	for seed := range uint64(50) {
		first, second := simulate(t, seed, variant{}, true), simulate(t, seed, variant{}, true)
		if slices.Equal(first.trace, second.trace) {
			continue
		}
		at := 0
		for at < min(len(first.trace), len(second.trace))-1 && first.trace[at] == second.trace[at] {
			at++
		}
		t.Fatalf("seed %d differs in event %d:\n%s\n%s", seed, at, first.trace[at], second.trace[at])
	}
}
