package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/internal/test/netlab"
	"cairn/internal/test/nginx"
	packs "cairn/store/pack"
	"cairn/store/storetest"
	"cairn/testimages"
)

// packRelease packs the chunks of a release, as if both images were published with packs.
func (r release) packRelease(t testing.TB, size int64) {
	t.Helper()
	for _, name := range []string{"a", "b"} {
		image := map[string]string{"a": r.a, "b": r.b}[name]
		cairn(t, "make", "--layout", "both", "--pack-size", strconv.FormatInt(size, 10), r.index(name), image)
	}
}

// mapFile returns the path of the map of packs of a release.
func (r release) mapFile(t testing.TB, name string) string {
	t.Helper()
	return filepath.Join(r.dir, name+"."+readIndex(t, r.index(name)).Digest().String()[:16]+".camap")
}

// removeChunks removes the store's chunks: what is left is in packs.
func (r release) removeChunks(t testing.TB) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(r.dir, "default.castr")); err != nil {
		t.Fatal(err)
	}
}

// packServer is an nginx that counts what it sends of packs and maps.
type packServer struct {
	*webServer
	before traffic
}

func newPackServer(t testing.TB, dir string, directives ...string) *packServer {
	t.Helper()
	s := storetest.StartNginx(t, nginx.Options{Root: dir, Log: true, Directives: directives})
	return &packServer{webServer: &webServer{url: "http://" + s.Address(), log: s.AccessLog()}}
}

// sentFiles returns the answers with data of packs, maps and chunks since the last call.
func (s *packServer) sentFiles(t testing.TB) traffic {
	t.Helper()
	s.sent(t) // waits for the log
	var all traffic
	for line := range strings.Lines(string(readFile(t, s.log))) {
		var method, name string
		var status int
		var size int64
		if _, err := fmt.Sscan(line, &method, &status, &size, &name); err != nil {
			t.Fatalf("nginx logs %q: %v", line, err)
		}
		switch ext := filepath.Ext(name); {
		case method != http.MethodGet || status >= 300:
		case ext == ".capk", ext == ".camap", ext == ".cacnk":
			all.chunks++
			all.bytes += size
		}
	}
	news := traffic{all.chunks - s.before.chunks, all.bytes - s.before.bytes}
	s.before = all
	return news
}

// TestPacks: all commands read a release that is only in packs, from an nginx with and without ranges. plan tells exactly
// what assemble downloads, and diff what an update does.
func TestPacks(t *testing.T) {
	t.Parallel()
	need.Tool(t, "nginx")
	r := publish(t, filesystems(t)[1])
	r.packRelease(t, packs.MinSize)
	r.removeChunks(t)
	for name, directives := range map[string][]string{"ranges": nil, "no ranges": {"max_ranges 0;"}} {
		t.Run(name, func(t *testing.T) {
			s := newPackServer(t, r.dir, directives...)
			index := s.url + "/b.caibx"
			for what, read := range reading {
				if got := read(t, r, index); got.status != 0 || strings.Contains(got.stderr, "warning") {
					t.Errorf("%s: status %d\n%s", what, got.status, got.stderr)
				}
			}
			for what, seed := range map[string][]string{"all": nil, "update": {"--seed", r.a + "=" + r.index("a")}} {
				out := filepath.Join(t.TempDir(), "out")
				var planned, got assembled
				parse(t, cairn(t, append([]string{"plan", "--json", index, out}, seed...)...), &planned)
				s.sentFiles(t)
				parse(t, cairn(t, append([]string{"assemble", "--json", index, out}, seed...)...), &got)
				sent := s.sentFiles(t)
				wantSame(t, out, r.b)
				if planned.Downloads != got.Downloads || planned.Bytes != got.Bytes {
					t.Errorf("%s: planned %d downloads of %d bytes, and assembled with %d of %d",
						what, planned.Downloads, planned.Bytes, got.Downloads, got.Bytes)
				}
				if sent.chunks != got.Downloads || sent.bytes != got.Bytes {
					t.Errorf("%s: nginx sent %+v, and assemble counts %d downloads of %d bytes", what, sent, got.Downloads, got.Bytes)
				}
				if what == "all" || name == "ranges" {
					continue
				}
				if most := int(got.Bytes/packs.MinSize) + 1 + 4; got.Downloads > most {
					t.Errorf("an update without ranges takes %d downloads of %d bytes, want at most %d", got.Downloads, got.Bytes, most)
				}
				var diff struct {
					Downloads int
					Bytes     int64 `json:"download_bytes"`
				}
				parse(t, cairn(t, "diff", "--json", s.url+"/a.caibx", index, "-s", s.url+"/default.castr"), &diff)
				if diff.Downloads != got.Downloads || diff.Bytes != got.Bytes {
					t.Errorf("diff says %+v, and assemble took %d downloads of %d bytes", diff, got.Downloads, got.Bytes)
				}
			}
			wantServed(t, serve(t, 1, index, "--listen", "unix:"+filepath.Join(socketDir(t), "s")), readFile(t, r.b))
		})
	}
}

