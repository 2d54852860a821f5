package profile

import (
	"cmp"
	"slices"

	"cairn/blob"
)

// Plan is what to fetch of an image before it is read.
type Plan struct {
	Chunks  []int // numbers of x's chunks, in order, each once
	Known   int   // of them, those that the profile names
	Guessed int   // and those at places where what the profile names has changed
	Unknown int   // entries that nothing was found for
}

// shift is where a chunk that the profile names is in the image.
type shift struct{ was, is int64 }

// Plan finds the chunks of x that the profile means. Where a chunk has changed, it is the one in its place that is
// meant: as far from what lies next to it as it was. Nothing is guessed for an image that the profile
// hardly knows, and no more chunks than it knows.
func (p *Profile) Plan(x *blob.Index) Plan {
	if x.Algorithm() != p.algorithm {
		return Plan{Unknown: len(p.entries)}
	}
	found := p.find(x)
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
	shifts, taken := p.shifts(x, found), map[int]bool{}
	take := func(c int) bool {
		if taken[c] || x.IsZero(c) {
			return false
		}
		taken[c] = true
		plan.Chunks = append(plan.Chunks, c)
		return true
	}
	for i, c := range found {
		if c >= 0 {
			take(c)
			continue
		}
		hit := false
		for _, c := range guess(x, shifts, int64(p.entries[i].Block)*Block) {
			if guesses > 0 && take(c) {
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

// find is, for each entry, the chunk of x with its digest that is nearest to its place, or -1.
func (p *Profile) find(x *blob.Index) []int {
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

func (p *Profile) shifts(x *blob.Index, found []int) (shifts []shift) {
	for i, c := range found {
		if c >= 0 {
			shifts = append(shifts, shift{int64(p.entries[i].Block) * Block, x.At(c).Offset})
		}
	}
	slices.SortFunc(shifts, func(a, b shift) int { return cmp.Compare(a.was, b.was) })
	return shifts
}

// mostThere is how many chunks are looked at in the place of one. They are fewer, unless an index is made to do harm.
const mostThere = 16

// guess are the chunks of x that are now where a chunk of usual size at off was: as far from what lay before it,
// and from what lay behind it.
func guess(x *blob.Index, shifts []shift, off int64) (chunks []int) {
	at, _ := slices.BinarySearchFunc(shifts, off, func(s shift, off int64) int { return cmp.Compare(s.was, off) })
	for n := max(at-1, 0); n <= at && n < len(shifts); n++ {
		from := off + shifts[n].is - shifts[n].was
		to := from + x.Params().Avg
		first := x.Find(max(from, 0))
		for i := first; i < min(first+mostThere, x.Len()) && x.At(i).Offset < to && to > 0; i++ {
			if !slices.Contains(chunks, i) {
				chunks = append(chunks, i)
			}
		}
	}
	return chunks
}
