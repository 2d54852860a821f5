package release_test

import (
	"path/filepath"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store/locate"
)

func TestBesideStore(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for text, want := range map[string]string{
		"/srv/default.castr":          "/srv/default.cadelta",
		"/srv/default.castr//":        "/srv/default.cadelta",
		"store":                       "store.cadelta",
		".":                           dir + ".cadelta",
		"..":                          filepath.Dir(dir) + ".cadelta",
		"https://h/a/default.castr/":  "https://h/a/default.cadelta",
		"https://h/a%2Fb/x.castr":     "https://h/a%2Fb/x.cadelta",
		"s3://bucket/a/default.castr": "s3://bucket/a/default.cadelta",
		"s3://bucket/a/":              "s3://bucket/a.cadelta",
		"sftp://h/~/default.castr/":   "sftp://h/~/default.cadelta",
	} {
		at, err := locate.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := release.DeltaDir(at); err != nil || got.String() != want {
			t.Errorf("DeltaDir(%q) = %v, %v, want %s", text, got, err, want)
		}
		want = strings.TrimSuffix(want, ".cadelta") + ".capack"
		if got, err := release.PackDir(at); err != nil || got.String() != want {
			t.Errorf("PackDir(%q) = %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"/", "-", "https://h/", "s3://bucket", "sftp://h/", "sftp://h/~/"} {
		at, err := locate.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := release.DeltaDir(at); err == nil {
			t.Errorf("DeltaDir(%q) = %v", text, got)
		}
	}
	if got, err := release.DeltaDir(locate.Location{}); err == nil {
		t.Errorf("DeltaDir of nothing = %v", got)
	}
}

func TestDeltaNames(t *testing.T) {
	to, from := blob.Digest{1}, blob.Digest{2}
	dir := to.String() + "/"
	for got, want := range map[string]string{
		release.DeltaName(to, from):      dir + from.String() + ".cadelta",
		release.DeltaIndexName(to, from): dir + from.String() + ".caibx",
		release.DeltaListName(to):        dir + "list",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
