package release

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"cairn/blob"
	"cairn/store/gcroot"
)

// Item is something published: an index under a name.
type Item struct {
	Name      string    // as in its gc roots
	Number    uint32    // of its publication; see gcroot.Entry
	Published time.Time // by the clock of the store
	Index     blob.Digest
	Roots     []gcroot.Entry // its gc roots, the newest first: one for each time that it was published
	orphan    bool           // its index was absent or replaced
}

// compareItems orders items by their publications. The clock of a store may count seconds only, so the numbers decide.
func compareItems(a, b Item) int {
	return cmp.Or(cmp.Compare(a.Number, b.Number), a.Published.Compare(b.Published), strings.Compare(a.Name, b.Name), strings.Compare(a.Index.String(), b.Index.String()))
}

// KeepLast is a rule of a Retention: of the items whose names match the pattern, the last ones stay.
type KeepLast struct {
	Pattern string // of path.Match; "" matches all names
	Count   int
}

// Retention says which items stay. An item that no rule is about stays; a rule about a pattern is about its matches
// only. The zero value keeps all.
type Retention struct {
	Last   []KeepLast
	Within time.Duration // items that were published in this time before now stay; 0 is no rule
	Names  []string      // patterns of names that always stay
	Listed []string      // names that always stay, because a release lists them
}

// IsZero reports whether there is no rule.
func (r Retention) IsZero() bool { return len(r.Last) == 0 && r.Within == 0 }

// Check returns an error about an invalid pattern.
func (r Retention) Check() error {
	for _, pattern := range r.patterns() {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("%q is not a pattern of names (such as root-*.caibx): %w", pattern, err)
		}
	}
	return nil
}

func (r Retention) patterns() []string {
	all := slices.Clone(r.Names)
	for _, l := range r.Last {
		all = append(all, l.Pattern)
	}
	return all
}

// Dropped returns the items that do not stay, the oldest first.
func (r Retention) Dropped(items []Item, now time.Time) (dropped []Item) {
	if r.IsZero() {
		return nil
	}
	items = slices.SortedFunc(slices.Values(items), compareItems)
	counted := make([]int, len(r.Last))
	for _, item := range slices.Backward(items) {
		about, stays := r.Within > 0, r.Within > 0 && now.Sub(item.Published) < r.Within
		for i, l := range r.Last {
			if matches(l.Pattern, item.Name) {
				about = true
				counted[i]++
				stays = stays || counted[i] <= l.Count
			}
		}
		stays = stays || slices.ContainsFunc(r.Names, func(pattern string) bool { return matches(pattern, item.Name) })
		stays = stays || slices.Contains(r.Listed, item.Name)
		if about && !stays {
			dropped = append(dropped, item)
		}
	}
	slices.Reverse(dropped)
	return dropped
}

// matches reports whether a name matches a pattern. A pattern without a slash is matched with the last part of the
// name.
func matches(pattern, name string) bool {
	if pattern == "" {
		return true
	}
	if !strings.Contains(pattern, "/") {
		name = path.Base(name)
	}
	is, err := path.Match(pattern, name)
	return is && err == nil
}
