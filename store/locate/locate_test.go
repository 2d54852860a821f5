package locate_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/internal/rotate"
	"cairn/internal/tlsfiles"
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
		r, err := (locate.Access{}).Open(parse(t, location))
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
		file + "-absent":           store.ErrNotFound,
		file:                       nil,
		"":                         store.ErrNotFound,
		"-":                        locate.ErrKind,
		"relative/path/not://here": store.ErrNotFound,
	} {
		_, err := (locate.Access{}).Open(parse(t, location))
		if err == nil || want != nil && !errors.Is(err, want) || strings.Contains(err.Error(), ":hush") {
			t.Errorf("Open(%q) = %v, want %v", location, err, want)
		}
	}
	for _, location := range []string{"-", file} {
		if _, err := (locate.Access{}).OpenBucket(parse(t, location)); err == nil {
			t.Errorf("OpenBucket(%q) succeeded", location)
		}
	}
}

func TestIndex(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.caibx")
	b, name, err := (locate.Access{}).FileBucket(parse(t, path))
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
		r, name, err := (locate.Access{}).File(parse(t, location))
		if err != nil {
			t.Fatalf("Index(%s): %v", location, err)
		}
		if got, err := r.Read(t.Context(), name, nil, 10); err != nil || !bytes.Equal(got, []byte("index")) {
			t.Errorf("Read of %s = %q, %v", location, got, err)
		}
	}
}

// TestSFTP: a store is made with its parents, an index is written only into an existing directory.
func TestSFTP(t *testing.T) {
	root := "sftp://store" + t.TempDir()
	o := locate.Access{SFTP: sftp.Options{Config: storetest.NewSSHD(t, "internal-sftp").Config}}
	index := root + "/a/x.caibx"
	b, name, err := o.FileBucket(parse(t, index))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Write(t.Context(), name, []byte("index")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Write of an index into no directory = %v, want ErrNotFound", err)
	}
	chunks, err := parse(t, index).DefaultStore()
	if err != nil {
		t.Fatal(err)
	}
	c, err := o.OpenBucket(chunks)
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
	r, name, err := o.File(parse(t, index))
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
	b, name, err := (locate.Access{}).FileBucket(parse(t, index))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.(store.Creator).Create(t.Context(), name, []byte("index")); err != nil {
		t.Fatal(err)
	}
	r, name, err := (locate.Access{}).File(parse(t, index))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Read(t.Context(), name, nil, 10); err != nil || string(got) != "index" {
		t.Errorf("Read of %s = %q, %v", index, got, err)
	}
	location, err := parse(t, index).DefaultStore()
	if err != nil {
		t.Fatal(err)
	}
	b, err = (locate.Access{}).OpenBucket(location)
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

// TestWriteOverHTTP: a store and an index are written to a server whose certificate is trusted by
// the shared TLS options.
func TestWriteOverHTTP(t *testing.T) {
	a := storetest.NewAuthority(t)
	url := storetest.NginxTLS(t, t.TempDir(), a, storetest.WebDAV)
	config, err := tlsfiles.Files{CA: a.Cert}.Config(nil)
	if err != nil {
		t.Fatal(err)
	}
	o := locate.Access{TLS: config}
	b, err := o.OpenBucket(parse(t, url+"/default.castr"))
	if err != nil {
		t.Fatal(err)
	}
	index, name, err := o.FileBucket(parse(t, url+"/new/x.caibx?sig=1"))
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
	if r, _, err := o.File(parse(t, url+"/new/x.caibx")); err != nil {
		t.Error(err)
	} else if size, err := r.Stat(t.Context(), "x.caibx"); size != 4 || err != nil {
		t.Errorf("Stat of the index = %d, %v", size, err)
	}
}

// TestNothingIsShown: no way of printing a location, or a value that holds one, shows its secrets.
func TestNothingIsShown(t *testing.T) {
	for text, want := range map[string]string{
		"/srv/x.caibx?y":                       "/srv/x.caibx?y",
		"https://u:hush@h:1/a%2Fb/x?hush#hush": "https://h:1/a%2Fb/x",
		"http://hush@h/x":                      "http://h/x",
		"s3+http://h/bkt/x?profile=r":          "s3+http://h/bkt/x",
		"sftp://me@h:2/x":                      "sftp://me@h:2/x",
		"-":                                    "-",
	} {
		l := parse(t, text)
		if l.String() != want {
			t.Errorf("Parse(%q) is shown as %q, want %q", text, l, want)
		}
		type holder struct {
			Exported locate.Location
			hidden   locate.Location
			pointer  *locate.Location
			list     []locate.Location
			derived  locate.Location
		}
		beside, err := l.Beside("y")
		if err != nil {
			t.Fatal(err)
		}
		h := holder{l, l, &l, []locate.Location{l}, beside}
		encoded, err := json.Marshal(map[string]any{"a": l, "b": &l, "c": []locate.Location{l}, "d": h})
		if err != nil {
			t.Fatal(err)
		}
		var logged bytes.Buffer
		slog.New(slog.NewTextHandler(&logged, nil)).Info("x", "at", l, "in", h)
		shown := string(encoded) + logged.String()
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			shown += fmt.Sprintf(verb, l) + fmt.Sprintf(verb, &l) + fmt.Sprintf(verb, h) + fmt.Sprintf(verb, &h) + fmt.Sprintf(verb, h.list)
		}
		if strings.Contains(shown, "hush") || strings.Contains(shown, fmt.Sprintf("%x", "hush")) {
			t.Errorf("%q is shown: %s", text, shown)
		}
	}
}

