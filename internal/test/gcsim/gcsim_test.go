// Package gcsim runs the protocol of gc and publishers against a simulated service, in many random schedules.
package gcsim

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
)

// simulate runs the schedule of a seed.
func simulate(t *testing.T, seed uint64, v variant, trace bool) (failure string, c counts, lines []string) {
	synctest.Test(t, func(*testing.T) {
		w := newWorld(seed, v)
		if trace {
			w.trace = []string{}
		}
		var err error
		if w.chance(0.85) {
			err = w.fill()
		}
		if err == nil {
			w.begin()
			w.run()
			if w.failure == "" {
				err = w.settle()
			}
		}
		if err != nil {
			w.fail("%v", err)
		}
		for _, a := range w.actors {
			a.cancel()
		}
		failure, c, lines = w.failure, w.counts, w.trace
	})
	return failure, c, lines
}

func TestSeed(t *testing.T) {
	seed, err := strconv.ParseUint(os.Getenv("CAIRN_SEED"), 10, 64)
	if err != nil {
		t.Skip()
	}
	failure, c, lines := simulate(t, seed, variant{}, true)
	t.Logf("%s\n%+v", strings.Join(lines, "\n"), c)
	if failure != "" {
		t.Error(failure)
	}
}

func TestSchedules(t *testing.T) {
	n := 300
	if s := os.Getenv("N"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	bad := 0
	var sum counts
	for seed := range uint64(n) {
		failure, c, _ := simulate(t, seed, variant{}, false)
		sum.add(c)
		if failure != "" {
			t.Errorf("seed %d: %s", seed, failure)
			if bad++; bad > 10 {
				break
			}
		}
	}
	t.Logf("%+v", sum)
}
