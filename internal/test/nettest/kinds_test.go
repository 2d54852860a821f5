package nettest

import (
	"context"
	"strings"
	"testing"
	"time"

	"cairn/internal/test/netlab"
	"cairn/store"
)

// outcomes are the results of a job when each chunk fails once, and when it always fails, with one kind of fault. ""
// means success. A second store heals every fault.
var outcomes = map[netlab.Fault]struct{ once, forever string }{
	netlab.ServerError:   {"", "unavailable"},
	netlab.Burst:         {"", "unavailable"},
	netlab.Throttled:     {"", "unavailable"},
	netlab.ThrottledDate: {"", "unavailable"},
	netlab.ResetEarly:    {"", "unavailable"},
	netlab.ResetMidBody:  {"", "unavailable"},
	netlab.Truncated:     {"", "unavailable"},
	netlab.LongLength:    {"", "unavailable"},
	netlab.BadChunked:    {"", "unavailable"},
	netlab.SlowHeader:    {"", "unavailable"},
	netlab.SlowBody:      {"", "unavailable"},
	netlab.Silent:        {"", "unavailable"},
	netlab.ShortLength:   {"", "corrupt"},
	netlab.BitFlip:       {"", "corrupt"},
	netlab.OtherBytes:    {"", "corrupt"},
	netlab.Zeros:         {"", "corrupt"},
	netlab.Disguised:     {"", "corrupt"},
	netlab.WebPage:       {"", "unavailable"},
	// An answer of the server that is not retried.
	netlab.Denied:  {"denied", "denied"},
	netlab.Missing: {"not found", "not found"},
	// A chunk's name has no earlier content.
	netlab.Stale: {"", ""},
}

// TestEachFault: retries heal some faults, a second store heals all, and some are final.
func TestEachFault(t *testing.T) {
	t.Parallel()
	chunks := 96
	if testing.Short() {
		chunks = 24
	}
	r := newRelease(t, chunks)
	for _, kind := range netlab.AllFaults() {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			want, known := outcomes[kind]
			if !known {
				t.Fatal("no outcome is known")
			}
			once, forever := netlab.Of(1, 1, kind), netlab.Of(1, 1, kind)
			once.First, once.Length, forever.Length = 1, 1, 1
			wantClass(t, "once", assembled(t, r, from(patient, newRig(t, r, once))), want.once)
			wantClass(t, "for good", assembled(t, r, from(hasty, newRig(t, r, forever))), want.forever)
			faulty, good := newRig(t, r, forever), newRig(t, r, netlab.Faults{})
			wantClass(t, "with a second store", assembled(t, r, from(patient, faulty, good)), "")
			if kind != netlab.Stale && faulty.Total() == 0 {
				t.Error("nothing failed")
			}
		})
	}
}

func wantClass(t *testing.T, when string, err error, want string) {
	t.Helper()
	if got := class(err); got != want {
		t.Errorf("%s: %q (%v), want %q", when, got, err, want)
	}
	if err != nil && !strings.Contains(err.Error(), "http://127.0.0.1:") {
		t.Errorf("%s: %q does not name the store", when, err)
	}
}

// TestRetryAfter: Retry-After delays the next request, in seconds or until a date, and not longer.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	r := newRelease(t, 1)
	for _, kind := range []netlab.Fault{netlab.Throttled, netlab.ThrottledDate} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			f := netlab.Of(1, 1, kind)
			f.First, f.RetryAfter = 1, 2*time.Second
			g := newRig(t, r, f)
			begun := time.Now()
			err := within(t, func(ctx context.Context) error {
				return store.GetOne(ctx, from(patient, g), r.index.At(0).Digest, make([]byte, chunkSize))
			})
			if took := time.Since(begun); err != nil || took < 900*time.Millisecond { // a date has whole seconds
				t.Errorf("it took %v and gave %v, want about 2 s", took, err)
			}
		})
	}
}
