package supply

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/store"
	"cairn/store/storetest"
)

func TestRetryForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSample(1, 1000)
		back := time.Now().Add(30 * time.Hour)
		g := storetest.GetterFunc(func(ctx context.Context, d blob.Digest, dst []byte) error {
			if time.Now().Before(back) {
				return store.ErrUnavailable
			}
			return store.GetOne(ctx, chunksOf(bucketOf(t, s)), d, dst)
		})
		var told []time.Duration
		s.wantFrom(t, retrier{g, store.Policy{Patience: -1, Waiting: func(err error, wait time.Duration) {
			if !errors.Is(err, store.ErrUnavailable) {
				t.Errorf("told of %v, want what failed", err)
			}
			told = append(told, wait)
		}}})
		if len(told) < 10_000 || told[0] > 250*time.Millisecond || told[len(told)-1] > 10*time.Second {
			t.Errorf("told %d times, of waits from %v to %v", len(told), told[0], told[len(told)-1])
		}
	})
}

// TestRetryGetsSilence: a retry ends with patience, however late its answer is.
func TestRetryGetsSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		silent := storetest.GetterFunc(func(ctx context.Context, _ blob.Digest, _ []byte) error {
			calls++
			select {
			case <-time.After(30 * time.Second):
				return &store.UnavailableError{Err: errors.New("no answer")}
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		begun := time.Now()
		err := newSample(1, 1000).get(t, retrier{silent, store.Policy{Patience: 2 * time.Second}})
		if took := time.Since(begun); !errors.Is(err, store.ErrUnavailable) || took != 32*time.Second || calls != 2 {
			t.Errorf("Get = %v after %v and %d calls, want ErrUnavailable after 32 s", err, took, calls)
		}
	})
}

// TestRetryGetsInTime: a chunk that has arrived when patience ends is returned.
func TestRetryGetsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, calls := newSample(1, 1000), 0
		slow := storetest.GetterFunc(func(ctx context.Context, _ blob.Digest, dst []byte) error {
			if calls++; calls == 1 {
				return &store.UnavailableError{Err: errors.New("no answer")}
			}
			copy(dst, s.data)
			<-ctx.Done() // the answer was on its way
			return nil
		})
		if err := s.get(t, retrier{slow, store.Policy{Patience: 2 * time.Second}}); err != nil || calls != 2 {
			t.Errorf("Get = %v after %d calls, want success", err, calls)
		}
	})
}

// TestRetryGetsWhenAsked: a store that asks to wait for as long as patience lasts is retried then.
func TestRetryGetsWhenAsked(t *testing.T) {
	for _, after := range []time.Duration{20 * time.Second, 40 * time.Second, time.Minute, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			s, calls := newSample(1, 1000), 0
			busy := storetest.GetterFunc(func(ctx context.Context, d blob.Digest, dst []byte) error {
				if calls++; calls <= 3 {
					return &store.UnavailableError{Err: errors.New("503"), After: after}
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				copy(dst, s.data)
				return nil
			})
			if err := s.get(t, retrier{busy, store.Policy{}}); err != nil || calls != 4 {
				t.Errorf("Get from a store that says Retry-After: %v = %v after %d calls, want success after 4", after, err, calls)
			}
		})
	}
}
