package locate_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/internal/trust"
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
	for _, location := range []string{dir, dir + "/", storetest.Nginx(t, dir)} {
		r, err := locate.Open(location, locate.Options{})
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
		"s3://b":                     nil,
		"s3+https://k:hush@h/bkt":    nil,
		"s3+https://h/bkt?x=:hush":   nil,
		"sftp://user:hush@host/path": nil,
		"sftp://-hush@host/path":     nil,
		"gopher://host/?hush":        nil,
		"HTTP://host:port/?hush":     nil,
		"http:///hush":               nil,
		"https://user:hush@h:x/":     nil,
		"https://user:hush/x@h/":     nil,
		"https://user:hush?x@h/":     nil,
		"s3+https://user:hush#@h/b":  nil,
		"sftp://user:hush/x@h/":      nil,
		"file:///etc?hush":           nil,
		"relative/path/not://here":   store.ErrNotFound,
	} {
		_, err := locate.Open(location, locate.Options{})
		if err == nil || want != nil && !errors.Is(err, want) || strings.Contains(err.Error(), ":hush") {
			t.Errorf("Open(%q) = %v, want %v", location, err, want)
		}
		if _, err := locate.DefaultStore(location); err != nil && strings.Contains(err.Error(), ":hush") {
			t.Errorf("DefaultStore(%q) = %v", location, err)
		}
	}
	for _, location := range []string{"http:///", "s3://b", file} {
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

func TestS3(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{})
	server.Bucket(t, "images")
	t.Setenv("AWS_ACCESS_KEY_ID", server.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", server.SecretKey)
	index := server.Location("images/v 1/x.caibx", "?lookup=path")
	b, name, err := locate.IndexBucket(index, locate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.(store.Creator).Create(t.Context(), name, []byte("index")); err != nil {
		t.Fatal(err)
	}
	r, name, err := locate.Index(index, locate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Read(t.Context(), name, nil, 10); err != nil || string(got) != "index" {
		t.Errorf("Read of %s = %q, %v", index, got, err)
	}
	location, err := locate.DefaultStore(index)
	if err != nil {
		t.Fatal(err)
	}
	b, err = locate.OpenBucket(location, locate.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Write(t.Context(), "abcd/x", []byte("chunk")); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(server.Dir, "images/v 1/default.castr/abcd/x")); err != nil {
		t.Error(err)
	}
}

// TestWriteOverHTTP: a store and an index on a server, whose TLS is believed by the options of all backends.
func TestWriteOverHTTP(t *testing.T) {
	a := storetest.NewAuthority(t)
	url := storetest.NginxTLS(t, t.TempDir(), a, storetest.WebDAV)
	config, err := trust.Files{CA: a.Cert}.Config()
	if err != nil {
		t.Fatal(err)
	}
	o := locate.Options{TLS: config}
	b, err := locate.OpenBucket(url+"/default.castr", o)
	if err != nil {
		t.Fatal(err)
	}
	index, name, err := locate.IndexBucket(url+"/new/x.caibx?sig=1", o)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]store.Bucket{"abcd/x": b, name: index} {
		if err := b.Write(t.Context(), name, []byte("data")); err != nil {
			t.Errorf("Write(%s): %v", name, err)
		}
		if got, err := b.Read(t.Context(), name, nil, 10); err != nil || string(got) != "data" {
			t.Errorf("Read(%s) = %q, %v", name, got, err)
		}
	}
	if r, _, err := locate.Index(url+"/new/x.caibx", o); err != nil {
		t.Error(err)
	} else if size, err := r.Stat(t.Context(), "x.caibx"); size != 4 || err != nil {
		t.Errorf("Stat of the index = %d, %v", size, err)
	}
}

func TestPublic(t *testing.T) {
	for location, want := range map[string]string{
		"/srv/x.caibx?y":                       "/srv/x.caibx?y",
		"https://u:hush@h:1/a%2Fb/x?hush#hush": "https://h:1/a%2Fb/x",
		"https://hush%zz@h/":                   "https://...",
		"-":                                    "-",
	} {
		if got := locate.Public(location); got != want {
			t.Errorf("Public(%q) = %q, want %q", location, got, want)
		}
	}
}

func TestIndexRefused(t *testing.T) {
	dir := t.TempDir()
	for _, location := range []string{"", "/", "..", dir + "/", "http://host", "http://host/", "http://host/a%2Fb",
		"http://ho st/x", "s3://bucket", "s3://bucket/x/", "s3+http://h/bucket"} {
		if _, _, err := locate.Index(location, locate.Options{}); err == nil {
			t.Errorf("Index(%q) succeeded", location)
		}
	}
	for _, location := range []string{dir + "/absent/x", "https://host/", dir + "/"} {
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
		"https://u:p@host:1/a%20b/x?sig=1": "https://u:p@host:1/a%20b/default.castr?sig=1",
		"https://host/a%2Fb/x.caibx":       "https://host/a%2Fb/default.castr",
		"s3://bucket/x.caibx":              "s3://bucket/default.castr",
		"s3+http://h:1/bkt/a/x?region=r":   "s3+http://h:1/bkt/a/default.castr?region=r",
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
