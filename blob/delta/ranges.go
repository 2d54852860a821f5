package delta

import (
	"cmp"
	"fmt"
	"io"
	"slices"
)

// ReadReference returns the bytes of ranges of the old image, one after the other. It uses the memory of
// buf if that is enough.
func ReadReference(buf []byte, old io.ReaderAt, ranges []Range) ([]byte, error) {
	buf = resize(buf, sizeOf(ranges))
	at := 0
	for _, r := range ranges {
		if n, err := old.ReadAt(buf[at:at+int(r.Size)], r.Offset); n < int(r.Size) {
			return buf, fmt.Errorf("reading the old image: %w", err)
		}
		at += int(r.Size)
	}
	return buf, nil
}

// joinRanges sorts ranges, cuts them to an image of a size, and joins those with at most gap bytes
// between them. It modifies list.
func joinRanges(list []Range, gap, size int64) []Range {
	slices.SortFunc(list, byOffset)
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

const (
	// A match brings matchPadding bytes on both sides, and those up to the next match if it is at most matchGap bytes
	// away: bytes that are only similar are there.
	matchPadding = 576
	matchGap     = 4 << 10
	// leastMatched is the number of matched bytes that are worth a range.
	leastMatched = 128
	// mostMatched limits the ranges of matches: further ones save less than they cost.
	mostMatched = 40
)

// addMatches adds to a chunk's ranges those of its matches that lie elsewhere. It takes those with the most matched
// bytes, within the limits of a row. It sorts both lists.
func addMatches(list, matches []Range, size int64) []Range {
	list = joinRanges(list, 0, size)
	slices.SortFunc(matches, byOffset)
	type cluster struct {
		Range
		matched int64
	}
	var clusters []cluster
	for _, m := range matches {
		if slices.ContainsFunc(list, func(r Range) bool { return r.Offset <= m.Offset && m.End() <= r.End() }) {
			continue
		}
		c := cluster{Range{m.Offset - matchPadding, m.Size + 2*matchPadding}, m.Size}
		if n := len(clusters); n > 0 && c.Offset <= clusters[n-1].End()+matchGap {
			last := &clusters[n-1]
			last.Size = max(last.End(), c.End()) - last.Offset
			last.matched += c.matched
		} else {
			clusters = append(clusters, c)
		}
	}
	slices.SortStableFunc(clusters, func(a, b cluster) int { return cmp.Compare(b.matched, a.matched) })
	for _, c := range clusters[:min(len(clusters), mostMatched)] {
		if c.matched < leastMatched {
			break
		}
		list = append(list, c.Range)
	}
	return joinRanges(limitSize(list), 0, size)
}

// limitSize cuts ranges to the largest reference. The first ones are kept.
func limitSize(list []Range) []Range {
	room := int64(MaxReference)
	for i := range list {
		list[i].Size = min(list[i].Size, room)
		room -= list[i].Size
	}
	return list
}

func byOffset(a, b Range) int {
	return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Size, b.Size))
}
