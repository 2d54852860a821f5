package release_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/blob/release"
)

func TestRetention(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	var items []release.Item
	for i, name := range []string{"root-1.caibx", "boot-1.caibx", "root-2.caibx", "sub/root-3.caibx", "boot-2.caibx", "/else/root-4.caibx", "latest.caibx", "latest.caibx"} {
		items = append(items, release.Item{Name: name, Published: now.Add(time.Duration(i-8) * time.Hour)})
	}
	for name, c := range map[string]struct {
		keep    release.Retention
		dropped string
	}{
		"no rule":                     {release.Retention{}, ""},
		"names alone are no rule":     {release.Retention{Names: []string{"root-1.caibx"}}, ""},
		"the last two":                {release.Retention{Last: []release.KeepLast{{"", 2}}}, "root-1 boot-1 root-2 sub/root-3 boot-2 /else/root-4"},
		"more than there are":         {release.Retention{Last: []release.KeepLast{{"", 20}}}, ""},
		"of some":                     {release.Retention{Last: []release.KeepLast{{"root-*", 2}}}, "root-1 root-2"},
		"of two kinds":                {release.Retention{Last: []release.KeepLast{{"root-*", 2}, {"boot-*", 1}}}, "root-1 boot-1 root-2"},
		"any rule keeps":              {release.Retention{Last: []release.KeepLast{{"root-*", 1}, {"", 4}}}, "root-1 boot-1 root-2 sub/root-3"},
		"with the directory":          {release.Retention{Last: []release.KeepLast{{"sub/*", 1}, {"/else/*", 1}}}, ""},
		"within a time":               {release.Retention{Within: 3*time.Hour + 1}, "root-1 boot-1 root-2 sub/root-3 boot-2"},
		"within, and the last":        {release.Retention{Within: time.Minute, Last: []release.KeepLast{{"boot-*", 1}}}, "root-1 boot-1 root-2 sub/root-3 /else/root-4 latest latest"},
		"names stay":                  {release.Retention{Within: time.Minute, Names: []string{"root-*", "latest.*"}}, "boot-1 boot-2"},
		"the replaced one goes first": {release.Retention{Last: []release.KeepLast{{"latest.caibx", 1}}}, "latest"},
	} {
		t.Run(name, func(t *testing.T) {
			for range 3 {
				var names []string
				for _, item := range c.keep.Dropped(items, now) {
					names = append(names, strings.TrimSuffix(item.Name, ".caibx"))
				}
				if got := strings.Join(names, " "); got != c.dropped {
					t.Fatalf("dropped %q, want %q", got, c.dropped)
				}
				slices.Reverse(items) // their order does not matter
			}
		})
	}
	if err := (release.Retention{Last: []release.KeepLast{{"[", 1}}}).Check(); err == nil {
		t.Error("an invalid pattern is accepted")
	}
}
