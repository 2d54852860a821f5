package main

import "testing"

// TestDivideFiles: connections, requests and images get parts of any limit.
func TestDivideFiles(t *testing.T) {
	for _, tc := range []struct {
		limit, conns, requests, fixed int
		want                          fileShares
	}{
		{1 << 20, 128, 256, 0, fileShares{128, 256, 1<<20 - 32 - 128 - 256}},
		{1024, 128, 256, 3, fileShares{128, 256, 605}},
		{64, 128, 256, 0, fileShares{16, 8, 8}},
		{64, 4, 2, 6, fileShares{4, 2, 20}},
		{10, 128, 256, 0, fileShares{2, 1, 1}},
	} {
		if got := divideFiles(tc.limit, tc.conns, tc.requests, tc.fixed); got != tc.want {
			t.Errorf("divideFiles(%d, %d, %d, %d) = %+v, want %+v", tc.limit, tc.conns, tc.requests, tc.fixed, got, tc.want)
		}
	}
}
