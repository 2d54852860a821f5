package main

import (
	"math"
	"runtime/debug"
	"testing"
)

// TestMemoryLimit: the limit of the process follows the flags and the indexes of open images, and GOMEMLIMIT.
func TestMemoryLimit(t *testing.T) {
	const mib = 1 << 20
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(math.MaxInt64))
	f := serveFlags{maxConns: 14, inFlight: 48 * mib}
	f.memory = 32 * mib
	f.memoryLimit()(100 * mib)
	if got := debug.SetMemoryLimit(-1); got != (32+48+14+16+100)*mib {
		t.Errorf("the limit is %d MiB", got/mib)
	}
	debug.SetMemoryLimit(50 * mib)
	f.memoryLimit()(0)
	if got := debug.SetMemoryLimit(-1); got != 50*mib {
		t.Errorf("the limit is %d MiB, and GOMEMLIMIT 50", got/mib)
	}
}
