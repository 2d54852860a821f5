package bitset

import (
	"bytes"
	"sync"
	"testing"
)

func TestSet(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 63, 64, 65, 200} {
		s := New(n)
		for i := 0; i < n; i += 3 {
			if s.Has(i) || !s.Add(i) || s.Add(i) || !s.Has(i) {
				t.Errorf("length %d: Add(%d) or Has is wrong", n, i)
			}
		}
		p := s.AppendTo(nil)
		if len(p) != (n+7)/8 || s.Count() != (n+2)/3 || s.Len() != n {
			t.Errorf("length %d: %d bytes, %d numbers in the set", n, len(p), s.Count())
		}
		back := New(n)
		back.Load(p)
		if !bytes.Equal(back.AppendTo(nil), p) {
			t.Errorf("length %d: Load(AppendTo) gives another set", n)
		}
		for i := range n {
			if back.Has(i) != (i%3 == 0) || back.Remove(i) != (i%3 == 0) || back.Has(i) {
				t.Errorf("length %d: Has or Remove(%d) is wrong", n, i)
			}
		}
	}
}

func TestEvery(t *testing.T) {
	s := New(100)
	for i := 10; i < 90; i++ {
		s.Add(i)
	}
	for _, c := range []struct {
		lo, hi int
		want   bool
	}{{10, 90, true}, {9, 90, false}, {10, 91, false}, {5, 5, true}, {60, 70, true}} {
		if got := s.Every(c.lo, c.hi); got != c.want {
			t.Errorf("Every(%d, %d) = %v, want %v", c.lo, c.hi, got, c.want)
		}
	}
}

// TestConcurrent checks that of concurrent calls of Add with a number exactly one returns true.
func TestConcurrent(t *testing.T) {
	s := New(640)
	var wg sync.WaitGroup
	var fresh [8]int
	for g := range fresh {
		wg.Go(func() {
			for i := range s.Len() {
				if s.Add(i) {
					fresh[g]++
				}
			}
		})
	}
	wg.Wait()
	sum := 0
	for _, n := range fresh {
		sum += n
	}
	if sum != 640 || s.Count() != 640 {
		t.Errorf("Add returned true %d times and the set has %d numbers, want 640", sum, s.Count())
	}
}
