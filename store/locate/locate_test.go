package locate_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/store"
	"cairn/store/locate"
	"cairn/store/sftp"
	"cairn/store/storetest"
)

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("data"), 0o644); err != nil {
		t.Fatal(err)
	}
	o := locate.Options{SFTP: sftp.Options{Config: storetest.NewSSHD(t, "internal-sftp").Config}}
	for _, location := range []string{dir, dir + "/", storetest.Nginx(t, dir), "sftp://store" + dir} {
		r, err := locate.Open(location, o)
		if err != nil {
			t.Fatalf("Open(%s): %v", location, err)
		}
		if got, err := r.Read(t.Context(), "x", nil, 10); err != nil || string(got) != "data" {
			t.Errorf("Read in %s = %q, %v", location, got, err)
		}
	}
}

func TestRefused(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for location, want := range map[string]error{
		file + "-absent":             store.ErrNotFound,
		file:                         nil,
		"":                           store.ErrNotFound,
		"s3://bucket/prefix":         errors.ErrUnsupported,
		"s3+https://k:hush@h/b":      errors.ErrUnsupported,
		"sftp://user:hush@host/path": nil,
		"sftp://-hush@host/path":     nil,
		"gopher://host/?hush":        nil,
		"HTTP://host:port/?hush":     nil,
		"http:///hush":               nil,
		"https://user:hush@h:x/":     nil,
		"file:///etc?hush":           nil,
		"relative/path/not://here":   store.ErrNotFound,
	} {
		_, err := locate.Open(location, locate.Options{})
		if err == nil || want != nil && !errors.Is(err, want) || strings.Contains(err.Error(), ":hush") {
			t.Errorf("Open(%q) = %v, want %v", location, err, want)
		}
	}
	for _, location := range []string{"http://host/", "s3://bucket", file} {
		if _, err := locate.OpenBucket(location, locate.Options{}); err == nil {
			t.Errorf("OpenBucket(%q) succeeded", location)
		}
	}
}

func TestIndex(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.caibx")
	b, name, err := locate.IndexBucket(path, locate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Write(t.Context(), name, []byte("index")); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o600 != 0o600 {
		t.Errorf("the index has mode %v, %v", info.Mode(), err)
	}
	for _, location := range []string{path, storetest.Nginx(t, dir) + "/x.caibx?sig=x"} {
		r, name, err := locate.Index(location, locate.Options{})
		if err != nil {
			t.Fatalf("Index(%s): %v", location, err)
		}
		if got, err := r.Read(t.Context(), name, nil, 10); err != nil || !bytes.Equal(got, []byte("index")) {
			t.Errorf("Read of %s = %q, %v", location, got, err)
		}
	}
}

// TestSFTP: a store is made with its parents, an index is put only where there is a directory.
func TestSFTP(t *testing.T) {
	root := "sftp://store" + t.TempDir()
	o := locate.Options{SFTP: sftp.Options{Config: storetest.NewSSHD(t, "internal-sftp").Config}}
	index := root + "/a/x.caibx"
	b, name, err := locate.IndexBucket(index, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Write(t.Context(), name, []byte("index")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Write of an index into no directory = %v, want ErrNotFound", err)
	}
	chunks, err := locate.DefaultStore(index)
	if err != nil {
		t.Fatal(err)
	}
	c, err := locate.OpenBucket(chunks, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Write(t.Context(), "abcd/x", nil), b.Write(t.Context(), name, []byte("index"))); err != nil {
		t.Fatal(err)
	}
	path, _ := strings.CutPrefix(root, "sftp://store")
	if info, err := os.Stat(path + "/a/x.caibx"); err != nil || info.Mode().Perm()&0o600 != 0o600 {
		t.Errorf("the index has mode %v, %v", info.Mode(), err)
	}
	r, name, err := locate.Index(index, o)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Read(t.Context(), name, nil, 10); err != nil || string(got) != "index" {
		t.Errorf("Read of %s = %q, %v", index, got, err)
	}
}

func TestIndexRefused(t *testing.T) {
	dir := t.TempDir()
	for _, location := range []string{"", "/", "..", dir + "/", "http://host", "http://host/", "http://host/a%2Fb",
		"http://ho st/x", "s3://bucket/x"} {
		if _, _, err := locate.Index(location, locate.Options{}); err == nil {
			t.Errorf("Index(%q) succeeded", location)
		}
	}
	for _, location := range []string{dir + "/absent/x", "https://host/x.caibx", dir + "/"} {
		if _, _, err := locate.IndexBucket(location, locate.Options{}); err == nil {
			t.Errorf("IndexBucket(%q) succeeded", location)
		}
	}
}

func TestDefaultStore(t *testing.T) {
	for index, want := range map[string]string{
		"x.caibx":                          "default.castr",
		"/srv/images/x.caibx":              "/srv/images/default.castr",
		"../a b/x.caibx":                   "../a b/default.castr",
		"http://host/x.caibx":              "http://host/default.castr",
		"sftp://me@host:1/x.caibx":         "sftp://me@host:1/default.castr",
		"sftp://host/~/x.caibx":            "sftp://host/~/default.castr",
		"https://u:p@host:1/a%20b/x?sig=1": "https://u:p@host:1/a%20b/default.castr?sig=1",
		"https://host/a%2Fb/x.caibx":       "https://host/a%2Fb/default.castr",
	} {
		if got, err := locate.DefaultStore(index); got != want || err != nil {
			t.Errorf("DefaultStore(%q) = %q, %v; want %q", index, got, err, want)
		}
	}
	if got, err := locate.DefaultStore("http://host/"); err == nil {
		t.Errorf("DefaultStore of a directory = %q", got)
	}
}

// FuzzLocations: whatever people write, it is split so that the parts lead back to it.
func FuzzLocations(f *testing.F) {
	for _, seed := range []string{"x", "a/b", "http://h/a%2Fb/x?q#f", "s3://b/x", "https://h", "http://h/%00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, location string) {
		got, err := locate.DefaultStore(location)
		if err == nil && !strings.Contains(got, "default.castr") {
			t.Errorf("DefaultStore(%q) = %q", location, got)
		}
	})
}

func TestGroup(t *testing.T) {
	for location, want := range map[string][]string{
		"dir":                        {"dir"},
		"https://a/s|https://b/s|/c": {"https://a/s", "https://b/s", "/c"},
		"a|":                         {"a", ""},
	} {
		if got := locate.Group(location); !slices.Equal(got, want) {
			t.Errorf("Group(%q) = %q, want %q", location, got, want)
		}
	}
}
