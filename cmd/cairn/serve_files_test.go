package main

import "testing"

// TestDivideFiles: connections, requests and images get parts of any limit.
func TestDivideFiles(t *testing.T) {
	for _, tc := range []struct {
		limit, fixed int
		wanted, want fileShares
	}{
		{1 << 20, 0, fileShares{64, 128, 256, 0}, fileShares{64, 128, 256, 1<<20 - 32 - 64 - 128 - 256}},
		{1024, 3, fileShares{0, 128, 256, 0}, fileShares{0, 128, 256, 605}},
		{64, 0, fileShares{0, 128, 256, 0}, fileShares{0, 16, 8, 8}},
		{64, 0, fileShares{64, 128, 256, 0}, fileShares{8, 12, 6, 6}},
		{64, 6, fileShares{0, 4, 2, 0}, fileShares{0, 4, 2, 20}},
		{10, 0, fileShares{64, 128, 256, 0}, fileShares{1, 1, 1, 1}},
	} {
		if got := divideFiles(tc.limit, tc.fixed, tc.wanted); got != tc.want {
			t.Errorf("divideFiles(%d, %d, %+v) = %+v, want %+v", tc.limit, tc.fixed, tc.wanted, got, tc.want)
		}
	}
}

// TestMaxRequests: all requests together leave descriptors for the rest of the process.
func TestMaxRequests(t *testing.T) {
	for _, tc := range []struct{ files, stores, want int }{{64, 1, 16}, {64, 2, 8}, {64, 100, 1}, {10, 1, 1}, {1024, 1, 496}} {
		if got := maxRequests(tc.files, tc.stores); got != tc.want {
			t.Errorf("maxRequests(%d, %d) = %d, want %d", tc.files, tc.stores, got, tc.want)
		}
	}
}
