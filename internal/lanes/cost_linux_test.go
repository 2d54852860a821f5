package lanes

import (
	"crypto/sha512"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/internal/simd"
)

// TestGain checks that with AVX-512 hashing together takes at most half the CPU time of hashing one by one; about a
// quarter is typical. Both run in turn, and one good round is enough, so other load on the machine does not matter.
func TestGain(t *testing.T) {
	if simd.Allowed() < simd.AVX512 {
		t.Skip("this machine has no AVX-512, or it is disabled")
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
	together() // detects the CPU's features
	var one, all time.Duration
	for range 50 {
		one, all = threadTime(t, alone), threadTime(t, together)
		if 2*all <= one {
			return
		}
	}
	t.Errorf("hashing together took %v, one after the other %v, want at most half", all, one)
}

// threadTime returns the CPU time of f on one thread.
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
