package nbd

import (
	"fmt"
	"testing"
)

// TestTotalsAreBounded: the totals of temporary exports are bounded, and no count is lost.
func TestTotalsAreBounded(t *testing.T) {
	var s Server
	const names = maxTotals + 100
	for i := range names {
		client := s.clients.addClient("x", &Export{Name: fmt.Sprint("e", i)}, false)
		client.countReply(request{command: CmdRead, length: 10}, nil)
		s.clients.removeClient(client)
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

// TestCountCostsNoMemory: the hit path counts without allocating.
func TestCountCostsNoMemory(t *testing.T) {
	var table clientTable
	client := table.addClient("x", &Export{}, false)
	if n := testing.AllocsPerRun(1000, func() { client.countReply(request{command: 77, length: 1}, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCount(b *testing.B) {
	var table clientTable
	client := table.addClient("x", &Export{}, false)
	for b.Loop() {
		client.countReply(request{command: CmdRead, length: 4096}, nil)
	}
}
