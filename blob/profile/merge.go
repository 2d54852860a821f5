package profile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// ErrMixed reports that profiles with different digest algorithms cannot be merged.
var ErrMixed = errors.New("profiles with different digest algorithms")

// sighting is an entry of one of the merged profiles.
type sighting struct {
	Entry
	place float64 // position in its profile, from 0 to 1
	from  int     // number of the profile
}

// Merge returns a profile of the chunks that at least minimum of the profiles have, in the order of their
// median positions. The profiles are in the order of their age, the newest last. The image size and the
// index digest are those of the newest profile. The offset of a chunk is from the newest that has it.
func Merge(profiles []*Profile, minimum int) (*Profile, error) {
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
		out.recordings = min(out.recordings+p.recordings, 1<<20)
		for i, e := range p.entries {
			seen[e.Prefix] = append(seen[e.Prefix], sighting{e, float64(i) / float64(len(p.entries)), n})
		}
	}
	var all []sighting
	for _, list := range seen {
		if len(list) >= minimum {
			all = append(all, medianSighting(list))
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

// medianSighting returns the sighting with the median position of a chunk, at the newest offset.
func medianSighting(list []sighting) sighting {
	newest := slices.MaxFunc(list, func(a, b sighting) int { return cmp.Compare(a.from, b.from) })
	slices.SortFunc(list, func(a, b sighting) int { return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.from, b.from)) })
	middle := list[(len(list)-1)/2]
	middle.Block = newest.Block
	return middle
}
