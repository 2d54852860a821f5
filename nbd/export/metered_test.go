package export

import (
	"context"
	"errors"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/supply"
)

// TestStoreNames: names in the metrics are unique, even if only secrets tell the stores apart.
func TestStoreNames(t *testing.T) {
	var stores []*meteredStore
	names := make(map[string]bool)
	for _, token := range []string{"a", "b", "c", "d"} {
		at, err := locate.Parse("https://images.example.com/default.castr?token=" + token)
		if err != nil {
			t.Fatal(err)
		}
		name := unusedName(stores, []locate.Location{at}, blob.SHA512_256)
		stores = append(stores, newMeteredStore(name, nil))
	}
	for _, st := range stores {
		if names[st.name] || strings.Contains(st.name, "token") {
			t.Errorf("a store is named %q, besides %v", st.name, names)
		}
		names[st.name] = true
	}
}

// failingGetter is a getter that fails with err.
type failingGetter struct{ err error }

func (f *failingGetter) Get(_ context.Context, wants []store.Want, done func(i int, err error)) {
	for i := range wants {
		done(i, f.err)
	}
}

// TestMeteredStore: each outcome is counted. Only ErrUnavailable makes the store down, and the next
// request for the chunk a retry.
func TestMeteredStore(t *testing.T) {
	var from failingGetter
	s := newMeteredStore("/s", supply.New(store.Policy{Patience: 1}, supply.Options{}, &from))
	unavailable := &store.UnavailableError{Err: errors.New("away")}
	for i, tc := range []struct {
		err     error
		want    outcome
		up      bool
		retries int64
	}{
		{nil, gotChunk, true, 0}, {store.ErrNotFound, gotNotFound, true, 0}, {&store.CorruptError{}, gotDamaged, true, 0},
		{store.ErrDenied, gotDenied, true, 0}, {errors.New("x"), gotOther, true, 0}, {unavailable, gotUnavailable, false, 0},
		{unavailable, gotUnavailable, false, 1}, {nil, gotChunk, true, 2}, {nil, gotChunk, true, 2},
	} {
		from.err = tc.err
		before := s.results[tc.want]
		_ = store.GetOne(t.Context(), s, blob.Digest{1}, make([]byte, 1))
		st := s.status()
		if n := s.results[tc.want] - before; n != 1 || st.Up != tc.up || (st.Error == "") != tc.up || st.Retries != tc.retries {
			t.Errorf("%d: counted %d, the status is %+v; want %+v", i, n, st, tc)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	from.err = unavailable
	if _ = store.GetOne(ctx, s, blob.Digest{2}, make([]byte, 1)); s.results[gotCancelled] != 1 {
		t.Error("a cancelled request is not counted as such")
	}
	if st := s.status(); !st.Up || st.InFlight != 0 {
		t.Errorf("after a cancelled request the status is %+v", st)
	}
}
