package e2e

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/test/need"
)

// TestServeSeed: from a server with the old release as a seed, nbdcopy gets the new release. The web server sends only
// the chunks that the seed does not hold, each once.
func TestServeSeed(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdcopy")
	r := publish(t, small(t))
	whole := r.needed(t, readIndex(t, r.index("a")), strings.NewReader(""))
	s := newSlots(t, r, false)
	changed := newSlots(t, r, false)
	changed.change(t)
	images := t.TempDir()
	if err := os.Symlink(r.a, filepath.Join(images, "link")); err != nil { // ignored: no regular file
		t.Fatal(err)
	}
	must(t, "cp", r.a, filepath.Join(images, "a.img"))
	must(t, "cp", r.index("a"), filepath.Join(images, "a.img.caibx"))
	known := readIndex(t, r.index("a"))
	for name, test := range map[string]struct {
		seed   string
		chunks int // different ones; a late answer is asked for twice
	}{
		"index":         {r.a + "=" + r.index("a"), r.difference(t).chunks},
		"scanned":       {r.a, r.difference(t).chunks},
		"partition":     {s.a + "=" + r.index("a"), r.needed(t, known, s.seed(t)).chunks},
		"changed since": {changed.a + "=" + r.index("a"), r.needed(t, known, changed.seed(t)).chunks},
		"directory":     {images, r.difference(t).chunks},
		"absent":        {filepath.Join(images, "absent"), whole.chunks},
	} {
		t.Run(name, func(t *testing.T) {
			server := newNginx(t, r.dir)
			served := serve(t, 1, server.url+"/b.caibx", "--seed", test.seed)
			if name == "absent" {
				served.stderr.await(t, "warning: seed "+test.seed+" is not used")
			} else {
				served.stderr.await(t, "a seed is ready")
			}
			useNBDCopy(t, served.uris[0], r)
			if n := len(server.asked(t)); n != test.chunks {
				t.Errorf("%d chunks were requested, want %d", n, test.chunks)
			}
		})
	}
}

// TestServeSeedChanges: a seed that is written and removed while it is served costs the chunks that have changed.
func TestServeSeedChanges(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdcopy")
	r := publish(t, small(t))
	server, s := newNginx(t, r.dir), newSlots(t, r, false)
	served := serve(t, 1, server.url+"/b.caibx", "--seed", s.a+"="+r.index("a"))
	served.stderr.await(t, "a seed is ready")
	before := open(t, s.disk)
	s.change(t)
	if err := os.Remove(s.disk); err != nil {
		t.Fatal(err)
	}
	useNBDCopy(t, served.uris[0], r)
	known := readIndex(t, r.index("a"))
	want := r.needed(t, known, io.NewSectionReader(before, firstSlot, s.size)).chunks
	if n := len(server.asked(t)); n != want || n == r.difference(t).chunks {
		t.Errorf("%d chunks were requested, want %d, more than the %d of the difference", n, want, r.difference(t).chunks)
	}
}

// TestServeSeedOfManyImages: a seed is scanned once for all images, and its chunks are kept in the image cache.
func TestServeSeedOfManyImages(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdcopy")
	r := publish(t, small(t))
	server, state, cache := newNginx(t, r.dir), t.TempDir(), filepath.Join(t.TempDir(), "cache")
	args := []string{server.url + "/a.caibx", server.url + "/b.caibx", "--state", state, "--seed", r.a}
	first := serve(t, 2, append(args, "--cache", cache, "--metrics", "unix:"+filepath.Join(socketDir(t), "m"))...)
	text := first.stderr.await(t, "a seed is ready")
	if !strings.Contains(text, "scanning a seed") {
		t.Errorf("the seed is not scanned:\n%s", text)
	}
	copyAs(t, first.uris[0], r.a)
	if n := len(server.asked(t)); n != 0 {
		t.Errorf("%d chunks were requested for the image that is the seed", n)
	}
	copyAs(t, first.uris[1], r.b)
	if n, want := len(server.asked(t)), r.difference(t).chunks; n != want {
		t.Errorf("%d chunks were requested, want %d", n, want)
	}
	if text := first.stderr.String(); strings.Count(text, "scanning a seed") != 1 {
		t.Errorf("the seed is not scanned once:\n%s", text)
	}
	first.signal(t, os.Interrupt)
	first.wantStopped(t)

	server.sent(t)
	second := serve(t, 2, append(args, "--cache", cache)...)
	text = second.stderr.await(t, "a seed is ready")
	if strings.Contains(text, "scanning a seed") {
		t.Errorf("the seed is not remembered:\n%s", text)
	}
	copyAs(t, second.uris[1], r.b)
	if sent := server.sent(t); sent != (traffic{}) {
		t.Errorf("the server sent %+v for an image that is in the cache", sent)
	}
}

// copyAs copies an export with nbdcopy, and compares the copy with an image.
func copyAs(t testing.TB, uri, image string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	must(t, "nbdcopy", uri, out)
	wantCopy(t, out, image)
}

// TestServeSeedShown: status, metadata context and metrics show the seed as a tier.
func TestServeSeedShown(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdinfo")
	r := publish(t, small(t))
	server, metrics := newNginx(t, r.dir), "unix:"+filepath.Join(socketDir(t), "m")
	s := serve(t, 1, server.url+"/b.caibx", "--seed", r.a+"="+r.index("a"), "--metrics", metrics)
	if text := must(t, "nbdinfo", "--map=x-cairn:cached", "--totals", s.uris[0]); len(strings.Fields(text)) == 0 ||
		!strings.Contains(text, "    3 ") && !strings.Contains(text, " 3\n") && !strings.Contains(text, " 3 ") {
		t.Errorf("no bytes are in the seed:\n%s", text)
	}
	copyAs(t, s.uris[0], r.b)
	var status struct {
		Exports []struct {
			Local   int64 `json:"local_bytes"`
			Seed    int64 `json:"seed_bytes"`
			InSeeds int64 `json:"local_in_seeds_bytes"`
			Chunks  int64 `json:"seed_chunks"`
			Fetched int64 `json:"store_chunks"`
		} `json:"exports"`
		Seeds []struct {
			Name   string `json:"name"`
			State  string `json:"state"`
			Chunks int64  `json:"chunks"`
			Bytes  int64  `json:"bytes"`
			Wrong  int64  `json:"wrong_chunks"`
		} `json:"seeds"`
	}
	parse(t, cairn(t, "status", metrics, "--json"), &status)
	e, seed := status.Exports[0], status.Seeds[0]
	if e.Chunks == 0 || e.Seed == 0 || e.InSeeds != 0 || e.Fetched != int64(r.difference(t).chunks) {
		t.Errorf("the export is %+v", e)
	}
	if seed.Name != r.a || seed.State != "ready" || seed.Chunks != e.Chunks || seed.Bytes != e.Seed || seed.Wrong != 0 {
		t.Errorf("the seed is %+v, the export %+v", seed, e)
	}
	if text := cairn(t, "status", metrics); !strings.Contains(text, "SEED") || !strings.Contains(text, "ready") {
		t.Errorf("cairn status does not show the seed:\n%s", text)
	}
}

// TestServeRootAsSeed: @root is a seed, or is left out where / has no device. The image is right in both cases.
func TestServeRootAsSeed(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nbdcopy")
	r := publish(t, small(t))
	s := serve(t, 1, newNginx(t, r.dir).url+"/b.caibx", "--seed", "@root")
	useNBDCopy(t, s.uris[0], r)
	if text := s.stderr.String(); !strings.Contains(text, "seed @root is") {
		t.Errorf("the messages do not mention the seed:\n%s", text)
	}
}
