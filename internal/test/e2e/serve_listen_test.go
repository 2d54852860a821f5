package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestServeURIs: the URI that serve prints works in libnbd and in qemu, for all characters of the socket's path
// and the export's name, and from another directory.
func TestServeURIs(t *testing.T) {
	t.Parallel()
	r := noise(t, 4096)
	for _, odd := range []string{"a&b", "a;b", "a b", "a%b%20c", "a?b", "a#b", "a+b", "a=b", "a:b@c", "grö中", "a'b\"c\\d", "a,b", "[a]", "a|b{c}"} {
		index := filepath.Join(r.dir, odd+".caibx")
		must(t, "cp", r.index("b"), index)
		socket := filepath.Join(socketDir(t), odd)
		s := serve(t, 1, index, "-s", filepath.Join(r.dir, "default.castr"), "--listen", "unix:"+socket)
		uri := strings.TrimSuffix(s.stdout.String(), "\n")
		if got := run(t, "nbdinfo", "--size", uri); got.stdout != "4096\n" {
			t.Errorf("%q: nbdinfo %s: %+v", odd, uri, got)
		}
		if got := run(t, "qemu-img", "info", uri); !strings.Contains(got.stdout, "(4096 bytes)") {
			t.Errorf("%q: qemu-img info %s: %+v", odd, uri, got)
		}
	}
}

// TestServeManyWatched: clients that can list see thousands of images of a directory by the names of its files,
// and the server opens no image for the list.
func TestServeManyWatched(t *testing.T) {
	t.Parallel()
	const images = 2000
	r := noise(t, 4096)
	dir := t.TempDir()
	for i := range images {
		if err := os.Link(r.index("b"), filepath.Join(dir, fmt.Sprintf("v%04d.caibx", i))); err != nil {
			t.Fatal(err)
		}
	}
	metrics := "unix:" + filepath.Join(socketDir(t), "metrics")
	s := serve(t, 1, "--watch", dir, "-s", filepath.Join(r.dir, "default.castr"), "--metrics", metrics)
	_, socket, _ := strings.Cut(s.uris[0], "?socket=")
	if n := strings.Count(must(t, "nbdinfo", "--list", s.uris[0]), "export=\"v"); n != images {
		t.Errorf("nbdinfo lists %d of %d images", n, images)
	}
	if n := strings.Count(must(t, "qemu-nbd", "-L", "-k", socket), "export: 'v"); n != images {
		t.Errorf("qemu-nbd lists %d of %d images", n, images)
	}
	var status struct {
		Offered int              `json:"exports_offered"`
		Open    []map[string]any `json:"exports"`
	}
	parse(t, cairn(t, "status", metrics, "--json"), &status)
	if status.Offered != images || len(status.Open) != 0 {
		t.Errorf("%d images are offered, and %d open", status.Offered, len(status.Open))
	}
}

// TestServePinnedName: the information about an export contains the name that never refers to another image; the list
// contains the usual name.
func TestServePinnedName(t *testing.T) {
	t.Parallel()
	r := noise(t, 4096)
	uri := serve(t, 1, r.index("b")).uris[0]
	if got := must(t, "nbdinfo", "--list", uri); !strings.Contains(got, `export="b":`) {
		t.Errorf("nbdinfo --list says\n%s", got)
	}
	var info struct {
		Digest string `json:"index_digest"`
	}
	parse(t, cairn(t, "info", "--json", r.index("b")), &info)
	if got := must(t, "nbdinfo", uri); !strings.Contains(got, `export="b@`+info.Digest+`":`) {
		t.Errorf("nbdinfo says\n%s", got)
	}
}

// TestServeExposure: a server warns when other machines reach it without TLS.
func TestServeExposure(t *testing.T) {
	t.Parallel()
	r := noise(t, 4096)
	certs := certificates(t, "--key-type", "ecdsa", "--curve", "secp256r1")
	tls := []string{"--tls-cert", filepath.Join(certs, "server-cert.pem"), "--tls-key", filepath.Join(certs, "server-key.pem")}
	const warning = "without TLS"
	for _, tc := range []struct {
		listen string
		args   []string
		warned bool
	}{
		{"tcp:0.0.0.0:0", nil, true},
		{"tcp::0", nil, true},
		{"tcp:127.0.0.1:0", nil, false},
		{"tcp:0.0.0.0:0", tls, false},
	} {
		s := serve(t, 1, append([]string{r.index("b"), "--listen", tc.listen}, tc.args...)...)
		s.signal(t, syscall.SIGTERM)
		if got := s.wait(t); got.status != 0 || strings.Contains(got.stderr, warning) != tc.warned {
			t.Errorf("%s %q: want a warning: %v\n%s", tc.listen, tc.args, tc.warned, got.stderr)
		}
	}
}
