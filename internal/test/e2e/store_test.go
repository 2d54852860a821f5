package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/blob"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/local"
)

// TestInterruptedStoreCopy: an interrupted copy has copied no index and no partial chunk, and the next one
// completes it.
func TestInterruptedStoreCopy(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	server := newNginx(t, r.dir)
	eachEnding(t, func(t *testing.T, end func(*job) bool) {
		dir := t.TempDir()
		to, indexes := filepath.Join(dir, "to"), filepath.Join(dir, "indexes")
		copies := func(from string) []string {
			return []string{"store", "copy", from + "/default.castr", to, r.index("b"), "--indexes-to", indexes}
		}
		g := newGate(t, server.url, 50)
		j := start(t, nil, copies(g.url)...)
		g.await(t)
		if end(j) {
			wantNoStage(t, to)
		}
		wantOnly(t, indexes)
		cairn(t, "store", "verify", to, "--state", "")
		cairn(t, copies(server.url)...)
		wantNoStage(t, to)
		wantSame(t, filepath.Join(indexes, "b.caibx"), r.index("b"))
		cairn(t, "verify", filepath.Join(indexes, "b.caibx"), "-s", to)
	})
}

// TestInterruptedStoreVerify: an interrupted verify fails, and the next one finds the same damage.
func TestInterruptedStoreVerify(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	server := newNginx(t, r.dir)
	eachEnding(t, func(t *testing.T, end func(*job) bool) {
		state := t.TempDir()
		g := newGate(t, server.url, 50)
		j := start(t, nil, "store", "verify", g.url+"/default.castr", r.index("b"), "--state", state)
		g.await(t)
		end(j)
		cairn(t, "store", "verify", server.url+"/default.castr", r.index("b"), "--state", state)
		wantOnly(t, state)
	})
}

// TestStoreCommandsWithoutStore: an unreachable server has an exit status of its own.
func TestStoreCommandsWithoutStore(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	url := deadURL(t)
	for name, args := range map[string][]string{
		"verify": {"store", "verify", url, r.index("b"), "--state", ""},
		"stat":   {"store", "stat", url, r.index("b")},
		"copy":   {"store", "copy", url, filepath.Join(t.TempDir(), "to"), r.index("b")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fails(t, notFound, "store unavailable", append(args, "--patience", "1s")...)
		})
	}
}

// TestStoreCopyToFullDisk: the copy reports a full disk, and copies no index.
func TestStoreCopyToFullDisk(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	disk := mount(t, "-t", "tmpfs", "-o", "size=512k", "tmpfs")
	to, indexes := filepath.Join(disk, "to"), t.TempDir()
	fails(t, failed, "no space left on device", "store", "copy", filepath.Join(r.dir, "default.castr"), to, r.index("b"), "--indexes-to", indexes)
	wantOnly(t, indexes)
	wantNoStage(t, to)
}

// TestMillionChunks runs the store commands on a store of a million chunks, and records their costs.
func TestMillionChunks(t *testing.T) {
	if os.Getenv("CAIRN_LONG") != "1" {
		t.Skip("it writes a million files: CAIRN_LONG=1")
	}
	const n = 1_000_000
	dir := t.TempDir()
	from, held, index := filepath.Join(dir, "store"), filepath.Join(dir, "held"), filepath.Join(dir, "x.caibx")
	writeFile(t, dir, "x.caibx", fill(t, from, n).Encode())
	must(t, "cp", "-al", from, held) // another store with the same chunks
	for _, c := range []struct {
		args []string
		most int64 // MiB
	}{
		{[]string{"stat", from}, 192},
		{[]string{"verify", from, "--state", filepath.Join(dir, "state")}, 192},
		{[]string{"copy", from, held}, 192},
		{[]string{"stat", from, index}, 384},
		{[]string{"verify", from, index, "--state", ""}, 384},
		{[]string{"copy", from, held, index}, 384},
	} {
		cost := timed(t, "cairn", append([]string{"store"}, c.args...)...)
		if !strings.Contains(cost.output, "1,000,000") {
			t.Fatalf("%q:\n%s", c.args, cost.output)
		}
		t.Logf("store %s, %d arguments: %d MiB, %.0f s of CPU time", c.args[0], len(c.args), cost.mebi, cost.cpu)
		if cost.mebi > c.most {
			t.Errorf("store %q takes %d MiB of memory, want at most %d", c.args, cost.mebi, c.most)
		}
	}
}

// measured is what a program took.
type measured struct {
	output    string // stdout and stderr
	mebi      int64  // peak memory
	wall, cpu float64
}

