package profile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// ErrMixed says that profiles cannot be merged, since their digests are of different kinds.
var ErrMixed = errors.New("profiles with different digest algorithms")

// sighting is an entry of one of the profiles that are merged.
type sighting struct {
	Entry
	place float64 // in its profile, from 0 to 1
	from  int     // which profile
}

// Merge is what at least so many of the profiles have, in the order of the median place. What only one image
// has, and its place, is the last profile's: name the newest last.
func Merge(profiles []*Profile, least int) (*Profile, error) {
	if len(profiles) == 0 {
		return nil, errors.New("nothing to merge")
	}
	last := profiles[len(profiles)-1]
	out := &Profile{algorithm: last.algorithm, index: last.index, size: last.size}
	seen := map[Prefix][]sighting{}
	for n, p := range profiles {
		if p.algorithm != last.algorithm {
			return nil, fmt.Errorf("merging: %w", ErrMixed)
		}
		out.boots = min(out.boots+p.boots, 1<<20)
		for i, e := range p.entries {
			seen[e.Prefix] = append(seen[e.Prefix], sighting{e, float64(i) / float64(len(p.entries)), n})
		}
	}
	var all []sighting
	for _, list := range seen {
		if len(list) >= least {
			all = append(all, median(list))
		}
	}
	slices.SortFunc(all, func(a, b sighting) int {
		return cmp.Or(cmp.Compare(a.place, b.place), slices.Compare(a.Prefix[:], b.Prefix[:]))
	})
	for _, s := range all[:min(len(all), MaxEntries)] {
		out.entries = append(out.entries, s.Entry)
	}
	return out, nil
}

// median is a chunk's middle place and time, and where the newest profile has it.
func median(list []sighting) sighting {
	newest := slices.MaxFunc(list, func(a, b sighting) int { return cmp.Compare(a.from, b.from) })
	slices.SortFunc(list, func(a, b sighting) int { return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.from, b.from)) })
	middle := list[(len(list)-1)/2]
	middle.Block = newest.Block
	return middle
}
