package main

import (
	"iter"

	"cairn/nbd"
)

// contextCached is the metadata context in which bit 0 stands for bytes that a read has without the store.
const (
	contextCached = "x-cairn:cached"
	stateCached   = 1 << 0
)

var _ nbd.Describer = exported{}

// Contexts implements nbd.Describer.
func (e exported) Contexts() []string { return []string{contextCached} }

// States implements nbd.Describer.
func (e exported) States(_ string, off, n int64) iter.Seq[nbd.State] {
	return func(yield func(nbd.State) bool) {
		for length, here := range e.Cached(off, n) {
			s := nbd.State{Length: length}
			if here {
				s.Bits = stateCached
			}
			if !yield(s) {
				return
			}
		}
	}
}