// TestPacksAreHints: whatever is wrong with a map or a pack, the image is right, from the chunks of the store. Without
// these it is a missing or damaged chunk.
func TestPacksAreHints(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	r.packRelease(t, packs.MinSize)
	mapFile := r.mapFile(t, "b")
	m, ofOther := readFile(t, mapFile), readFile(t, r.mapFile(t, "a"))
	writeMap := func(file []byte) { writeFile(t, filepath.Dir(mapFile), filepath.Base(mapFile), file) }
	files, err := filepath.Glob(filepath.Join(r.dir, "default.capack", "*.capk"))
	if err != nil || len(files) == 0 {
		t.Fatalf("packs: %v, %v", files, err)
	}
	good := map[string][]byte{}
	for _, p := range files {
		good[p] = readFile(t, p)
	}
	change := func(edit func(file []byte) []byte) func() {
		return func() {
			for path, file := range good {
				writeFile(t, filepath.Dir(path), filepath.Base(path), edit(bytes.Clone(file)))
			}
		}
	}
	index := newNginx(t, r.dir).url + "/b.caibx"
	for _, alone := range []bool{false, true} {
		if alone {
			r.removeChunks(t)
		}
		for name, c := range map[string]struct {
			spoil  func()
			warns  bool
			status int // without chunks
		}{
			"nothing":      {func() {}, false, 0},
			"no map":       {func() { os.Remove(mapFile) }, false, notFound},
			"other map":    {func() { writeMap(ofOther) }, true, notFound},
			"damaged map":  {func() { writeMap(append(bytes.Clone(m[:99]), m[100:]...)) }, true, notFound},
			"garbage":      {change(func(p []byte) []byte { clear(p[20 : len(p)-20]); return p }), false, damaged},
			"shorter":      {change(func(p []byte) []byte { return p[:len(p)/2] }), false, damaged},
			"longer":       {change(func(p []byte) []byte { return append(p, 1) }), false, damaged},
			"empty":        {change(func([]byte) []byte { return nil }), false, damaged},
			"absent packs": {func() { os.RemoveAll(filepath.Join(r.dir, "default.capack")) }, false, notFound},
		} {
			writeMap(m)
			if err := os.MkdirAll(filepath.Join(r.dir, "default.capack"), 0o755); err != nil {
				t.Fatal(err)
			}
			change(func(p []byte) []byte { return p })()
			c.spoil()
			got := reading["assemble"](t, r, index)
			want := 0
			if alone {
				want = c.status
			}
			if got.status != want || strings.Contains(got.stderr, "warning: no packs are used") != c.warns {
				t.Errorf("%s, without chunks %v: status %d, want %d\n%s", name, alone, got.status, want, got.stderr)
			}
		}
	}
}

