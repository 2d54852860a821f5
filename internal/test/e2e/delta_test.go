package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/blob"
	"cairn/internal/test/nginx"
	"cairn/store/storetest"
	"cairn/testimages"
)

// edited returns a pair of which most chunks differ by a few bytes each.
func edited(t testing.TB) pair {
	t.Helper()
	dir := t.TempDir()
	a := testimages.Random(2, 6*mib)
	return pair{"edited", writeFile(t, dir, "a", a), writeFile(t, dir, "b", edit(a))}
}

// edit returns a with small changes, and with new bytes.
func edit(a []byte) []byte {
	b := slices.Concat(a[:mib], []byte("inserted"), a[mib:2*mib], testimages.Random(3, 300<<10), a[2*mib:])
	for at := 20_000; at < len(b); at += 70_000 {
		copy(b[at:], "edited")
	}
	return b
}

// withDelta publishes a pair with the delta between its images.
func withDelta(t testing.TB, p pair) release {
	t.Helper()
	r := publish(t, p)
	cairn(t, "delta", r.index("a"), r.index("b"))
	return r
}

// used is the part of the output of assemble --json and plan --json about deltas.
type used struct {
	assembled
	Delta     int64  `json:"delta_bytes"`
	Deltas    int64  `json:"delta_chunks"`
	DeltaMiss int64  `json:"delta_misses"`
	Old       string `json:"delta_old"`
}

// deltaFile returns the path of a file in the directory of deltas to release b.
func (r release) deltaFile(t testing.TB, name string) string {
	t.Helper()
	return filepath.Join(r.dir, "default.cadelta", readIndex(t, r.index("b")).Digest().String(), name)
}

// theDelta returns the path of the delta from a to b.
func (r release) theDelta(t testing.TB) string {
	t.Helper()
	return r.deltaFile(t, readIndex(t, r.index("a")).Digest().String()+".cadelta")
}

// wire is what a server has sent, apart from indexes beside the store.
type wire struct {
	requests int // that were answered
	bytes    int64
	delta    int // requests for the delta
}

// newDeltaServer serves a directory with nginx, with or without ranges. sent returns what it has sent since the last
// call.
func newDeltaServer(t testing.TB, dir string, ranges bool) (url string, sent func() wire) {
	t.Helper()
	o := nginx.Options{Root: dir, Log: true}
	if !ranges {
		o.Directives = []string{"max_ranges 0;"}
	}
	s := storetest.StartNginx(t, o)
	url = "http://" + s.Address()
	var seen wire
	return url, func() wire {
		answer, err := http.Get(url + "/are-you-done") // the only worker logs in order
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		var all wire
		for line := range strings.Lines(string(readFile(t, s.AccessLog()))) {
			var method, name string
			var status int
			var size int64
			if _, err := fmt.Sscan(line, &method, &status, &size, &name); err != nil {
				t.Fatalf("nginx logs %q: %v", line, err)
			}
			beside := strings.HasSuffix(name, ".caibx") && !strings.Contains(name, ".cadelta/")
			if method != http.MethodGet || status/100 != 2 || beside {
				continue
			}
			all.requests++
			all.bytes += size
			if strings.HasSuffix(name, ".cadelta") {
				all.delta++
			}
		}
		now := wire{all.requests - seen.requests, all.bytes - seen.bytes, all.delta - seen.delta}
		seen = all
		return now
	}
}

