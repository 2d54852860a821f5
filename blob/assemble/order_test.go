package assemble

import (
	"slices"
	"testing"

	"cairn/seed"
)

// TestLocalAside: every chunk is assigned once. Long runs that need no store can be assigned first.
func TestLocalAside(t *testing.T) {
	zeros := make([]byte, 3<<20)
	image := slices.Concat(random(1, 1<<20), zeros, random(2, 2<<20), make([]byte, 100_000), random(3, 1<<20), zeros)
	plan := seed.NewPlan(index(t, image))
	const segment = 512 << 10
	for _, localFirst := range []func(n int) bool{
		func(int) bool { return true }, func(int) bool { return false }, func(n int) bool { return n%3 == 0 },
	} {
		o := newOrder(plan, 1, plan.Index.Len(), segment, -1)
		o.splitLocalRuns()
		if len(o.local) != 2 {
			t.Fatalf("%d runs need no store, want 2: %v", len(o.local), o.local)
		}
		taken := make([]int, plan.Index.Len())
		for n := 0; ; n++ {
			wantsLocal := localFirst(n) && len(o.local) > 0
			lo, hi, _ := o.nextRun(localFirst(n))
			if lo == hi {
				break
			}
			if size := plan.Index.At(hi-1).End() - plan.Index.At(lo).Offset; size > segment && hi-lo > 1 {
				t.Errorf("chunks %d to %d have %d bytes, more than a segment", lo, hi, size)
			}
			for i := lo; i < hi; i++ {
				taken[i]++
				if wantsLocal && plan.At(i).Kind == seed.Fetch {
					t.Errorf("chunk %d needs the store, and others do not", i)
				}
			}
		}
		for i, n := range taken {
			if n != min(i, 1) {
				t.Errorf("chunk %d was taken %d times", i, n)
			}
		}
	}
}
