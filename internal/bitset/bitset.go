// Package bitset implements a fixed-size set of bits that goroutines read and change without a lock.
package bitset

import (
	"math/bits"
	"sync/atomic"
)

// Set is a set of the numbers from 0 up to a length. Safe for concurrent use. Each change of a bit is atomic, but a
// method that handles several bits does not see or make all changes at once.
type Set struct {
	words []atomic.Uint64
	n     int
}

// New returns an empty set of the numbers below n.
func New(n int) *Set { return &Set{make([]atomic.Uint64, (n+63)/64), n} }

// Len returns the length passed to New.
func (s *Set) Len() int { return s.n }

// Has reports whether i is in the set.
func (s *Set) Has(i int) bool { return s.words[i/64].Load()>>(i%64)&1 != 0 }

// Add adds i, and reports whether it was missing before.
func (s *Set) Add(i int) bool {
	bit := uint64(1) << (i % 64)
	return s.words[i/64].Or(bit)&bit == 0
}

// Remove removes i, and reports whether it was in the set.
func (s *Set) Remove(i int) bool {
	bit := uint64(1) << (i % 64)
	return s.words[i/64].And(^bit)&bit != 0
}

// Every reports whether all numbers in [lo, hi) are in the set.
func (s *Set) Every(lo, hi int) bool {
	for i := lo; i < hi; i++ {
		if !s.Has(i) {
			return false
		}
	}
	return true
}

// Count returns the number of numbers in the set.
func (s *Set) Count() (n int) {
	for i := range s.words {
		n += bits.OnesCount64(s.words[i].Load())
	}
	return n
}

// AppendTo appends the set as bytes of eight numbers each. The lowest number is in the lowest bit of the first byte.
func (s *Set) AppendTo(p []byte) []byte {
	for i := range s.words {
		w := s.words[i].Load()
		for b := range min(8, (s.n+7)/8-8*i) {
			p = append(p, byte(w>>(8*b)))
		}
	}
	return p
}

// Load replaces the set by one that AppendTo encoded. p must have a bit for each number of the set, and no other bit
// set.
func (s *Set) Load(p []byte) {
	for i := range s.words {
		var w uint64
		for b := range min(8, len(p)-8*i) {
			w |= uint64(p[8*i+b]) << (8 * b)
		}
		s.words[i].Store(w)
	}
}
