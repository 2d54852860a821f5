// Package bitset is a fixed number of bits that many goroutines read and change without a lock.
package bitset

import (
	"math/bits"
	"sync/atomic"
)

// Set is a set of the numbers from 0 up to a length. Safe for concurrent use; each method is atomic for each
// bit, and none for several.
type Set struct {
	words []atomic.Uint64
	n     int
}

// New is the empty set of numbers below n.
func New(n int) *Set { return &Set{make([]atomic.Uint64, (n+63)/64), n} }

// Len is the length that New was given.
func (s *Set) Len() int { return s.n }

// Has says whether i is in the set.
func (s *Set) Has(i int) bool { return s.words[i/64].Load()>>(i%64)&1 != 0 }

// Add puts i in, and says whether it was not there before.
func (s *Set) Add(i int) bool {
	bit := uint64(1) << (i % 64)
	return s.words[i/64].Or(bit)&bit == 0
}

// Remove takes i out, and says whether it was there.
func (s *Set) Remove(i int) bool {
	bit := uint64(1) << (i % 64)
	return s.words[i/64].And(^bit)&bit != 0
}

// Every says whether all of lo up to but not including hi are in the set.
func (s *Set) Every(lo, hi int) bool {
	for i := lo; i < hi; i++ {
		if !s.Has(i) {
			return false
		}
	}
	return true
}

// Count is how many numbers are in the set.
func (s *Set) Count() (n int) {
	for i := range s.words {
		n += bits.OnesCount64(s.words[i].Load())
	}
	return n
}

// AppendTo appends the set as bytes, eight numbers each, the lowest in the lowest bit.
func (s *Set) AppendTo(p []byte) []byte {
	for i := range s.words {
		w := s.words[i].Load()
		for b := range min(8, (s.n+7)/8-8*i) {
			p = append(p, byte(w>>(8*b)))
		}
	}
	return p
}

// Load makes the set what AppendTo has written; p has a bit for each number, and none besides.
func (s *Set) Load(p []byte) {
	for i := range s.words {
		var w uint64
		for b := range min(8, len(p)-8*i) {
			w |= uint64(p[8*i+b]) << (8 * b)
		}
		s.words[i].Store(w)
	}
}