// TestDelta updates a file and a slot with a delta, from a server with and one without ranges. plan foretells what
// assemble downloads, which is what nginx has sent.
func TestDelta(t *testing.T) {
	t.Parallel()
	all := []pair{large(t)}
	if long() {
		all = append(all, edited(t))
	}
	if !testing.Short() {
		p, err := ext4()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
		all = append(all, realPairs(t)...)
	}
	for _, p := range all {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			r := withDelta(t, p)
			for _, ranges := range []bool{true, false} {
				url, sent := newDeltaServer(t, r.dir, ranges)
				s := newSlots(t, r, false)
				var without used
				parse(t, cairn(t, "plan", "--json", url+"/b.caibx", s.b, "--seed", s.a, "--no-delta"), &without)
				for name, c := range map[string]struct{ target, seed string }{
					"file, seed with index":    {filepath.Join(t.TempDir(), "out"), p.a + "=" + r.index("a")},
					"file, seed without index": {filepath.Join(t.TempDir(), "out"), p.a},
					"slot, longer seed":        {s.b, s.a},
				} {
					var foretold, done used
					sent()
					parse(t, cairn(t, "plan", "--json", url+"/b.caibx", c.target, "--seed", c.seed), &foretold)
					sent()
					parse(t, cairn(t, once([]string{"assemble", "--json", url + "/b.caibx", c.target, "--seed", c.seed})...), &done)
					got := sent()
					t.Logf("%s, ranges %v: %+v without, %+v with, nginx %+v", name, ranges, without.Bytes, done, got)
					if foretold.Bytes != done.Bytes || foretold.Downloads != done.Downloads || foretold.Deltas != done.Deltas {
						t.Errorf("%s: plan tells of %+v, assemble of %+v", name, foretold, done)
					}
					if done.Bytes != got.bytes || done.Downloads != got.requests {
						t.Errorf("%s, ranges %v: assemble tells of %+v, nginx has sent %+v", name, ranges, done, got)
					}
					if 2*done.Bytes > without.Bytes || done.Deltas == 0 || done.DeltaMiss > 0 || done.Done != done.Size {
						t.Errorf("%s: %d bytes instead of %d; %+v", name, done.Bytes, without.Bytes, done)
					}
					if got.delta > 1 && !ranges || got.delta > 3 {
						t.Errorf("%s, ranges %v: %d requests for the delta", name, ranges, got.delta)
					}
				}
				cairn(t, "verify", r.index("b"), s.b)
				var out bytes.Buffer
				out.WriteString(cairn(t, "cat", url+"/b.caibx", "--seed", p.a, "--state", ""))
				if !bytes.Equal(out.Bytes(), readFile(t, p.b)) {
					t.Error("cat has written another image")
				}
			}
		})
	}
}

// priced is the output of diff --json about the download.
type priced struct {
	Bytes     int64 `json:"download_bytes"`
	Downloads int   `json:"downloads"`
	Delta     struct {
		State    string
		Old      string
		Bytes    int64
		Requests int
		Chunks   int64
	}
}

// TestDiffPrice: diff tells what assemble downloads for a machine that holds the old image: with a delta, without one,
// and with a delta from another image.
func TestDiffPrice(t *testing.T) {
	t.Parallel()
	for _, p := range append([]pair{large(t)}, realPairs(t)...) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			r := withDelta(t, p)
			near := writeFile(t, t.TempDir(), "near", append([]byte("another"), readFile(t, p.a)...))
			cairn(t, "make", r.index("near"), near, "-s", filepath.Join(r.dir, "default.castr"))
			for _, ranges := range []bool{true, false} {
				url, sent := newDeltaServer(t, r.dir, ranges)
				for _, seed := range []string{p.a + "=" + r.index("a"), near + "=" + r.index("near")} {
					_, index, _ := strings.Cut(seed, "=")
					var price priced
					parse(t, cairn(t, "diff", "--json", index, url+"/b.caibx", "-s", url+"/default.castr"), &price)
					args := []string{"assemble", "--json", url + "/b.caibx", filepath.Join(t.TempDir(), "out"), "--seed", seed}
					var with, without used
					sent()
					parse(t, cairn(t, once(args)...), &with)
					got := sent()
					args[3] += "2"
					parse(t, cairn(t, once(append(args, "--no-delta"))...), &without)
					if price.Bytes != without.Bytes || price.Downloads != without.Downloads {
						t.Errorf("%s, ranges %v: diff tells of %+v, and without a delta assemble of %+v", seed, ranges, price, without)
					}
					if d := price.Delta; d.State != "made" || d.Bytes != with.Bytes || d.Requests != with.Downloads ||
						d.Chunks != with.Deltas || d.Old != with.Old || got.bytes != d.Bytes || got.requests != d.Requests {
						t.Errorf("%s, ranges %v: diff tells of %+v, assemble of %+v, nginx has sent %+v", seed, ranges, price, with, got)
					}
				}
			}
		})
	}
}

// large returns a pair whose delta is too large for one request.
func large(t testing.TB) pair {
	t.Helper()
	dir := t.TempDir()
	a := testimages.Random(4, 4*mib)
	b := bytes.Clone(a)
	for at := 0; at < len(b); at += 65_536 {
		copy(b[at:], testimages.Random(uint64(at), 20_000))
	}
	return pair{"large", writeFile(t, dir, "a", a), writeFile(t, dir, "b", b)}
}