func TestParseRefused(t *testing.T) {
	for text, want := range map[string]error{
		"s3://b": nil, "s3+https://k:hush@h/bkt": nil, "s3+https://h/bkt?x=:hush": nil, "sftp://user:hush@host/path": nil,
		"sftp://-hush@host/path": nil, "http:///hush": nil, "http://host:port/?:hush": nil, "https://user:hush@h:x/": nil,
		"https://user:hush/x@h/": nil, "https://user:hush?x@h/": nil, "s3+https://user:hush#@h/b": nil, "sftp://user:hush/x@h/": nil,
		"https://:hush%zz@h/": nil, "http://ho st/x": nil,
		"gopher://host/?:hush": locate.ErrKind, "HTTP://host:port/?:hush": locate.ErrKind, "file:///etc?:hush": locate.ErrKind,
	} {
		l, err := locate.Parse(text)
		if err == nil || want != nil && !errors.Is(err, want) || strings.Contains(err.Error(), ":hush") {
			t.Errorf("Parse(%q) = %v, %v, want %v", text, l, err, want)
		}
	}
}

func TestFileRefused(t *testing.T) {
	dir := t.TempDir()
	for _, location := range []string{"", "/", "..", "-", dir + "/", "http://host", "http://host/", "http://host/a%2Fb",
		"s3://bucket", "s3://bucket/x/", "s3+http://h/bucket", "sftp://host/", "sftp://host/x/"} {
		if _, _, err := (locate.Access{}).File(parse(t, location)); err == nil {
			t.Errorf("File(%q) succeeded", location)
		}
	}
	for _, location := range []string{dir + "/absent/x", "https://host/", dir + "/", "-"} {
		if _, _, err := (locate.Access{}).FileBucket(parse(t, location)); err == nil {
			t.Errorf("FileBucket(%q) succeeded", location)
		}
	}
	if _, _, err := (locate.Access{}).File(locate.Location{}); err == nil {
		t.Error("File of no location succeeded")
	}
	if _, err := (locate.Access{}).Open(locate.Location{}); err == nil {
		t.Error("Open of no location succeeded")
	}
}

func TestDefaultStore(t *testing.T) {
	t.Chdir("/tmp")
	for index, want := range map[string]string{
		"x.caibx":                          "/tmp/default.castr",
		"-":                                "/tmp/default.castr",
		"/srv/images/x.caibx":              "/srv/images/default.castr",
		"../a b/x.caibx":                   "/a b/default.castr",
		"/srv/a|b/x#y=z.caibx":             "/srv/a|b/default.castr",
		`/srv/a\|b/x.caibx`:                `/srv/a\|b/default.castr`,
		"http://host/x.caibx":              "http://host/default.castr",
		"https://u:p@host:1/a%20b/x?sig=1": "https://u:p@host:1/a%20b/default.castr?sig=1",
		"https://host/a%2Fb/x.caibx":       "https://host/a%2Fb/default.castr",
		"https://host/a|b/x.caibx":         "https://host/a%7Cb/default.castr",
		"s3://bucket/x.caibx":              "s3://bucket/default.castr",
		"s3+http://h:1/bkt/a/x?region=r":   "s3+http://h:1/bkt/a/default.castr?region=r",
		"sftp://me@h:22/~/a b/x":           "sftp://me@h:22/~/a%20b/default.castr",
	} {
		if got, err := parse(t, index).DefaultStore(); err != nil || locate.Secret(got) != want {
			t.Errorf("DefaultStore of %q = %q, %v; want %q", index, locate.Secret(got), err, want)
		}
	}
	if got, err := parse(t, "http://host/").DefaultStore(); err == nil {
		t.Errorf("DefaultStore of a directory = %q", got)
	}
}

