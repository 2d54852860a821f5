package main

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestPercent: the lines of --progress=percent are those of desync, at most two a second.
func TestPercent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := &progress{total: 400, begun: time.Now()}
		p.showPercent(&out, "Attempt 1: Assembling ")
		for done := range int64(400) {
			time.Sleep(20 * time.Millisecond)
			if done%50 == 0 {
				p.show(done, "", nil)
			}
		}
		p.show(400, "", nil)
		p.end()
		want := `Attempt 1: Assembling    0.00%
Attempt 1: Assembling    0.00%
Attempt 1: Assembling   12.50% 00m07s
Attempt 1: Assembling   25.00% 00m06s
Attempt 1: Assembling   37.50% 00m05s
Attempt 1: Assembling   50.00% 00m04s
Attempt 1: Assembling   62.50% 00m03s
Attempt 1: Assembling   75.00% 00m02s
Attempt 1: Assembling   87.50% 00m01s
Attempt 1: Assembling  100.00%
Attempt 1: Assembling  100.00% 8s
`
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("lines (-want +got):\n%s", diff)
		}
	})
}

// TestPercentEnds: the last line says how far an unfinished job came. An empty image is done.
func TestPercentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			done, total int64
			want        string
		}{
			{0, 0, "   0.00%\n 100.00% 2m34s\n"},
			{0, 10, "   0.00%\n   0.00% 2m34s\n"},
			{5, 10, "   0.00%\n  50.00%\n  50.00% 2m34s\n"},
		} {
			var out bytes.Buffer
			p := &progress{total: c.total, begun: time.Now()}
			p.showPercent(&out, "")
			if c.done > 0 {
				p.show(c.done, "", nil)
				p.show(c.done, "", nil) // too early for another line
			}
			time.Sleep(154*time.Second + time.Millisecond)
			if p.end(); out.String() != c.want {
				t.Errorf("%d of %d bytes: lines are %q, want %q", c.done, c.total, out.String(), c.want)
			}
		}
	})
}

func TestRemainingTime(t *testing.T) {
	for _, c := range []struct {
		done, total int64
		elapsed     time.Duration
		want        string
	}{
		{0, 100, time.Minute, ""},
		{100, 100, time.Minute, ""},
		{50, 100, 900 * time.Millisecond, ""},
		{50, 100, 9 * time.Second, " 00m09s"},
		{1, 2, 154 * time.Second, " 02m34s"},
		{1, 3, time.Hour, " 2h00m00s"},
		{1, 101, time.Hour, " 4d4h00m00s"},
	} {
		if got := remainingTime(c.done, c.total, c.elapsed); got != c.want {
			t.Errorf("remainingTime(%d, %d, %v) = %q, want %q", c.done, c.total, c.elapsed, got, c.want)
		}
	}
}
