package supply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

// objects is a bucket with n objects of size bytes each, named by their numbers.
func objects(t *testing.T, n, size int) *mem.Bucket {
	t.Helper()
	var b mem.Bucket
	for i := range n {
		if err := b.Write(t.Context(), fmt.Sprint(i), make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	return &b
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRate(2 << 20).Limit(objects(t, 20, 1<<20))
		begun := time.Now()
		for i := range 20 {
			if _, err := r.Read(t.Context(), fmt.Sprint(i), nil, 2<<20); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begun); took < 9500*time.Millisecond || took > 10500*time.Millisecond {
			t.Errorf("20 MiB at 2 MiB/s took %v, want about 10 s", took)
		}
	})
}

// TestRateBehindRetries: after a failure, so many concurrent reads use the rate that the rest of
// patience passes.
func TestRateBehindRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(1, 1000)
		rate := NewRate(10_000)
		busy := storetest.Faulty(bucketOf(t, s), storetest.First(1), storetest.Fails(store.ErrUnavailable))
		g := retrier{chunksOf(rate.Limit(busy)), store.Policy{}}
		others := rate.Limit(objects(t, 10, 200_000))
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if _, err := others.Read(t.Context(), fmt.Sprint(i), nil, 200_000); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		begun := time.Now()
		s.wantFrom(t, g)
		s.wantFrom(t, g)
		wg.Wait()
		if took := time.Since(begun); took < 150*time.Second {
			t.Errorf("2 MB at 10 kB/s took %v", took)
		}
	})
}

func TestRateCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewRate(1).Limit(objects(t, 1, 10)).Read(ctx, "0", nil, 10); err == nil {
		t.Error("Read = nil after cancellation")
	}
}

// TestBudget: many concurrent readers together get exactly the bytes of the budget.
func TestBudget(t *testing.T) {
	const size, budget = 1000, 12_345
	r := NewBudget(budget).Limit(objects(t, 40, size))
	var read atomic.Int64
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			out, err := r.Read(t.Context(), fmt.Sprint(i), nil, 5*size)
			read.Add(int64(len(out)))
			if err != nil && !errors.Is(err, ErrBudget) {
				t.Errorf("Read = %v, want ErrBudget", err)
			}
		})
	}
	wg.Wait()
	if got := read.Load(); got != budget/size*size {
		t.Errorf("%d bytes read of a budget of %d, in objects of %d", got, budget, size)
	}
}

func TestBudgetGivesBack(t *testing.T) {
	r := NewBudget(100).Limit(objects(t, 1, 60))
	if _, err := r.Read(t.Context(), "absent", nil, 100); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Read(absent) = %v, want ErrNotFound", err)
	}
	if _, err := r.Read(t.Context(), "0", nil, 50); !errors.Is(err, store.ErrTooLarge) || errors.Is(err, ErrBudget) {
		t.Errorf("Read over the caller's limit = %v, want ErrTooLarge", err)
	}
	if _, err := r.Read(t.Context(), "0", []byte("x"), 100); err != nil {
		t.Errorf("Read within the budget = %v", err)
	}
	if _, err := r.Read(t.Context(), "0", nil, 100); !errors.Is(err, ErrBudget) {
		t.Errorf("Read over the budget = %v, want ErrBudget", err)
	}
}

// TestBudgetChecksSizeFirst: an object beyond the budget is not requested.
func TestBudgetChecksSizeFirst(t *testing.T) {
	far := &countedReads{Bucket: objects(t, 2, 60)}
	r := NewBudget(100).Limit(far)
	for i, want := range []error{nil, ErrBudget} {
		if _, err := r.Read(t.Context(), fmt.Sprint(i), nil, 80); !errors.Is(err, want) {
			t.Errorf("Read(%d) = %v, want %v", i, err, want)
		}
	}
	if got := far.reads.Load(); got != 1 {
		t.Errorf("%d objects were read, want 1", got)
	}
}

type countedReads struct {
	*mem.Bucket
	reads atomic.Int64
}

func (c *countedReads) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	c.reads.Add(1)
	return c.Bucket.Read(ctx, name, dst, limit)
}

func (c *countedReads) StreamRange(
	ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error,
) error {
	c.reads.Add(1)
	return c.Bucket.StreamRange(ctx, name, off, n, use)
}

// TestBudgetCountsFailedReads: the bytes of an interrupted answer count.
func TestBudgetCountsFailedReads(t *testing.T) {
	b := new(mem.Bucket)
	mustWrite(t, b, "x", make([]byte, 600))
	broken := storetest.Faulty(b, storetest.First(1), storetest.Fails(&store.UnavailableError{Err: errors.New("cut"), Received: 500}))
	budget := NewBudget(1000)
	r := budget.Limit(broken)
	if _, err := r.Read(t.Context(), "x", nil, 700); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("Read = %v, want ErrUnavailable", err)
	}
	if _, err := r.Read(t.Context(), "x", nil, 700); !errors.Is(err, ErrBudget) {
		t.Errorf("Read of 600 bytes where 500 are left = %v, want ErrBudget", err)
	}
}

// TestNoHedge: a store without hedging gets one request, however late the answer is.
func TestNoHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(1, 1000)
		a := newOrigin(t, s)
		a.set(time.Minute, nil, false)
		from := a.member()
		from.noHedge = true
		s.wantFrom(t, remotes(from))
		if n := a.asked.Load(); n != 1 {
			t.Errorf("asked %d times, want once", n)
		}
	})
}

func TestMeter(t *testing.T) {
	b := new(mem.Bucket)
	mustWrite(t, b, "x", make([]byte, 1000))
	var c Counter
	r := meter{b, &c}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := r.Read(t.Context(), "x", []byte("before"), 1000); err != nil {
				t.Error(err)
			}
			if _, err := r.Read(t.Context(), "absent", nil, 1000); err == nil {
				t.Error("Read of an absent object succeeded")
			}
		})
	}
	wg.Wait()
	if c.Objects.Load() != 10 || c.Bytes.Load() != 10_000 {
		t.Errorf("counted %d objects, %d bytes; want 10, 10000", c.Objects.Load(), c.Bytes.Load())
	}
}
