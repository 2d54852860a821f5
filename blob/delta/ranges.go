package delta

import (
	"cmp"
	"slices"
)

// joinRanges sorts ranges, cuts them to an image of a size, and joins those with at most gap bytes
// between them. It modifies list.
func joinRanges(list []Range, gap, size int64) []Range {
	slices.SortFunc(list, func(a, b Range) int { return cmp.Compare(a.Offset, b.Offset) })
	joined := list[:0]
	for _, r := range list {
		lo, hi := max(r.Offset, 0), min(r.End(), size)
		if lo >= hi {
			continue
		}
		if n := len(joined); n > 0 && lo <= joined[n-1].End()+gap {
			joined[n-1].Size = max(joined[n-1].End(), hi) - joined[n-1].Offset
		} else {
			joined = append(joined, Range{lo, hi - lo})
		}
	}
	return joined
}

// sizeOf returns the bytes of all ranges.
func sizeOf(list []Range) (n int64) {
	for _, r := range list {
		n += r.Size
	}
	return n
}

// limitRanges drops or joins ranges until they are within the limits of a row. It keeps the largest ones.
func limitRanges(list []Range, size int64) []Range {
	for gap := int64(matchGap); len(list) > MaxRanges && gap <= 64<<10; gap *= 4 {
		list = joinRanges(list, gap, size)
	}
	if len(list) <= MaxRanges && sizeOf(list) <= MaxReference {
		return list
	}
	slices.SortFunc(list, func(a, b Range) int { return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Offset, b.Offset)) })
	list = list[:min(len(list), MaxRanges)]
	var sum int64
	kept := list[:0]
	for _, r := range list {
		if sum+r.Size <= MaxReference {
			kept, sum = append(kept, r), sum+r.Size
		}
	}
	return joinRanges(kept, 0, size)
}
