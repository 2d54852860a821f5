package nbd_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/nbd"
	"cairn/nbd/nbdtest"
)

// TestHitsShareCalls counts the system calls of both ends for reads of resident bytes. Requests
// that arrive together are read together, and their replies are written together.
func TestHitsShareCalls(t *testing.T) {
	d := newLazy(data(mib))
	d.isResident = func(int64) bool { return true }
	conn := chooseDefault(t, startServer(t, &nbd.Server{}, &nbd.Export{Device: d}))
	conn.SetDeadline(time.Time{})
	const depth, rounds = 16, 200
	requests := bytes.Repeat(nbdtest.RequestBytes(1, nbdtest.Request{Offset: 4 * kib, Length: 4 * kib}), depth)
	replies := make([]byte, depth*(16+4*kib))
	before := calls(t)
	for range rounds {
		if _, err := conn.Write(requests); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, replies); err != nil {
			t.Fatal(err)
		}
	}
	// It is 2 writes, one of them the client's, and some 5 reads; a pair for each request would be
	// 2*depth.
	if n := calls(t) - before; n > rounds*depth {
		t.Errorf("%.1f calls for %d requests", float64(n)/rounds, depth)
	}
}

// calls returns the number of reads and writes of this process so far.
func calls(t *testing.T) int64 {
	t.Helper()
	text, err := os.ReadFile("/proc/self/io")
	if err != nil {
		need.Missing(t, "/proc/self/io cannot be read")
	}
	var rchar, wchar, reads, writes int64
	_, err = fmt.Sscanf(string(text), "rchar: %d\nwchar: %d\nsyscr: %d\nsyscw: %d\n", &rchar, &wchar, &reads, &writes)
	if err != nil {
		t.Fatal(err)
	}
	return reads + writes
}
