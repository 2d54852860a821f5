package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"cairn/testimages"
)

// TestHostileReleases: what a hostile server makes of a signed release is refused, with exit status 3 if it is about trust,
// before a byte of the target is written, and after a limited download. These are the attacks that The Update Framework
// lists, as far as they concern a single release.
func TestHostileReleases(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"root", "boot", "evil"} {
		writeFile(t, dir, name, testimages.Random(uint64(len(name)+int(name[0])), 300_000))
		cairn(t, "make", path(name+".caibx"), path(name))
	}
	keys := map[string]string{}
	for _, name := range []string{"release", "channel", "stranger"} {
		keys[name] = path(name + ".key")
		cairn(t, "key", "generate", "example.com/"+name, keys[name])
	}
	trusted := path("keys.d")
	if err := os.Mkdir(trusted, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, trusted, "os.pub", []byte("release "+string(readFile(t, keys["release"]+".pub"))+"channel "+string(readFile(t, keys["channel"]+".pub"))))
	publish := func(file, key string, images ...string) []byte {
		t.Helper()
		args := []string{"release", "make", path(file), "--name", "example.com/os", "--version", "1", "--serial", "7", "--compatible", "box", "--key", keys[key]}
		for _, image := range images {
			args = append(args, "--image", image)
		}
		cairn(t, args...)
		return readFile(t, path(file))
	}
	good := publish("good.release", "release", "root=root.caibx", "boot=boot.caibx,order=9")
	byStranger := publish("stranger.release", "stranger", "root=evil.caibx")
	byChannel := publish("channel.release", "channel", "root=evil.caibx")
	cairn(t, "channel", "set", path("stable.channel"), "--release", "good.release", "--key", keys["channel"])

	index, evil := readFile(t, path("root.caibx")), readFile(t, path("evil.caibx"))
	boot := readFile(t, path("boot.caibx"))
	before := testimages.Random(1, 300_000)
	for name, c := range map[string]struct {
		release, index []byte
		endless        string // the file that does not end
		status         int
	}{
		"nothing":                     {good, index, "", 0},
		"signed by a stranger":        {byStranger, index, "", damaged},
		"signed by the channel's key": {byChannel, index, "", damaged},
		"unsigned":                    {good[:bytes.Index(good, []byte("\n\n"))+1], index, "", damaged},
		"a changed release":           {bytes.Replace(good, []byte("root.caibx"), []byte("evil.caibx"), 1), index, "", damaged},
		"a cut release":               {good[:len(good)-20], index, "", damaged},
		"an empty release":            {nil, index, "", damaged},
		"a channel for a release":     {readFile(t, path("stable.channel")), index, "", damaged},
		"an index of other software":  {good, evil, "", damaged},
		"the index of another role":   {good, boot, "", damaged},
		"a longer index":              {good, append(bytes.Clone(index), 0), "", damaged},
		"a shorter index":             {good, index[:len(index)-40], "", damaged},
		"an endless release":          {nil, index, "x.release", damaged},
		"an endless index":            {good, nil, "root.caibx", damaged},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var sent atomic.Int64
			files := http.FileServer(http.Dir(dir))
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch name := strings.TrimPrefix(r.URL.Path, "/"); {
				case name == c.endless:
					for r.Context().Err() == nil {
						n, err := w.Write(make([]byte, 1<<16))
						if sent.Add(int64(n)); err != nil {
							return
						}
					}
				case name == "x.release":
					_, _ = w.Write(c.release)
				case name == "root.caibx":
					_, _ = w.Write(c.index)
				default:
					files.ServeHTTP(w, r)
				}
			}))
			defer server.Close()
			target := writeFile(t, t.TempDir(), "target", before)
			got := run(t, "cairn", "assemble", "--release", server.URL+"/x.release", "--role", "root", "--keys", trusted, "--patience", "3s", target)
			if got.status != c.status {
				t.Errorf("exit status %d, want %d: %s", got.status, c.status, got.stderr)
			}
			want := before
			if c.status == 0 {
				want = readFile(t, path("root"))
			}
			if !bytes.Equal(readFile(t, target), want) {
				t.Error("the target has other bytes")
			}
			if n := sent.Load(); n > 16<<20 {
				t.Errorf("%d bytes of an endless file were read", n)
			}
		})
	}
}

// TestReleases publishes a release with one command into each kind of repository, and reads its images from there: onto a
// file and over NBD. cairn update check says that a machine which runs nothing yet installs it.
func TestReleases(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"root", "boot"} {
		writeFile(t, dir, name, testimages.Random(uint64(i), 700_000))
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	cairn(t, "key", "generate", "example.com/release", path("key"))
	trusted := path("keys.d")
	if err := os.Mkdir(trusted, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, trusted, "os.pub", readFile(t, path("key.pub")))
	for kind, r := range repositories(t) {
		t.Run(kind, func(t *testing.T) {
			if kind == "SFTP" && os.Getenv("CAIRN_LONG") == "" {
				t.Skip("a dozen commands over ssh take long: CAIRN_LONG=1")
			}
			cairn(t, "release", "publish", r.at, "--name", "example.com/os", "--version", "1", "--serial", "1", "--compatible", "box",
				"--image", "root="+path("root"), "--image", "boot="+path("boot"), "--key", path("key"), "--channel", "stable", "--layout", "both")
			release := []string{"--release", r.at + "/1.release", "--keys", trusted}
			cairn(t, "release", "verify", r.at+"/1.release", "--keys", trusted)
			cairn(t, "channel", "show", r.at+"/stable.channel", "--keys", trusted)
			out := filepath.Join(t.TempDir(), "out")
			cairn(t, append([]string{"assemble", "--role", "root", out}, release...)...)
			wantSame(t, out, path("root"))
			cairn(t, append([]string{"verify", "--role", "root", out}, release...)...)
			s := serve(t, 1, append([]string{"--role", "boot", "--listen", "unix:" + filepath.Join(socketDir(t), "s")}, release...)...)
			must(t, "nbdcopy", s.uris[0], out)
			got := readFile(t, out)
			if want := readFile(t, path("boot")); !bytes.Equal(got[:len(want)], want) {
				t.Error("another image was served")
			}
			config := writeFile(t, t.TempDir(), "update.toml", fmt.Appendf(nil,
				"channel = %q\nname = \"example.com/os\"\ncompatible = \"box\"\nkeys = [%q]\nstate = %q\nbuild = \"none\"\nmachine_id = %q\n",
				r.at+"/stable.channel", trusted, filepath.Join(t.TempDir(), "state"), writeFile(t, t.TempDir(), "id", []byte("m"))))
			var found struct {
				Install bool   `json:"install"`
				Release string `json:"release"`
			}
			parse(t, cairn(t, "update", "check", "--config", config, "--json"), &found)
			if !found.Install || found.Release != r.at+"/1.release" {
				t.Errorf("update check: %+v", found)
			}
		})
	}
}
