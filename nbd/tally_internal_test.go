package nbd

import (
	"fmt"
	"testing"
)

// TestTotalsAreBounded: exports that come and go do not pile up, and nothing that was counted is lost.
func TestTotalsAreBounded(t *testing.T) {
	var s Server
	const names = maxTotals + 100
	for i := range names {
		seat := s.audience.enter("x", &Export{Name: fmt.Sprint("e", i)}, false)
		seat.count(request{command: CmdRead, length: 10}, nil)
		s.audience.leave(seat)
	}
	totals := s.Totals()
	var bytes int64
	for _, tally := range totals {
		bytes += tally.BytesRead
	}
	if len(totals) != maxTotals+1 || bytes != 10*names || totals[""].BytesRead != 1000 {
		t.Errorf("%d totals with %d bytes, want %d with %d", len(totals), bytes, maxTotals+1, 10*names)
	}
}

// TestCountCostsNoMemory: the hit path counts.
func TestCountCostsNoMemory(t *testing.T) {
	var a audience
	seat := a.enter("x", &Export{}, false)
	if n := testing.AllocsPerRun(1000, func() { seat.count(request{command: 77, length: 1}, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCount(b *testing.B) {
	var a audience
	seat := a.enter("x", &Export{}, false)
	for b.Loop() {
		seat.count(request{command: CmdRead, length: 4096}, nil)
	}
}
