package store_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"cairn/store"
	"cairn/store/storetest"
)

// wants are the chunks, each with a place to put it.
func wants(samples []sample) []store.Want {
	var list []store.Want
	for _, s := range samples {
		list = append(list, store.Want{Digest: s.digest, Dst: make([]byte, len(s.data))})
	}
	return list
}

// onlyGet hides that a Getter can do more.
type onlyGet struct{ store.Getter }

func TestGetMany(t *testing.T) {
	for name, wrap := range map[string]func(store.Getter) store.Getter{
		"together":   func(g store.Getter) store.Getter { return g },
		"one by one": func(g store.Getter) store.Getter { return onlyGet{g} },
	} {
		t.Run(name, func(t *testing.T) { testGetMany(t, wrap) })
	}
}

func testGetMany(t *testing.T, wrap func(store.Getter) store.Getter) {
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
		name   string
		when   storetest.When
		fault  storetest.Fault
		failed func(error) bool // nil: it succeeds
	}{
		{"good", storetest.First(0), storetest.FlipsBit, nil},
		{"damaged once", storetest.Nth(5), storetest.FlipsBit, nil},
		{"other bytes once", storetest.Nth(5), storetest.Answers(mustRead(t, bucket, samples[0].packed())), nil},
		{"always damaged", storetest.Always, storetest.FlipsBit, corrupt},
		{"absent", storetest.Nth(20), storetest.Fails(store.ErrNotFound), is(store.ErrNotFound)},
		{"away", storetest.Nth(20), storetest.Fails(store.ErrUnavailable), is(store.ErrUnavailable)},
	} {
		list := wants(samples)
		err := store.GetMany(t.Context(), wrap(chunksOf(storetest.Faulty(bucket, c.when, c.fault))), list, make(store.Slots, 4))
		if c.failed != nil {
			if !c.failed(err) {
				t.Errorf("%s: GetMany = %v", c.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: GetMany = %v, want nil", c.name, err)
			continue
		}
		for i, s := range samples {
			if !bytes.Equal(list[i].Dst, s.data) {
				t.Errorf("%s: chunk %d is wrong", c.name, i)
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

func TestGetManyCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := newSample(1, 1000)
	if err := store.GetMany(ctx, chunksOf(bucketOf(t, s)), wants([]sample{s}), make(store.Slots, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("GetMany = %v, want %v", err, context.Canceled)
	}
}