// TestDeltaOfRemembered: the image of a slot is known from the job that wrote it. The slot has changed since.
func TestDeltaOfRemembered(t *testing.T) {
	t.Parallel()
	r := withDelta(t, edited(t))
	s, state := newSlots(t, r, true), t.TempDir()
	cairn(t, "assemble", r.index("a"), s.a, "--state", state)
	ended := run(t, "cairn", "plan", r.index("b"), s.b, "--seed", s.a, "--state", state)
	if strings.Contains(ended.stderr, "scanning") || !strings.Contains(ended.stdout, "from a delta") {
		t.Errorf("the seed was scanned, or no delta is used: %s%s", ended.stderr, ended.stdout)
	}
	s.change(t)
	var done used
	parse(t, cairn(t, "assemble", "--json", r.index("b"), s.b, "--seed", s.a, "--state", state), &done)
	if done.Deltas == 0 || done.Fetches > 2*9+2 {
		t.Errorf("after 9 changed blocks: %+v", done)
	}
	cairn(t, "verify", r.index("b"), s.b)
}

// TestDeltaIsAHint: whatever is wrong with the files of a delta, the image is right.
func TestDeltaIsAHint(t *testing.T) {
	t.Parallel()
	p := edited(t)
	r := withDelta(t, p)
	whole, list := readFile(t, r.theDelta(t)), readFile(t, r.deltaFile(t, "list"))
	random := rand.New(rand.NewPCG(1, 2))
	flip := func(b []byte, from int) []byte {
		b = bytes.Clone(b)
		for range 5 {
			b[from+random.IntN(len(b)-from)] ^= byte(1 + random.IntN(255))
		}
		return b
	}
	other := edited(t)
	if err := os.WriteFile(other.a, testimages.Random(77, 6*mib), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, ranges := range []bool{true, false} {
		url, _ := newDeltaServer(t, r.dir, ranges)
		for name, c := range map[string]struct{ delta, list []byte }{
			"truncated": {whole[:len(whole)/2], list}, "without payloads": {whole[:300], list}, "empty": {[]byte{}, list},
			"absent": {nil, list}, "no list": {whole, nil}, "damaged list": {whole, flip(list, 0)}, "a page": {[]byte("<html>no</html>"), []byte("<html>no</html>")},
			"damaged head": {flip(whole, 0), list}, "damaged payloads": {flip(whole, 2000), list},
			"zeros": {make([]byte, len(whole)), list}, "trailing bytes": {append(bytes.Clone(whole), make([]byte, 1000)...), list},
		} {
			for path, data := range map[string][]byte{r.theDelta(t): c.delta, r.deltaFile(t, "list"): c.list} {
				if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				if data == nil {
					continue
				}
				if err := os.WriteFile(path, data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			out := filepath.Join(t.TempDir(), "out")
			var done used
			parse(t, cairn(t, "assemble", "--json", url+"/b.caibx", out, "--seed", p.a), &done)
			wantSame(t, out, p.b)
			if useful := name == "damaged payloads" && ranges; useful && done.Deltas == 0 {
				t.Errorf("%s: no chunk was made from the delta: %+v", name, done)
			}
		}
		for path, data := range map[string][]byte{r.theDelta(t): whole, r.deltaFile(t, "list"): list} {
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		out := filepath.Join(t.TempDir(), "out")
		var done used
		parse(t, cairn(t, "assemble", "--json", url+"/b.caibx", out, "--seed", other.a+"="+r.index("a")), &done)
		wantSame(t, out, p.b)
		if done.Deltas > 0 {
			t.Errorf("a seed with a wrong index: %+v", done)
		}
	}
}

// TestDeltaFromAnotherRelease: there are deltas from 1 to 2 and from 2 to 3, and the seed is 1.
func TestDeltaFromAnotherRelease(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	one := testimages.Random(2, 4*mib)
	two := edit(one)
	three := slices.Concat(two[:100], []byte("more"), two[100:])
	for at := 50_000; at < len(three); at += 80_000 {
		copy(three[at:], "changed")
	}
	image := func(name string, data []byte) string { return writeFile(t, dir, name, data) }
	index := func(name string) string { return filepath.Join(dir, name+".caibx") }
	seed := image("1", one)
	cairn(t, "make", index("1"), seed)
	cairn(t, "make", index("2"), image("2", two), "--delta-from", index("1"))
	cairn(t, "make", index("3"), image("3", three), "--delta-from", index("2"))
	plan := run(t, "cairn", "plan", index("3"), filepath.Join(dir, "out"), "--seed", seed)
	if plan.status != 0 || strings.Contains(plan.stdout, "from a delta") || !strings.Contains(plan.stderr, "no delta from an image like") {
		t.Errorf("plan tells:\n%s%s", plan.stderr, plan.stdout)
	}
	cairn(t, "assemble", index("3"), filepath.Join(dir, "out"), "--seed", seed)
	wantSame(t, filepath.Join(dir, "out"), filepath.Join(dir, "3"))
	plan = run(t, "cairn", "plan", index("3"), filepath.Join(dir, "out2"), "--seed", filepath.Join(dir, "2"))
	if plan.status != 0 || !strings.Contains(plan.stdout, "from a delta") {
		t.Errorf("plan from 2 tells:\n%s%s", plan.stderr, plan.stdout)
	}
}

// TestDeltaKilled kills assemble at random moments. The next run takes from the delta and the store only what is
// missing on the target: what plan tells of, which reads the target.
func TestDeltaKilled(t *testing.T) {
	t.Parallel()
	p := edited(t)
	r := withDelta(t, p)
	url, sent := newDeltaServer(t, r.dir, true)
	s := newSlots(t, r, true)
	args := []string{"assemble", "--json", url + "/b.caibx", s.b, "--seed", s.a + "=" + r.index("a")}
	kills := 4
	if long() {
		kills = 30
	}
	for n := range kills {
		wipe(t, strings.Replace(s.b, "#root-b", "p3", 1))
		sent()
		j := start(t, nil, append(slices.Clone(args), "--rate-limit", "100KiB", "--memory", "1MiB")...)
		for end := rand.IntN(5 * mib); written(t, s) < end; {
			time.Sleep(2 * time.Millisecond)
		}
		_ = j.cmd.Process.Kill()
		j.wait(t)
		first := sent()
		var foretold, done used
		parse(t, cairn(t, append([]string{"plan"}, args[1:]...)...), &foretold)
		sent()
		parse(t, cairn(t, once(args)...), &done)
		second := sent()
		if done.Done != done.Size || second.bytes != foretold.Bytes || foretold.InPlace != done.InPlace {
			t.Errorf("kill %d: plan tells of %+v, assemble of %+v, nginx has sent %+v", n, foretold, done, second)
		}
		t.Logf("kill %d: %d bytes, then %d; %d bytes were in place", n, first.bytes, second.bytes, done.InPlace)
		cairn(t, "verify", r.index("b"), s.b)
	}
}

// written returns how many of the bytes in the second slot are not zero.
func written(t testing.TB, s slots) int {
	t.Helper()
	b := s.slotB(t)
	return len(b) - bytes.Count(b, []byte{0})
}

// TestDeltaOtherStores: deltas from S3, SFTP and a group of stores, with a cache and limits.
func TestDeltaOtherStores(t *testing.T) {
	p := edited(t)
	r := publish(t, p)
	server := storetest.S3(t, storetest.S3Options{})
	server.Bucket(t, "images")
	s3Keys(t, server)
	t.Setenv("AWS_ENDPOINT_URL", "http://"+server.Host)
	cairn(t, "make", "s3://images/x/a.caibx", p.a)
	cairn(t, "make", "s3://images/x/b.caibx", p.b, "--delta-from", "s3://images/x/a.caibx")
	cairn(t, "delta", r.index("a"), r.index("b"))
	out := func() string { return filepath.Join(t.TempDir(), "out") }
	check := func(name string, target string, args ...string) (done used) {
		t.Helper()
		parse(t, cairn(t, append(append([]string{"assemble", "--json"}, args...), "--seed", p.a)...), &done)
		wantSame(t, target, p.b)
		if done.Deltas == 0 || done.DeltaMiss > 0 {
			t.Errorf("%s: %+v", name, done)
		}
		return done
	}
	o := out()
	check("S3", o, "s3://images/x/b.caibx", o)
	o = out()
	check("group of an absent store and one with deltas", o, r.index("b"), o, "-s",
		filepath.Join(r.dir, "absent.castr")+"|"+filepath.Join(r.dir, "default.castr"))
	o = out()
	cache := t.TempDir()
	first := check("cache", o, r.index("b"), o, "-c", cache)
	var again used
	o = out()
	parse(t, cairn(t, "assemble", "--json", r.index("b"), o, "--seed", p.a, "-c", cache), &again)
	wantSame(t, o, p.b)
	if again.Bytes > first.Bytes/10 {
		t.Errorf("a second target with the cache: %d bytes after %d", again.Bytes, first.Bytes)
	}
	o = out()
	check("limits", o, r.index("b"), o, "--max-download", "2MiB", "--rate-limit", "20MiB")
	fails(t, failed, "download budget", "assemble", r.index("b"), out(), "--seed", p.a, "--max-download", "200KiB")
	if digest := readIndex(t, r.index("a")).Digest(); first.Old != digest.String() || digest == (blob.Digest{}) {
		t.Errorf("the delta is from %s, want %v", first.Old, digest)
	}
}
