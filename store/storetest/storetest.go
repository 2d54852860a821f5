// Package storetest has a test suite for the contracts of package store, which every backend runs
// against the real service. It also has readers and buckets that fail as services do. Only tests
// import it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"cairn/store"
)

// Put stores an object directly in the store that a reader reads.
type Put func(name string, data []byte)

// Test checks the contract of store.Reader. Each call of open returns an empty store and a function
// that fills it.
func Test(t *testing.T, open func(t *testing.T) (store.Reader, Put)) {
	tests := map[string]func(*testing.T, store.Reader, Put){
		"read":       testRead,
		"names":      testNames,
		"bad names":  testBadNames,
		"absent":     testAbsent,
		"limit":      testLimit,
		"stream":     testStream,
		"concurrent": testConcurrent,
		"cancelled":  testCancelled,
		"location":   testLocation,

		"range":            testRange,
		"range after end":  testRangeAfterEnd,
		"range refused":    testRangeRefused,
		"range stops":      testRangeStops,
		"range concurrent": testRangeConcurrent,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r, put := open(t)
			test(t, r, put)
		})
	}
}

const noLimit = 1 << 40

// Bytes returns size bytes that depend on seed and do not compress.
func Bytes(seed uint64, size int) []byte {
	p := make([]byte, size)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	rand.NewChaCha8(key).Read(p)
	return p
}

func testRead(t *testing.T, r store.Reader, put Put) {
	for _, size := range []int{0, 1, 1000, 32 << 10, 300_000, 8 << 20} {
		name, want := fmt.Sprintf("size-%d", size), Bytes(1, size)
		put(name, want)
		got, err := r.Read(t.Context(), name, []byte("before"), noLimit)
		if err != nil {
			t.Fatalf("Read(%s): %v", name, err)
		}
		if !bytes.Equal(got, append([]byte("before"), want...)) {
			t.Errorf("Read(%s) returned %d other bytes, want %d after dst's own", name, len(got), size)
		}
		checkStat(t, r, name, int64(size))
	}
}

func testNames(t *testing.T, r store.Reader, put Put) {
	for _, name := range []string{
		"plain", "with.suffix", "abcd/below", "a/b/c/deep", "a space", "percent%2Fsign", "plus+hash#what?é",
		"..leading", "ab:colon", "-",
	} {
		put(name, []byte(name))
		checkRead(t, r, name, []byte(name))
		checkStat(t, r, name, int64(len(name)))
	}
}

func testBadNames(t *testing.T, r store.Reader, put Put) {
	put("x", []byte("x"))
	for _, name := range []string{"", ".", "..", "/x", "x/", "./x", "../x", "a/../x", "a//x", "x\x00", "\xff"} {
		if _, err := r.Read(t.Context(), name, nil, noLimit); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Read(%q) = %v, want a refusal", name, err)
		}
		if _, err := r.Stat(t.Context(), name); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Stat(%q) = %v, want a refusal", name, err)
		}
	}
}

func testAbsent(t *testing.T, r store.Reader, put Put) {
	put("dir/there", []byte("x"))
	for _, name := range []string{"absent", "dir/absent", "no/such/dir"} {
		_, err := r.Read(t.Context(), name, nil, noLimit)
		checkAbsent(t, "Read", name, err)
		_, err = r.Stat(t.Context(), name)
		checkAbsent(t, "Stat", name, err)
	}
	if _, err := r.Read(t.Context(), "dir", nil, noLimit); err == nil {
		t.Errorf("Read of a directory succeeded")
	}
}

func checkAbsent(t *testing.T, op, name string, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDenied) ||
		errors.Is(err, store.ErrUnavailable) {
		t.Errorf("%s(%s) = %v, want ErrNotFound alone", op, name, err)
	}
}

func testLimit(t *testing.T, r store.Reader, put Put) {
	put("ten", []byte("0123456789"))
	put("empty", nil)
	checkRead(t, r, "ten", []byte("0123456789"))
	for name, limit := range map[string]int64{"ten": 10, "empty": 0} {
		if _, err := r.Read(t.Context(), name, nil, limit); err != nil {
			t.Errorf("Read(%s) with limit %d: %v", name, limit, err)
		}
	}
	for _, limit := range []int64{9, 0} {
		if _, err := r.Read(t.Context(), "ten", nil, limit); !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("Read of 10 bytes with limit %d = %v, want ErrTooLarge", limit, err)
		}
	}
}

func testStream(t *testing.T, r store.Reader, put Put) {
	for _, size := range []int{0, 1, 300_000, 4 << 20} {
		name, want := fmt.Sprintf("size-%d", size), Bytes(1, size)
		put(name, want)
		var got []byte
		err := store.Stream(t.Context(), r, name, int64(size), func(in io.Reader) (err error) {
			got, err = io.ReadAll(in)
			return err
		})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("Stream(%s) = %d bytes, %v", name, len(got), err)
		}
	}
	const large = "size-4194304"
	enough := errors.New("enough")
	err := store.Stream(t.Context(), r, large, noLimit, func(in io.Reader) error {
		if n, err := io.ReadFull(in, make([]byte, 10)); n != 10 {
			t.Errorf("reading the first 10 bytes of a stream: %v", err)
		}
		return enough
	})
	if !errors.Is(err, enough) || errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Stream that use ends early = %v, want the error of use", err)
	}
	unused := func(io.Reader) error {
		t.Error("Stream called use, want an error before that")
		return nil
	}
	if err := store.Stream(t.Context(), r, large, 9, unused); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("Stream of 4 MiB with limit 9 = %v, want ErrTooLarge", err)
	}
	checkAbsent(t, "Stream", "absent", store.Stream(t.Context(), r, "absent", noLimit, unused))
	for _, name := range []string{"", "../x", "a//x"} {
		if err := store.Stream(t.Context(), r, name, noLimit, unused); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Stream(%q) = %v, want a refusal", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.Stream(ctx, r, large, noLimit, unused); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Stream = %v, want context.Canceled", err)
	}
}

func testConcurrent(t *testing.T, r store.Reader, put Put) {
	for i := range 8 {
		put(fmt.Sprint("object-", i), Bytes(uint64(i), 100_000))
	}
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			checkRead(t, r, fmt.Sprint("object-", i%8), Bytes(uint64(i%8), 100_000))
		})
	}
	wg.Wait()
}

func testCancelled(t *testing.T, r store.Reader, put Put) {
	want := Bytes(1, 1<<20)
	put("x", want)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Read(ctx, "x", nil, noLimit); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Read = %v, want context.Canceled", err)
	}
	if _, err := r.Stat(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Stat = %v, want context.Canceled", err)
	}
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		got, err := r.Read(ctx, "x", nil, noLimit)
		if err == nil && !bytes.Equal(got, want) || err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Read while cancelling = %d bytes, %v", len(got), err)
		}
	}
}

func testLocation(t *testing.T, r store.Reader, _ Put) {
	if r.String() == "" {
		t.Error("String is empty")
	}
}

func checkRead(t *testing.T, r store.Reader, name string, want []byte) {
	t.Helper()
	got, err := r.Read(t.Context(), name, nil, noLimit)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("Read(%s) = %d bytes, %v; want the %d that were put", name, len(got), err, len(want))
	}
}

func checkStat(t *testing.T, r store.Reader, name string, want int64) {
	t.Helper()
	if got, err := r.Stat(t.Context(), name); got != want || err != nil {
		t.Errorf("Stat(%s) = %d, %v; want %d", name, got, err, want)
	}
}
