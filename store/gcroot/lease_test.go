package gcroot_test

import (
	"context"
	"errors"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/gcroot"
)

// TestUnanswered checks that a turn or a lease is not withdrawn after a request that a service may still carry out.
func TestUnanswered(t *testing.T) {
	unanswered := []error{store.ErrUnavailable, context.Canceled, context.DeadlineExceeded}
	answered := []error{nil, store.ErrDenied, store.ErrNotFound, store.ErrExists, errors.ErrUnsupported}
	for _, failure := range append(unanswered, answered...) {
		for _, oneMachine := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				d := open(t, new(mem.Bucket), gcroot.Options{OneMachine: oneMachine})
				expires := failure != nil && !oneMachine
				for _, err := range answered {
					expires = expires && !errors.Is(failure, err)
				}
				fails := func(context.Context) error { return failure }
				turn, err := d.Turn(t.Context(), 0)
				if err != nil {
					t.Fatal(err)
				}
				if err := turn.Do(t.Context(), fails); !errors.Is(err, failure) {
					t.Errorf("Turn.Do = %v, want %v", err, failure)
				}
				begun := time.Now()
				if err := turn.End(t.Context()); err != nil {
					t.Error(err)
				}
				lease, err := d.Lease(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begun); took > 2*time.Minute != expires {
					t.Errorf("after %v, the turn was in force for %v", failure, took)
				}
				if err := lease.Do(t.Context(), fails); !errors.Is(err, failure) {
					t.Errorf("Lease.Do = %v, want %v", err, failure)
				}
				begun = time.Now()
				if err := lease.End(t.Context()); err != nil {
					t.Error(err)
				}
				if turn, err = d.Turn(t.Context(), time.Hour); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(begun); took > 10*time.Minute != expires {
					t.Errorf("after %v, the lease was in force for %v", failure, took)
				}
				if err := turn.End(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestRetriedUnanswered: a request without an answer may still be carried out although its repetition succeeds, so the lease
// expires.
func TestRetriedUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := open(t, new(mem.Bucket), gcroot.Options{})
		lease, err := d.Lease(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		attempts := 0
		err = lease.Do(t.Context(), func(ctx context.Context) error {
			return store.Policy{}.Do(ctx, func() error {
				if attempts++; attempts == 1 {
					return store.ErrUnavailable
				}
				return nil
			})
		})
		if err != nil || attempts != 2 {
			t.Errorf("%d attempts: %v", attempts, err)
		}
		begun := time.Now()
		if err := lease.End(t.Context()); err != nil {
			t.Error(err)
		}
		turn, err := d.Turn(t.Context(), time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < 10*time.Minute {
			t.Errorf("the lease was in force for %v only", took)
		}
		if err := turn.End(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// refusing is a bucket that takes no new leases for a while.
type refusing struct {
	*mem.Bucket
	on atomic.Bool
}

func (b *refusing) Write(ctx context.Context, name string, data []byte) error {
	if b.on.Load() && strings.HasPrefix(name, "leases/") {
		return store.ErrUnavailable
	}
	return b.Bucket.Write(ctx, name, data)
}

// TestOldTime: a publisher whose lease was not renewed for a while does not take a fresh pack turn for one from the future,
// and remove it.
func TestOldTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &refusing{Bucket: new(mem.Bucket)}
		d := open(t, b, gcroot.Options{})
		lease, err := d.Lease(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b.on.Store(true)
		time.Sleep(5 * time.Minute)
		turn, err := d.PackTurn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := lease.AwaitPackTurns(t.Context()); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("AwaitPackTurns beside a pack turn = %v, want ErrUnavailable", err)
		}
		if err := turn.Do(t.Context(), func(context.Context) error { return nil }); err != nil {
			t.Errorf("the pack turn: %v", err)
		}
		b.on.Store(false)
		if err := errors.Join(turn.End(t.Context()), lease.End(t.Context())); err != nil {
			t.Error(err)
		}
	})
}

// TestOverlap checks that each object of a renewed announcement is there together with the next one for a while, so
// that a listing finds one of them.
func TestOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(mem.Bucket)
		d := open(t, b, gcroot.Options{})
		lease, err := d.Lease(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		first, last := map[string]time.Time{}, map[string]time.Time{}
		for range 3600 {
			time.Sleep(time.Second)
			for o := range b.List(t.Context(), "leases/") {
				last[o.Name] = time.Now()
				if first[o.Name].IsZero() {
					first[o.Name] = time.Now()
				}
			}
		}
		if err := lease.End(t.Context()); err != nil {
			t.Error(err)
		}
		if len(first) < 30 {
			t.Errorf("an hour has %d renewals", len(first))
		}
		for name, begun := range first {
			overlapping := 0
			for other := range first {
				if first[other].After(begun) && last[name].Sub(first[other]) > 50*time.Second {
					overlapping++
				}
			}
			if overlapping == 0 && time.Since(last[name]) > 2*time.Second {
				t.Errorf("%s was removed %v after it appeared, and no other one was there for 50 s", name, last[name].Sub(begun))
			}
		}
	})
}

// slowLists is a bucket whose listings of a prefix are slow for a number of times.
type slowLists struct {
	*mem.Bucket
	prefix string
	times  int
}

func (b *slowLists) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	if prefix == b.prefix && b.times > 0 {
		b.times--
		time.Sleep(time.Minute)
	}
	return b.Bucket.List(ctx, prefix)
}

