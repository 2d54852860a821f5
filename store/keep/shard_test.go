package keep

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"cairn/store"
)

// objects lists the objects in it.
type objects []store.Object

func (l objects) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		for _, o := range l {
			if strings.HasPrefix(o.Name, prefix) && !yield(o, ctx.Err()) {
				return
			}
		}
	}
}

// many returns the objects of n chunks whose digests begin with start.
func many(start string, n int) (l objects) {
	for i := range n {
		hex := start + fmt.Sprintf("%0*x", 64-len(start), i*7919)
		l = append(l, store.Object{Name: hex[:4] + "/" + hex + ".cacnk", Size: 1})
	}
	return l
}

// TestShards: every object is listed once, chunks in the order of their digests, in shards that are
// not too large.
func TestShards(t *testing.T) {
	foreign := objects{{Name: "README", Size: 1}, {Name: "f00", Size: 1}, {Name: "00ff/x", Size: 1}, {Name: "~", Size: 1}}
	wrong := objects{{Name: "ab/" + many("", 1)[0].Name[5:], Size: 1}}
	for name, c := range map[string]struct {
		l      objects
		shards int // of chunks
	}{
		"empty":                 {nil, 0},
		"small":                 {many("0", 1000), 1},
		"several listings":      {slices.Concat(many("0", 3000), many("a", 3000), many("ff", 10)), 3},
		"two levels":            {slices.Concat(many("a0", maxShardChunks-5), many("a1", 10), many("ab", 7), many("b", 1)), 4},
		"as deep as they go":    {slices.Concat(many("abcd", maxShardChunks+1), many("abce", 1)), 2},
		"both forms":            {append(many("0", 10), store.Object{Name: strings.TrimSuffix(many("0", 1)[0].Name, ".cacnk"), Size: 1}), 1},
		"digits that are not 0": {many("9", 5000), 1},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && len(c.l) > maxShardChunks {
				t.Skip("it has many names")
			}
			var got []object
			var others, misnamed Others
			withChunks := 0
			for s, err := range listShards(t.Context(), slices.Concat(c.l, foreign, wrong)) {
				if err != nil {
					t.Fatal(err)
				}
				if len(s.objects) > 0 {
					withChunks++
				}
				got = append(got, s.objects...)
				others.add(s.foreign)
				misnamed.add(s.misnamed)
			}
			if withChunks != c.shards || len(got) != len(c.l) {
				t.Errorf("%d shards with %d chunks, want %d with %d", withChunks, len(got), c.shards, len(c.l))
			}
			inOrder := slices.IsSortedFunc(got, func(a, b object) int { return strings.Compare(a.digest.String(), b.digest.String()) })
			if others.Objects != 4 || misnamed.Objects != 1 || !inOrder {
				t.Errorf("%d foreign, %d misnamed, in order: %v", others.Objects, misnamed.Objects, inOrder)
			}
		})
	}
}

// TestShardsEnd: an error is the last value, and stopping early leaves nothing running (or
// synctest.Test would complain).
func TestShardsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := slices.Concat(many("0", 3000), many("a", 3000))
		for range listShards(t.Context(), l) {
			break
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		n, last := 0, error(nil)
		for _, last = range listShards(ctx, l) {
			n++
		}
		if n != 1 || !errors.Is(last, context.Canceled) {
			t.Errorf("cancelled: %d shards, the last with %v", n, last)
		}
	})
}

// TestParallelInOrder: the results come in order, and the concurrency is limited.
func TestParallelInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int64
		var got []int
		for v := range parallelInOrder(t.Context(), 20, 3, func(_ context.Context, i int) int {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			return i * i
		}) {
			synctest.Wait()
			got = append(got, v)
		}
		for i, v := range got {
			if v != i*i {
				t.Errorf("%d is %d", i, v)
			}
		}
		if len(got) != 20 || most.Load() > 3 {
			t.Errorf("%d values, %d at once", len(got), most.Load())
		}
	})
}
