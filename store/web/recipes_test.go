package web_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cairn/internal/tlsfiles"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/web"
)

var recipe = regexp.MustCompile("(?s)```nginx\n(.*?)```")

// recipes returns nginx's directives in the docs, with the paths of this test.
func recipes(t *testing.T, paths map[string]string) []string {
	t.Helper()
	text, err := os.ReadFile("../../docs/stores.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, found := range recipe.FindAllStringSubmatch(string(text), -1) {
		directives := found[1]
		for there, here := range paths {
			directives = strings.ReplaceAll(directives, there, here)
		}
		all = append(all, directives)
	}
	if len(all) != 3 {
		t.Fatalf("the docs have %d recipes, want 3", len(all))
	}
	return all
}

// TestRecipes: the docs' directives for nginx work.
func TestRecipes(t *testing.T) {
	a, dir := storetest.NewAuthority(t), t.TempDir()
	serverCert, serverKey := a.Server(t, "127.0.0.1")
	cert, key := a.Client(t, "device")
	chunk := "default.castr/abcd/abcd" + strings.Repeat("0", 60)
	found := recipes(t, map[string]string{
		"/srv/images": filepath.Join(dir, "images"), "/srv/upload": filepath.Join(dir, "upload"),
		"/etc/nginx/store/server.pem": serverCert, "/etc/nginx/store/server.key": serverKey, "/etc/nginx/store/ca.pem": a.Cert,
		"/etc/nginx/store/publishers": writeFile(t, filepath.Join(dir, "publishers"), "ci:{PLAIN}secret\n"),
	})
	toRead, toProve, toWrite := found[0], found[1], found[2]

	write := newBucket(t, storetest.Nginx(t, "", toWrite), having(t, web.Basic, "ci:secret"))
	for _, name := range []string{chunk, chunk + ".cacnk", "v2.caibx"} {
		if err := write.Write(t.Context(), name, []byte(name)); err != nil {
			t.Errorf("writing to the server of the recipe: %v", err)
		}
	}
	stranger := newBucket(t, write.String(), web.Options{})
	if err := stranger.Write(t.Context(), "x", nil); !errors.Is(err, store.ErrDenied) {
		t.Errorf("a stranger's Write = %v, want ErrDenied", err)
	}
	wantReads(t, stranger, chunk, nil)

	url := storetest.Nginx(t, "", toRead)
	wantReads(t, newReader(t, url, web.Options{}), chunk, nil)
	for path, want := range map[string]string{
		chunk: "public, max-age=31536000, immutable", chunk + ".cacnk": "public, max-age=31536000, immutable",
		"v2.caibx": "public, max-age=60", "default.castr/abcd/" + strings.Repeat("e", 64) + ".cacnk": "", "absent.caibx": "",
	} {
		if got := cacheControl(t, url+"/"+path); got != want {
			t.Errorf("Cache-Control of %s is %q, want %q", path, got, want)
		}
	}

	secure := storetest.NginxTLS(t, "", nil, toProve)
	wantReads(t, newReader(t, secure, trusting(t, tlsfiles.Files{CA: a.Cert, Cert: cert, Key: key})), chunk, nil)
	wantReads(t, newReader(t, secure, trusting(t, tlsfiles.Files{CA: a.Cert})), chunk, web.ErrNoCertificate)
}

func wantReads(t *testing.T, r *web.Bucket, name string, want error) {
	t.Helper()
	got, err := r.Read(t.Context(), name, nil, 100)
	if !errors.Is(err, want) || err == nil && string(got) != name {
		t.Errorf("Read from %v = %q, %v; want %v", r, got, err, want)
	}
}

func cacheControl(t *testing.T, url string) string {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	return answer.Header.Get("Cache-Control")
}