// TestPacksOverLinks: assemble from packs fills a slow link, and is several times as fast as desync from chunks over a link
// of high latency. It needs a machine without other work.
func TestPacksOverLinks(t *testing.T) {
	if os.Getenv("CAIRN_LONG") == "" {
		t.Skip("CAIRN_LONG is not set")
	}
	r := publishDebianShapes(t)
	for _, name := range []string{"a", "b"} {
		at := filepath.Join(r.dir, "default.castr")
		cairn(t, "store", "copy", "--layout", "packs", at, at, r.index(name))
	}
	for _, c := range []struct {
		name  string
		link  netlab.Link
		args  []string
		least float64 // share of the link
		times float64 // as fast as desync, at least
	}{
		{"update, 40 ms, 100 Mbit/s", netlab.Link{RTT: 40 * time.Millisecond, Rate: 100 * netlab.Mbit}, []string{"--seed", r.a + "=" + r.index("a")}, 0.93, 0},
		{"all, 40 ms, 100 Mbit/s", netlab.Link{RTT: 40 * time.Millisecond, Rate: 100 * netlab.Mbit}, nil, 0.97, 0},
		{"all, 100 ms, 1 Gbit/s", netlab.Link{RTT: 100 * time.Millisecond, Rate: netlab.Gbit}, nil, 0, 3},
	} {
		_, url := newLink(t, newNginx(t, r.dir).url, c.link, nil)
		out := filepath.Join(t.TempDir(), "out")
		begun := time.Now()
		var got assembled
		parse(t, cairn(t, append([]string{"assemble", "--json", url + "/b.caibx", out}, c.args...)...), &got)
		took := time.Since(begun)
		share := float64(got.Bytes*8) / float64(c.link.Rate) / took.Seconds()
		t.Logf("%s: %d downloads of %d bytes in %v, %.1f %% of the link", c.name, got.Downloads, got.Bytes, took, 100*share)
		if share < c.least {
			t.Errorf("%s: %.1f %% of the link, want %.0f %%", c.name, 100*share, 100*c.least)
		}
		if c.times > 0 {
			begun = time.Now()
			must(t, "desync", "extract", "-s", url+"/default.castr", url+"/b.caibx", out+".desync")
			peer := time.Since(begun)
			t.Logf("%s: desync from chunks: %v", c.name, peer)
			if peer.Seconds() < c.times*took.Seconds() {
				t.Errorf("%s: %v, and desync from chunks %v", c.name, took, peer)
			}
		}
	}
}

// TestStoreCopyLayout: store copy turns chunks into packs, and packs into the same chunks.
func TestStoreCopyLayout(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	chunks, to := filepath.Join(r.dir, "default.castr"), filepath.Join(t.TempDir(), "default.castr")
	before := filesIn(t, chunks)
	cairn(t, "store", "copy", "--layout", "packs", "--indexes-to", filepath.Dir(to), chunks, to, r.index("a"), r.index("b"))
	moved := release{r.pair, filepath.Dir(to)}
	if n := len(filesIn(t, to)); n > 0 {
		t.Errorf("%d files in a store that has packs only", n)
	}
	for _, name := range []string{"a", "b"} {
		out := filepath.Join(t.TempDir(), name)
		cairn(t, "assemble", moved.index(name), out)
		wantSame(t, out, map[string]string{"a": r.a, "b": r.b}[name])
	}
	back := filepath.Join(t.TempDir(), "default.castr")
	cairn(t, "store", "copy", to, back, moved.index("a"), moved.index("b"))
	after := filesIn(t, back)
	if len(after) != len(before) {
		t.Errorf("%d chunks of %d are back", len(after), len(before))
	}
	for name, data := range before {
		if !bytes.Equal(after[name], data) {
			t.Errorf("%s is not the same file", name)
		}
	}
	cairn(t, "repo", "check", to)
	cairn(t, "repo", "remove", to, "a.caibx")
	cairn(t, "repo", "gc", to, "--grace", "0s", "--yes")
	cairn(t, "verify", moved.index("b"))
	again := filepath.Join(t.TempDir(), "default.castr")
	cairn(t, "store", "copy", to, again)
	if got, want := filesIn(t, filepath.Join(filepath.Dir(again), "default.capack")), filesIn(t, filepath.Join(filepath.Dir(to), "default.capack")); len(got) == 0 || len(got) != len(want) {
		t.Errorf("%d of %d packs are copied without indexes", len(got), len(want))
	}
}

