package transfer_test

import (
	"net/http"
	"testing"

	"cairn/internal/transfer"
)

// TestShared: an equal key gives the same transport, and no pool gives a new one each time.
func TestShared(t *testing.T) {
	type key struct{ n int }
	made := 0
	route := func() *http.Transport { made++; return new(http.Transport) }
	p := new(transfer.Pool)
	a, b, other := transfer.Shared(p, key{1}, route), transfer.Shared(p, key{1}, route), transfer.Shared(p, key{2}, route)
	if a != b || a == other || made != 2 {
		t.Errorf("two transports of one key are equal: %v; of two keys: %v; %d were made", a == b, a == other, made)
	}
	a, b = transfer.Shared(nil, key{1}, route), transfer.Shared(nil, key{1}, route)
	if a == b {
		t.Error("without a pool, a transport is shared")
	}
}