// FuzzLocations: for any text no secret is shown, and a location beside another is in the same
// directory.
func FuzzLocations(f *testing.F) {
	for _, seed := range []string{"x", "a/b", "http://h/a%2Fb/x?q#f", "s3://b/x", "https://h", "http://h/%00", "sftp://h/x", "http://h/!0", "http://h//0",
		"http://ab:cdefgh@h/x?ijklmn"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		l, err := locate.Parse(text)
		if err != nil {
			return
		}
		if l.Remote() && strings.ContainsAny(l.String(), "?#") {
			t.Errorf("%q is shown as %q", text, l)
		}
		dir, name, err := l.Split()
		if err != nil {
			return
		}
		// The same name may be escaped in other ways.
		beside, err := l.Beside(name)
		if err != nil {
			t.Fatalf("beside %q: %v", text, err)
		}
		if dir2, name2, err := beside.Split(); err != nil || name2 != name || dir2.Sum() != dir.Sum() {
			t.Errorf("%q beside %q is %q: %q in %q, %v", name, text, beside, name2, dir2, err)
		}
	})
}

func TestParseGroup(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/a|b", 0o755); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string][]string{
		"/dir":                       {"/dir"},
		"https://a/s|https://b/s|/c": {"https://a/s", "https://b/s", "/c"},
		`/a\|b|/c\\|/d\x`:            {"/a|b", `/c\`, `/d\x`},
		dir + "/a|b":                 {dir + "/a|b"},
	} {
		group, err := locate.ParseGroup(text)
		var got []string
		for _, l := range group {
			got = append(got, l.String())
		}
		if !slices.Equal(got, want) || err != nil {
			t.Errorf("ParseGroup(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", "a|", "|", "a||b", "a|gopher://b"} {
		if group, err := locate.ParseGroup(text); err == nil {
			t.Errorf("ParseGroup(%q) = %v", text, group)
		}
	}
}

// TestSum: locations that differ only in their secrets have different sums.
func TestSum(t *testing.T) {
	t.Chdir("/tmp")
	sum := func(text string) [32]byte { return parse(t, text).Sum() }
	if sum("http://u:a@h/x") == sum("http://u:b@h/x") || sum("http://h/x?a") == sum("http://h/x?b") {
		t.Error("different secrets have one sum")
	}
	if sum("x") != sum("/tmp/x") {
		t.Error("one location has two sums")
	}
}

func parse(t *testing.T, text string) locate.Location {
	t.Helper()
	l, err := locate.Parse(text)
	if err != nil {
		t.Fatalf("Parse(%q): %v", text, err)
	}
	return l
}

// TestHostsName: a local directory may be named like a host with a colon; a missing one is not
// made.
func TestHostsName(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("user@host:", 0o755); err != nil {
		t.Fatal(err)
	}
	derived, err := parse(t, "./user@host:/x.caibx").DefaultStore()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (locate.Access{}).OpenBucket(derived); err != nil {
		t.Errorf("OpenBucket(%v) = %v", derived, err)
	}
	if _, err := (locate.Access{}).OpenBucket(parse(t, "user@other:/srv")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("OpenBucket of a host = %v, want ErrNotFound", err)
	}
}

// TestConnectionsAreShared: all that a process reads from one server goes through the same connections.
func TestConnectionsAreShared(t *testing.T) {
	var opened atomic.Int64
	server := httptest.NewUnstartedServer(http.FileServer(http.Dir(t.TempDir())))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	access, err := locate.Identity{}.Access(new(rotate.Reader))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", "/default.castr", "/default.capack"} {
		at, err := locate.Parse(server.URL + dir)
		if err != nil {
			t.Fatal(err)
		}
		r, err := access.Open(at)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(t.Context(), "absent", nil, 1); !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("three directories of a server took %d connections, want 1", n)
	}
}