// filesIn returns the files below a directory, by their paths in it.
func filesIn(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			name, _ := filepath.Rel(dir, path)
			files[name] = readFile(t, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestRepack: of ten releases in packs, five are removed. gc keeps what the others need, and with --repack little more.
func TestRepack(t *testing.T) {
	t.Parallel()
	dir, fresh, images := t.TempDir(), t.TempDir(), t.TempDir()
	image := testimages.Random(1, 8*mib)
	size := func(dir string) (n int64) {
		for _, data := range filesIn(t, filepath.Join(dir, "default.capack")) {
			n += int64(len(data))
		}
		return n
	}
	index := func(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("v%d.caibx", n)) }
	file := func(n int) string { return filepath.Join(images, fmt.Sprintf("v%d", n)) }
	publishInto := func(dir string, n int) {
		cairn(t, "make", "--layout", "packs", "--pack-size", "256KiB", index(dir, n), file(n))
	}
	for n := range 10 {
		for at := n * 4096; at+65_536 < len(image); at += mib { // each release changes a tenth
			copy(image[at:at+100_000], testimages.Random(uint64(1000*n+at), 100_000))
		}
		writeFile(t, images, fmt.Sprintf("v%d", n), image)
		publishInto(dir, n)
		if n >= 5 {
			publishInto(fresh, n)
		}
	}
	check := func(what string, most float64) {
		t.Helper()
		for n := 5; n < 10; n++ {
			cairn(t, "verify", index(dir, n))
		}
		cairn(t, "repo", "check", filepath.Join(dir, "default.castr"))
		if share := float64(size(dir)) / float64(size(fresh)); share > most {
			t.Errorf("%s: the packs take %.2f times those of a fresh publication, want at most %.2f", what, share, most)
		} else {
			t.Logf("%s: %.2f times", what, share)
		}
	}
	gc := []string{"repo", "gc", filepath.Join(dir, "default.castr"), "--keep-last", "5", "--grace", "0s", "--yes"}
	cairn(t, gc...)
	check("gc", 1.3)
	cairn(t, append(gc, "--repack")...)
	check("gc --repack", 1.05)
	cairn(t, append(gc, "--repack")...)
	check("gc --repack again", 1.05)
}

// TestPacksOnS3: releases are published into S3 in packs, with few requests, read from there, and collected.
func TestPacksOnS3(t *testing.T) {
	server := storetest.S3(t, storetest.S3Options{})
	server.Bucket(t, "images")
	s3Keys(t, server)
	proxy, counts := storetest.CountingProxy(t, "http://"+server.Host)
	t.Setenv("AWS_ENDPOINT_URL", proxy)
	p := small(t)
	make := func(name, image string) storetest.Counts {
		before := counts()
		cairn(t, "make", "s3://images/"+name, image, "--layout", "packs", "--pack-size", "512KiB")
		return counts().Sub(before)
	}
	make("a.caibx", p.a)
	for _, newPacks := range []int64{2, 0} { // then the same again
		spent := make("b.caibx", p.b)
		t.Logf("a release with %d new packs: %+v", newPacks, spent)
		if spent.Puts > newPacks+6 || spent.Heads > 8 || spent.Lists > 8 || spent.Deletes > 2 {
			t.Errorf("a release with %d new packs: %+v", newPacks, spent)
		}
	}
	for name, image := range map[string]string{"a": p.a, "b": p.b} {
		out := filepath.Join(t.TempDir(), name)
		cairn(t, "assemble", "s3://images/"+name+".caibx", out)
		wantSame(t, out, image)
	}
	cairn(t, "repo", "remove", "s3://images/default.castr", "a.caibx")
	cairn(t, "repo", "gc", "s3://images/default.castr", "--grace", "0s", "--yes", "--repack")
	cairn(t, "repo", "check", "s3://images/default.castr")
	cairn(t, "verify", "s3://images/b.caibx")
}
