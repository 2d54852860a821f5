package lanes

import (
	"crypto/sha512"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/simd"
)

// TestGain: with AVX-512, hashing together takes at most half the CPU time of one after the other; it is about a
// quarter. The twin runs beside it, and one good round of many is enough, so that a busy machine does not matter.
func TestGain(t *testing.T) {
	if simd.Allowed() < simd.AVX512 {
		t.Skip("this machine has no AVX-512, or must not use it")
	}
	messages, dst := make([][]byte, 64), make([][32]byte, 64)
	data := random(9, 64<<10)
	for i := range messages {
		messages[i] = data
	}
	alone := func() {
		for i, m := range messages {
			dst[i] = sha512.Sum512_256(m)
		}
	}
	together := func() { Sum512_256(dst, messages) }
	together() // finds out what the machine has
	var one, all time.Duration
	for range 50 {
		one, all = threadTime(t, alone), threadTime(t, together)
		if 2*all <= one {
			return
		}
	}
	t.Errorf("together takes %v, one after the other %v", all, one)
}

// threadTime is the CPU time of f, which runs on one thread.
func threadTime(t *testing.T, f func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := threadClock(t)
	f()
	return threadClock(t) - before
}

func threadClock(t *testing.T) time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
		t.Fatal(err)
	}
	return time.Duration(now.Nano())
}
