package report

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/store"
)

// set is a store that holds the chunks, and tells their sizes. A chunk of the size -1 is an error.
type set map[blob.Digest]int64

var errStore = errors.New("the store failed")

func (s set) Stat(_ context.Context, d blob.Digest) (int64, error) {
	size, is := s[d]
	switch {
	case !is:
		return 0, store.ErrNotFound
	case size < 0:
		return 0, errStore
	}
	return size, nil
}

func (s set) Has(ctx context.Context, d blob.Digest) (bool, error) {
	_, err := s.Stat(ctx, d)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// index returns an index of chunks named by letters, each of 1000 bytes and as many as its place in the alphabet.
func index(t *testing.T, names string) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 1000, Avg: 2000, Max: 4000})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if _, err := b.Add(sizeOf(name), digest(name)); err != nil {
			t.Fatal(err)
		}
	}
	return b.Index()
}

func digest(name rune) blob.Digest { return blob.SHA512_256.Sum([]byte(string(name))) }
func sizeOf(name rune) int64       { return 1000 + int64(name-'a') }

func holding(names string) set {
	s := set{}
	for _, name := range names {
		s[digest(name)] = sizeOf(name) / 2
	}
	return s
}

func infosOf(names string) (infos []ChunkInfo) {
	for _, name := range names {
		infos = append(infos, ChunkInfo{digest(name), sizeOf(name), sizeOf(name) / 2})
	}
	return infos
}

func TestNewInfo(t *testing.T) {
	x := index(t, "abcabd")
	base := Info{Total: 6, Unique: 4, Size: 2*(1000+1001) + 1002 + 1003, Missing: 4, SizeNotInSeed: 4006, SizeMissing: 4006,
		ChunkSizeMin: 1000, ChunkSizeAvg: 2000, ChunkSizeMax: 4000}
	for name, c := range map[string]struct {
		from Sources
		want func(i *Info)
	}{
		"nothing": {Sources{}, func(*Info) {}},
		"stores": {Sources{Stores: []store.Haser{holding("ax"), holding("ab")}, Workers: 3}, func(i *Info) {
			i.InStore = 2
		}},
		"seeds": {Sources{Seeds: []*blob.Index{index(t, "axx"), index(t, "ad")}}, func(i *Info) {
			i.InSeed, i.Missing, i.SizeNotInSeed, i.SizeMissing = 2, 2, 2003, 2003
		}},
		"a seed and a cache": {Sources{Seeds: []*blob.Index{index(t, "ab")}, Caches: []store.Haser{holding("bc")}}, func(i *Info) {
			i.InSeed, i.InCache, i.Missing, i.SizeNotInSeed, i.SizeMissing = 2, 2, 1, 2005, 1003
		}},
		"stored sizes": {Sources{Caches: []store.Haser{holding("b")}, Chunks: infosOf("abcd")}, func(i *Info) {
			i.InCache, i.Missing, i.SizeMissing, i.SizeMissingInStore = 1, 3, 3005, 500+501+501
		}},
		"a stored size is unknown": {Sources{Chunks: append(infosOf("abc"), ChunkInfo{digest('d'), sizeOf('d'), 0})}, func(*Info) {}},
		"a chunk is not listed":    {Sources{Chunks: infosOf("abc")}, func(*Info) {}},
	} {
		want := base
		c.want(&want)
		got, err := NewInfo(t.Context(), x, c.from)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	_, err := NewInfo(t.Context(), x, Sources{Chunks: []ChunkInfo{{digest('a'), 5, 5}}})
	if err == nil || !strings.Contains(err.Error(), "has 5 bytes in the list of chunks, and 1000 in the index") {
		t.Errorf("a listed chunk of another size: %v", err)
	}
	for _, s := range []Sources{{Stores: []store.Haser{set{digest('c'): -1}}}, {Caches: []store.Haser{set{digest('c'): -1}}}} {
		if _, err := NewInfo(t.Context(), x, s); !errors.Is(err, errStore) {
			t.Errorf("a failed store: %v, want %v", err, errStore)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewInfo(ctx, x, Sources{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestInspectChunks(t *testing.T) {
	x := index(t, "abcab")
	got, err := InspectChunks(t.Context(), x, holding("a"), 2)
	want := []ChunkInfo{{digest('a'), 1000, 500}, {digest('b'), 1001, 0}, {digest('c'), 1002, 0}, {digest('a'), 1000, 500}, {digest('b'), 1001, 0}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	without, err := InspectChunks(t.Context(), index(t, "a"), nil, 0)
	text, _ := json.Marshal(without)
	if wantText := `[{"id":"` + digest('a').String() + `","uncompressed_size":1000}]`; err != nil || string(text) != wantText {
		t.Errorf("without a store: %s, %v, want %s", text, err, wantText)
	}
	if _, err := InspectChunks(t.Context(), x, set{digest('b'): -1}, 2); !errors.Is(err, errStore) {
		t.Errorf("a failed store: %v, want %v", err, errStore)
	}
}
