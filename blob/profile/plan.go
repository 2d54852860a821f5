package profile

import (
	"cmp"
	"slices"

	"cairn/blob"
)

// Plan lists the chunks of an image to prefetch.
type Plan struct {
	Chunks  []int // numbers of x's chunks, in order, each once
	Known   int   // how many of them the profile names
	Guessed int   // how many of them replace changed chunks
	Unknown int   // number of entries without a chunk
}

// shift is the old and the new offset of a chunk that the profile names.
type shift struct{ was, is int64 }

// Plan returns the chunks of x that the profile stands for. A changed chunk is guessed by its place:
// the one at the same distance from the neighbours as before. Plan guesses no more chunks than it finds
// by digest. It guesses none if it finds less than half of the entries.
func (p *Profile) Plan(x *blob.Index) Plan {
	if x.Algorithm() != p.algorithm {
		return Plan{Unknown: len(p.entries)}
	}
	found := p.findChunks(x)
	plan := Plan{}
	for _, c := range found {
		if c >= 0 {
			plan.Known++
		}
	}
	guesses := 0
	if 2*plan.Known >= len(p.entries) {
		guesses = plan.Known
	}
	shifts, taken := p.listShifts(x, found), map[int]bool{}
	add := func(c int) bool {
		if taken[c] || x.IsZero(c) {
			return false
		}
		taken[c] = true
		plan.Chunks = append(plan.Chunks, c)
		return true
	}
	for i, c := range found {
		if c >= 0 {
			add(c)
			continue
		}
		hit := false
		for _, c := range guessChunks(x, shifts, int64(p.entries[i].Block)*Block) {
			if guesses > 0 && add(c) {
				guesses--
				plan.Guessed++
				hit = true
			}
		}
		if !hit {
			plan.Unknown++
		}
	}
	return plan
}

// findChunks returns for each entry the chunk of x with its digest that is nearest to its place, or -1.
func (p *Profile) findChunks(x *blob.Index) []int {
	found, entry := make([]int, len(p.entries)), make(map[Prefix]int, len(p.entries))
	for i, e := range p.entries {
		found[i], entry[e.Prefix] = -1, i
	}
	distance := func(i, chunk int) int64 {
		d := x.At(chunk).Offset/Block - int64(p.entries[i].Block)
		return max(d, -d)
	}
	for n, c := range x.All() {
		i, ok := entry[Prefix(c.Digest[:8])]
		if ok && (found[i] < 0 || distance(i, n) < distance(i, found[i])) {
			found[i] = n
		}
	}
	return found
}

func (p *Profile) listShifts(x *blob.Index, found []int) (shifts []shift) {
	for i, c := range found {
		if c >= 0 {
			shifts = append(shifts, shift{int64(p.entries[i].Block) * Block, x.At(c).Offset})
		}
	}
	slices.SortFunc(shifts, func(a, b shift) int { return cmp.Compare(a.was, b.was) })
	return shifts
}

// maxGuesses limits the chunks that are guessed for one entry. Only a malicious index has more in one
// place.
const maxGuesses = 16

// guessChunks returns the chunks of x at the new place of an average chunk that was at off. The place
// keeps its distance from the known chunk before it, or from the one behind it.
func guessChunks(x *blob.Index, shifts []shift, off int64) (chunks []int) {
	at, _ := slices.BinarySearchFunc(shifts, off, func(s shift, off int64) int { return cmp.Compare(s.was, off) })
	for n := max(at-1, 0); n <= at && n < len(shifts); n++ {
		from := off + shifts[n].is - shifts[n].was
		to := from + x.Params().Avg
		first := x.Find(max(from, 0))
		for i := first; i < min(first+maxGuesses, x.Len()) && x.At(i).Offset < to && to > 0; i++ {
			if !slices.Contains(chunks, i) {
				chunks = append(chunks, i)
			}
		}
	}
	return chunks
}
