package supply

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/store"
	"cairn/store/storetest"
)

// jumpyClock is a clock that jumps, as the clock of a stopped process does.
type jumpyClock struct{ jumped atomic.Int64 }

func (c *jumpyClock) now() time.Time       { return time.Now().Add(time.Duration(c.jumped.Load())) }
func (c *jumpyClock) jump(d time.Duration) { c.jumped.Add(int64(d)) }

// getterFunc returns a getter that calls get with the number of the call.
func getterFunc(get func(ctx context.Context, call int) error) store.Getter {
	var calls atomic.Int64
	return storetest.GetterFunc(func(ctx context.Context, _ blob.Digest, _ []byte) error { return get(ctx, int(calls.Add(1))) })
}

// TestStoppedRequests: requests that fail because the process was stopped are repeated at once. They neither count against
// the store, nor change the estimates of the link, nor are they reported.
func TestStoppedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var clock jumpyClock
		first := getterFunc(func(_ context.Context, call int) error {
			if call == 1 {
				clock.jump(time.Hour)
				return &store.UnavailableError{Err: errors.New("timeout")}
			}
			return nil
		})
		second := getterFunc(func(context.Context, int) error {
			t.Error("the second store is asked")
			return store.ErrNotFound
		})
		s := New(store.Policy{Waiting: func(failed error, _ time.Duration) { t.Errorf("waits because of %v", failed) }}, Options{}, first, second)
		s.pauses.Now = clock.now
		begun := time.Now()
		if err := store.GetOne(t.Context(), s, blob.Digest{}, nil); err != nil || time.Since(begun) != 0 {
			t.Errorf("Get = %v after %v", err, time.Since(begun))
		}
		m := s.stores.members[0]
		if m.isFailing() || m.link.latencies.count != 0 || m.link.model.inFlight != 0 {
			t.Errorf("the stop counts: failing %v, %d latencies, %d in flight", m.isFailing(), m.link.latencies.count, m.link.model.inFlight)
		}
	})
}

// TestStopIsNotLate: a request that is late because the process was stopped is not sent a second time.
func TestStopIsNotLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var clock jumpyClock
		first := getterFunc(func(context.Context, int) error {
			time.Sleep(firstLate - time.Millisecond)
			clock.jump(time.Hour)
			time.Sleep(firstLate / 2)
			return nil
		})
		second := getterFunc(func(context.Context, int) error {
			t.Error("the second store is asked")
			return store.ErrNotFound
		})
		s := New(store.Policy{}, Options{}, first, second)
		s.pauses.Now = clock.now
		if err := store.GetOne(t.Context(), s, blob.Digest{}, nil); err != nil {
			t.Error(err)
		}
	})
}

// TestRepeatsAreFew: on a machine that is always late, a failing store is still found.
func TestRepeatsAreFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var clock jumpyClock
		calls := 0
		s := New(store.Policy{Patience: time.Millisecond}, Options{}, getterFunc(func(_ context.Context, call int) error {
			calls = call
			clock.jump(time.Minute)
			return store.ErrUnavailable
		}))
		s.pauses.Now = clock.now
		m := s.stores.members[0]
		err := m.get(t.Context(), store.Want{})
		if !errors.Is(err, store.ErrUnavailable) || calls != maxRepeats+1 || !m.isFailing() {
			t.Errorf("get = %v after %d calls, failing %v", err, calls, m.isFailing())
		}
	})
}

// TestStoppedRetry: the time of a stop during a retry does not count against patience.
func TestStoppedRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var clock jumpyClock
		unhedged := Options{Budget: 1}
		s := New(store.Policy{Patience: 10 * time.Second}, unhedged, getterFunc(func(ctx context.Context, call int) error {
			switch call {
			case 1:
				return store.ErrUnavailable
			case 2: // the attempt ends with its patience, which passes while the process is stopped
				<-ctx.Done()
				clock.jump(time.Minute)
				return ctx.Err()
			}
			return nil
		}))
		s.pauses.Now = clock.now
		if err := store.GetOne(t.Context(), s, blob.Digest{}, nil); err != nil {
			t.Error(err)
		}
	})
}
