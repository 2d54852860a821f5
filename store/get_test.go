package store_test

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"cairn/blob"
	"cairn/store"
	"cairn/store/storetest"
)

// wants returns wants for the chunks, each with its memory.
func wants(samples []sample) []store.Want {
	var list []store.Want
	for _, s := range samples {
		list = append(list, store.Want{Digest: s.digest, Dst: make([]byte, len(s.data))})
	}
	return list
}

// TestGetMany: each want has its own outcome, independent of the others.
func TestGetMany(t *testing.T) {
	var samples []sample
	for i := range 40 {
		samples = append(samples, newSample(uint64(i), 1000+i))
	}
	bucket := bucketOf(t, samples...)
	corrupt := func(err error) bool {
		_, ok := errors.AsType[*store.CorruptError](err)
		return ok
	}
	is := func(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }
	for _, c := range []struct {
		name     string
		when     storetest.When
		fault    storetest.Fault
		failures int64
		failed   func(error) bool
	}{
		{"good", storetest.First(0), storetest.FlipsBit, 0, nil},
		{"damaged once", storetest.Nth(5), storetest.FlipsBit, 0, nil},
		{"other bytes once", storetest.Nth(5), storetest.Answers(mustRead(t, bucket, samples[0].packed())), 0, nil},
		{"always damaged", storetest.Always, storetest.FlipsBit, 40, corrupt},
		{"absent", storetest.Nth(20), storetest.Fails(store.ErrNotFound), 1, is(store.ErrNotFound)},
		{"away", storetest.Nth(20), storetest.Fails(store.ErrUnavailable), 1, is(store.ErrUnavailable)},
	} {
		list, errs := wants(samples), make([]error, len(samples))
		var outcomes, failures atomic.Int64
		g := store.NewChunksAtOnce(storetest.Faulty(bucket, c.when, c.fault), blob.SHA512_256, 4)
		g.Get(t.Context(), list, func(i int, err error) {
			outcomes.Add(1)
			if errs[i] = err; err != nil {
				failures.Add(1)
			}
		})
		if n := outcomes.Load(); n != int64(len(list)) || failures.Load() != c.failures {
			t.Errorf("%s: %d outcomes, %d failures; want %d, %d", c.name, n, failures.Load(), len(list), c.failures)
		}
		for i, s := range samples {
			if errs[i] != nil && !c.failed(errs[i]) || errs[i] == nil && !bytes.Equal(list[i].Dst, s.data) {
				t.Errorf("%s: chunk %d is %v, and wrong", c.name, i, errs[i])
			}
		}
	}
}

func mustRead(t *testing.T, r store.Reader, name string) []byte {
	t.Helper()
	data, err := r.Read(t.Context(), name, nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestGetCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a, b := newSample(1, 1000), newSample(2, 1000)
	for _, samples := range [][]sample{{a}, {a, b}} {
		outcomes := 0
		store.NewChunksAtOnce(bucketOf(t, a, b), blob.SHA512_256, 1).Get(ctx, wants(samples), func(_ int, err error) {
			if outcomes++; !errors.Is(err, context.Canceled) {
				t.Errorf("Get = %v, want %v", err, context.Canceled)
			}
		})
		if outcomes != len(samples) {
			t.Errorf("%d outcomes of %d wants", outcomes, len(samples))
		}
	}
}

// TestGetAll: the first failure cancels the requests under way, and is the one returned.
func TestGetAll(t *testing.T) {
	broken := errors.New("broken")
	g := storetest.GetterFunc(func(ctx context.Context, _ blob.Digest, dst []byte) error {
		if len(dst) == 1 {
			return broken
		}
		<-ctx.Done()
		return ctx.Err()
	})
	list := []store.Want{{Dst: make([]byte, 2)}, {Dst: make([]byte, 1)}, {Dst: make([]byte, 2)}}
	if err := store.GetAll(t.Context(), g, list, nil); err != broken {
		t.Errorf("GetAll = %v, want what failed first", err)
	}
	if err := store.GetAll(t.Context(), g, nil, nil); err != nil {
		t.Errorf("GetAll of no wants = %v", err)
	}
}