// TestSlowLook checks that a listing that takes longer than two objects of an announcement overlap decides nothing.
func TestSlowLook(t *testing.T) {
	for times, fails := range map[int]bool{1: false, 9: false, 10: true} {
		synctest.Test(t, func(t *testing.T) {
			d := open(t, &slowLists{new(mem.Bucket), "leases/", times}, gcroot.Options{})
			turn, err := d.Turn(t.Context(), 0)
			if fails != (err != nil) || fails && (!errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "took longer")) {
				t.Errorf("after %d slow listings: %v", times, err)
			}
			if err == nil {
				if err := turn.End(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestDeadline checks that the context of a removal ends without a timer, which the sleep of a machine delays.
func TestDeadline(t *testing.T) {
	for ago, want := range map[time.Duration]error{0: nil, 59 * time.Second: nil, time.Minute: context.DeadlineExceeded, time.Hour: context.DeadlineExceeded} {
		synctest.Test(t, func(t *testing.T) {
			ctx := gcroot.NewDeadline(t.Context(), time.Now().Add(-ago), time.Minute)
			if err := ctx.Err(); !errors.Is(err, want) {
				t.Errorf("%v after its beginning: %v, want %v", ago, err, want)
			}
		})
	}
}

// TestWrittenAgain checks that an announcement that others have removed is not in force when a service carries out the
// request that wrote it once more.
func TestWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fragile{Bucket: new(mem.Bucket)}
		lease, err := open(t, b, gcroot.Options{}).Lease(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b.fails.Store(true) // as if the process was stopped
		time.Sleep(11 * time.Minute)
		b.fails.Store(false)
		if err := lease.Check(t.Context()); !errors.Is(err, gcroot.ErrLapsed) {
			t.Errorf("a lease that was not renewed for 11 minutes, but is there: %v", err)
		}
		if err := lease.End(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// fragile is a bucket whose writes fail for a while.
type fragile struct {
	*mem.Bucket
	fails atomic.Bool
}

func (b *fragile) Write(ctx context.Context, name string, data []byte) error {
	if b.fails.Load() {
		return store.ErrUnavailable
	}
	return b.Bucket.Write(ctx, name, data)
}

// TestPackTurns: a pack turn does not wait for a lease. A publisher waits until there is none; one that was left expires,
// and a publisher whose lease has lapsed learns that instead of waiting.
func TestPackTurns(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(t *testing.T, b *mem.Bucket, turn *gcroot.Turn)
		took time.Duration
		want error
	}{
		"ended": {func(t *testing.T, _ *mem.Bucket, turn *gcroot.Turn) {
			t.Helper()
			time.Sleep(time.Minute)
			if err := turn.End(t.Context()); err != nil {
				t.Error(err)
			}
		}, time.Minute, nil},
		"left": {func(t *testing.T, _ *mem.Bucket, turn *gcroot.Turn) {
			t.Helper()
			_ = turn.Do(t.Context(), func(context.Context) error { return store.ErrUnavailable })
			if err := turn.End(t.Context()); err != nil { // it may still be carried out, so the turn expires
				t.Error(err)
			}
		}, 2 * time.Minute, nil},
		"the lease has lapsed": {func(t *testing.T, b *mem.Bucket, turn *gcroot.Turn) {
			t.Helper()
			removeAll(t, b, "leases/")
			time.Sleep(time.Hour)
			_ = turn.End(t.Context())
		}, 0, gcroot.ErrLapsed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := new(mem.Bucket)
				d := open(t, b, gcroot.Options{})
				lease, err := d.Lease(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				turn, err := d.PackTurn(t.Context())
				if err != nil || time.Since(begun) > time.Second {
					t.Fatalf("PackTurn beside a publisher: %v after %v", err, time.Since(begun))
				}
				if l, err := d.List(t.Context()); err != nil || l.Turns != 1 || l.Leases != 1 || len(l.Others) > 0 {
					t.Errorf("the listing: %+v, %v", l, err)
				}
				go c.end(t, b, turn)
				synctest.Wait()
				err = lease.AwaitPackTurns(t.Context())
				if took := time.Since(begun); !errors.Is(err, c.want) || took < c.took || took > c.took+2*time.Minute {
					t.Errorf("AwaitPackTurns = %v after %v", err, took)
				}
				if err := lease.End(t.Context()); err != nil {
					t.Error(err)
				}
				time.Sleep(2 * time.Hour)
			})
		})
	}
}
