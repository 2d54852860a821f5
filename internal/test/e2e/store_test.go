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

	"cairn/blob"
	"cairn/internal/test/need"
	"cairn/store"
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
	if testing.Short() {
		t.Skip("waiting takes half a minute")
	}
	r := noise(t, mib)
	url := deadURL(t)
	for name, args := range map[string][]string{
		"verify": {"store", "verify", url, r.index("b"), "--state", ""},
		"stat":   {"store", "stat", url, r.index("b")},
		"copy":   {"store", "copy", url, filepath.Join(t.TempDir(), "to"), r.index("b")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fails(t, notFound, "store unavailable", append(args, "--patience", "10s")...)
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
		// time is a small program: a child's peak memory starts with that of its parent.
		cmd := exec.CommandContext(t.Context(), need.Tool(t, "time"), append([]string{"-f", "%M %U %S", "cairn", "store"}, c.args...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		stdout, err := cmd.Output()
		if err != nil || !strings.Contains(stderr.String()+string(stdout), "1,000,000") {
			t.Fatalf("%q: %v\n%s%s", c.args, err, stdout, stderr.String())
		}
		var kibi int64
		var user, system float64
		lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
		if _, err := fmt.Sscan(lines[len(lines)-1], &kibi, &user, &system); err != nil {
			t.Fatalf("time says %q", stderr.String())
		}
		mebi := kibi >> 10
		t.Logf("store %s, %d arguments: %d MiB, %.0f s of CPU time", c.args[0], len(c.args), mebi, user+system)
		if mebi > c.most {
			t.Errorf("store %q takes %d MiB of memory, want at most %d", c.args, mebi, c.most)
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