// timed runs a program that must succeed, and measures it.
func timed(t testing.TB, name string, args ...string) measured {
	t.Helper()
	// time is a small program: a child's peak memory starts with that of its parent.
	cmd := exec.CommandContext(t.Context(), need.Tool(t, "time"), append([]string{"-f", "%M %e %U %S", need.Tool(t, name)}, args...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, stdout, stderr.String())
	}
	var kibi int64
	var wall, user, system float64
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	if _, err := fmt.Sscan(lines[len(lines)-1], &kibi, &wall, &user, &system); err != nil {
		t.Fatalf("time says %q", stderr.String())
	}
	return measured{string(stdout) + stderr.String(), kibi >> 10, wall, user + system}
}

// TestMillionChunksCollected removes 100 of 200 releases in a store of a million chunks, beside casync gc and desync
// prune, and records the costs.
func TestMillionChunksCollected(t *testing.T) {
	if os.Getenv("CAIRN_LONG") != "1" {
		t.Skip("it writes a million files: CAIRN_LONG=1")
	}
	const n, releases, step = 1_000_000, 200, 4750
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	all := fill(t, path("default.castr"), n)
	bucket, err := local.Create(path("default.caroots"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	records, err := gcroot.Open(bucket, gcroot.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for i := range releases {
		builder, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 64, Avg: 64, Max: 64})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range all.Range(i*step, n-(releases-1-i)*step) {
			if _, err := builder.Add(64, c.Digest); err != nil {
				t.Fatal(err)
			}
		}
		x, name := builder.Index(), fmt.Sprintf("v%03d.caibx", i)
		writeFile(t, dir, name, x.Encode())
		if _, err := records.Write(t.Context(), &gcroot.Root{Name: name, Published: time.Now(), Index: x}, uint32(i+1)); err != nil {
			t.Fatal(err)
		}
		if i >= releases/2 {
			kept = append(kept, path(name))
		}
	}
	if err := records.Manage(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone := int64(releases / 2 * step)
	for _, peer := range []string{"casync", "desync"} {
		must(t, "cp", "-al", path("default.castr"), path(peer+".castr"))
	}
	must(t, "sync")
	args := []string{"repo", "gc", path("default.castr"), "--keep-last", "100", "--grace", "0s", "--yes"}
	for _, c := range []struct {
		name string
		cost measured
	}{
		{"repo list", timed(t, "cairn", "repo", "list", path("default.castr"))},
		{"repo gc --dry-run", timed(t, "cairn", append(args, "--dry-run")...)},
		{"repo gc", timed(t, "cairn", args...)},
		{"desync prune", timed(t, "desync", append([]string{"prune", "-y", "-s", path("desync.castr")}, kept...)...)},
		{"casync gc", timed(t, "casync", append([]string{"gc", "--store=" + path("casync.castr")}, kept...)...)},
	} {
		t.Logf("%s: %d MiB, %.1f s, %.1f s of CPU time", c.name, c.cost.mebi, c.cost.wall, c.cost.cpu)
		if strings.HasPrefix(c.name, "repo") && c.cost.mebi > 256 {
			t.Errorf("%s takes %d MiB of memory", c.name, c.cost.mebi)
		}
	}
	for _, name := range []string{"default.castr", "desync.castr", "casync.castr"} {
		var stat struct {
			Chunks int64 `json:"chunks"`
		}
		parse(t, cairn(t, "store", "stat", "--json", path(name)), &stat)
		if stat.Chunks != n-gone {
			t.Errorf("%s has %d chunks, want %d", name, stat.Chunks, n-gone)
		}
	}
}

// fill makes a store of n small chunks, and an index of them.
func fill(t testing.TB, dir string, n int) *blob.Index {
	t.Helper()
	b, err := local.Create(dir, local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := store.NewWriter(b, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	data := func(i int) []byte { return binary.BigEndian.AppendUint64(make([]byte, 56, 64), uint64(i)) }
	var writers sync.WaitGroup
	workers := 2 * runtime.GOMAXPROCS(0)
	for k := range workers {
		writers.Go(func() {
			for i := k; i < n && !t.Failed(); i += workers {
				if _, err := w.Put(t.Context(), blob.SHA512_256.Sum(data(i)), data(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	builder, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 64, Avg: 64, Max: 64})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := builder.Add(64, blob.SHA512_256.Sum(data(i))); err != nil {
			t.Fatal(err)
		}
	}
	return builder.Index()
}
