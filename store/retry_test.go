package store_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/storetest"
)

func TestRetry(t *testing.T) {
	b := new(mem.Bucket)
	mustWrite(t, b, "x", []byte("data"))
	busy := &store.UnavailableError{Err: errors.New("429"), After: 30 * time.Second}
	fails := func(when storetest.When, err error) store.Reader {
		return storetest.Faulty(b, when, storetest.Fails(err))
	}
	const ms = time.Millisecond
	for name, test := range map[string]struct {
		r        store.Reader
		want     error
		from, to time.Duration // the expected duration
	}{
		"good":         {b, nil, 0, 0},
		"absent":       {fails(storetest.Always, store.ErrNotFound), store.ErrNotFound, 0, 0},
		"denied":       {fails(storetest.Always, store.ErrDenied), store.ErrDenied, 0, 0},
		"two failures": {fails(storetest.First(2), store.ErrUnavailable), nil, 375 * ms, 750 * ms},
		"retry after":  {fails(storetest.First(1), busy), nil, 30 * time.Second, 30 * time.Second},
		"down": {fails(storetest.Always, store.ErrUnavailable), store.ErrUnavailable,
			45 * time.Second, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				got, err := store.Retry(test.r, store.Policy{}).Read(t.Context(), "x", []byte("> "), 10)
				if !errors.Is(err, test.want) || err == nil && string(got) != "> data" {
					t.Errorf("Read = %q, %v; want %v", got, err, test.want)
				}
				if took := time.Since(start); took < test.from || took > test.to {
					t.Errorf("Read took %v, want %v to %v", took, test.from, test.to)
				}
			})
		})
	}
}

func TestRetryBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy := &store.UnavailableError{Err: errors.New("503"), After: 24 * time.Hour}
		down := storetest.Faulty(new(mem.Bucket), storetest.Always, storetest.Fails(busy))
		start := time.Now()
		_, err := store.Retry(down, store.Policy{Patience: 30 * time.Second}).Read(t.Context(), "x", nil, 10)
		if took := time.Since(start); !errors.Is(err, store.ErrUnavailable) || took != 8*time.Minute {
			t.Errorf("Read = %v after %v, want ErrUnavailable after eight minutes", err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		_, err = store.Retry(down, store.Policy{}).Read(ctx, "x", nil, 10)
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
			t.Errorf("Read = %v after %v, want its context's end", err, took)
		}
	})
}

func TestRetryStat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(mem.Bucket)
		mustWrite(t, b, "x", []byte("data"))
		r := store.Retry(&twiceDown{Reader: b}, store.Policy{})
		if size, err := r.Stat(t.Context(), "x"); size != 4 || err != nil {
			t.Errorf("Stat = %d, %v", size, err)
		}
	})
}

type twiceDown struct {
	store.Reader
	calls int
}

func (d *twiceDown) Stat(ctx context.Context, name string) (int64, error) {
	if d.calls++; d.calls <= 2 {
		return 0, store.ErrUnavailable
	}
	return d.Reader.Stat(ctx, name)
}

// uncertain is a bucket whose first writes lose their answers, and may or may not take effect.
type uncertain struct {
	*mem.Bucket
	write, loses int // calls so far, and calls that fail
	worked       bool
}

func (u *uncertain) lose(err error) error {
	if u.write++; u.write <= u.loses {
		return store.ErrUnavailable
	}
	return err
}

func (u *uncertain) Write(ctx context.Context, name string, data []byte) error {
	return u.lose(u.Bucket.Write(ctx, name, data))
}

func (u *uncertain) Create(ctx context.Context, name string, data []byte) error {
	if !u.worked && u.write < u.loses {
		return u.lose(nil)
	}
	return u.lose(u.Bucket.Create(ctx, name, data))
}

func TestRetryBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := store.RetryBucket(&uncertain{Bucket: new(mem.Bucket), loses: 2}, store.Policy{})
		mustWrite(t, b, "x", []byte("data"))
		if got := mustRead(t, b, "x"); string(got) != "data" {
			t.Errorf("Read = %q", got)
		}
		for _, err := range mustAs[store.Lister](t, b).List(t.Context(), "") {
			if err != nil {
				t.Errorf("List: %v", err)
			}
		}
		if err := mustAs[store.Remover](t, b).Remove(t.Context(), "x"); err != nil {
			t.Errorf("Remove: %v", err)
		}
		if _, is := store.As[store.Lister](store.RetryBucket(struct{ store.Bucket }{b}, store.Policy{})); is {
			t.Error("a bucket that lists nothing has become a Lister")
		}
	})
}

// TestRetryCreate: only a name taken by an attempt whose answer was lost counts as created.
func TestRetryCreate(t *testing.T) {
	for name, c := range map[string]struct {
		worked bool   // the lost attempt took effect
		before []byte // the object before
		want   error
	}{
		"lost answer":            {true, nil, nil},
		"lost request":           {false, nil, nil},
		"taken":                  {false, []byte("other"), store.ErrExists},
		"taken, answer lost too": {true, []byte("other"), store.ErrExists},
	} {
		synctest.Test(t, func(t *testing.T) {
			u := &uncertain{Bucket: new(mem.Bucket), loses: 1, worked: c.worked}
			want := []byte("data")
			if c.before != nil {
				mustWrite(t, u.Bucket, "x", c.before)
				want = c.before
			}
			err := mustAs[store.Creator](t, store.RetryBucket(u, store.Policy{})).Create(t.Context(), "x", []byte("data"))
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("%s: Create = %v, want %v", name, err, c.want)
			}
			if got := mustRead(t, u.Bucket, "x"); !bytes.Equal(got, want) {
				t.Errorf("%s: there is %q, want %q", name, got, want)
			}
		})
	}
}

// TestRetryCloses: Close reaches the wrapped reader.
func TestRetryCloses(t *testing.T) {
	c := &closable{Bucket: new(mem.Bucket)}
	store.Close(store.Retry(c, store.Policy{}))
	store.Close(store.RetryBucket(c, store.Policy{}))
	if c.closed != 2 {
		t.Errorf("closed %d times, want twice", c.closed)
	}
}

type closable struct {
	store.Bucket
	closed int
}

func (c *closable) Close() error { c.closed++; return nil }

func mustAs[T any](t *testing.T, r store.Reader) T {
	t.Helper()
	as, ok := store.As[T](r)
	if !ok {
		t.Fatalf("%v is not a %T", r, as)
	}
	return as
}
