package crashtest

import (
	"bytes"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	update "cairn/blob/assemble" // assemble is a function of this package
	"cairn/internal/test/need"
	"cairn/seed"
	"cairn/store"
	"cairn/store/locate"
	"cairn/testimages"
)

// eachKind runs a test with the releases on each kind of file system.
func eachKind(t *testing.T, test func(t *testing.T, r releases)) {
	t.Parallel()
	need.Root(t)
	for name, made := range map[string]func() (releases, error){"ext4": ext4, "squashfs": squashfs} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, published(t, made))
		})
	}
}

// slotsOf returns slots with release a in the first slot and b, other content, in the second.
func slotsOf(t testing.TB, r releases, b string) slots {
	t.Helper()
	size := (max(r.size(t, "a"), r.size(t, "b"), r.size(t, "c"))/mib + 2) * mib
	return newSlots(t, size, 512, r.image("a"), b)
}

// TestUpdateIsFrugal: an update to release b from the slot with release a downloads their difference, and writes only
// blocks that differ. It reads the seed once, or twice when it has to scan it. A second run writes nothing.
func TestUpdateIsFrugal(t *testing.T) {
	eachKind(t, func(t *testing.T, r releases) {
		d, state := newDepot(t, r), t.TempDir()
		difference, two := r.difference(t, r.read(t, "a"), "b")
		for _, c := range []struct {
			name, seed, held string
			reads            int64 // passes over the seed
		}{
			{"first scan", "", "", 2},
			{"remembered scan, onto an older release", "", r.image("c"), 1},
			{"index", "=" + r.index("a"), "", 1},
		} {
			s := slotsOf(t, r, c.held)
			args := once(d.url+"/b.caibx", s.b, "--state", state, "--seed", s.a+c.seed)
			if c.held != "" { // remembers the scan of the seed, a new device
				must(t, "cairn", "assemble", d.url+"/c.caibx", s.b, "--state", state, "--seed", s.a)
			}
			d.news()
			allowed := writable(t, r.read(t, "b"), openFile(t, s.b))
			forget(t, s.a)
			var seed counts
			target := counted(t, s.b, func() { seed = counted(t, s.a, func() { assemble(t, args...) }) })
			got := total(d.news())
			t.Logf("%s: downloaded %d of %d bytes, written %d of %d, read %d of the seed's %d", c.name,
				got, difference, target.written, allowed, seed.read, s.size)
			if got > difference*1005/1000+two {
				t.Errorf("%s: downloaded %d bytes, want at most %d and two chunks", c.name, got, difference)
			}
			if target.written > allowed {
				t.Errorf("%s: the kernel has written %d bytes, want at most %d", c.name, target.written, allowed)
			}
			if most := c.reads*s.size + mib; seed.read > most {
				t.Errorf("%s: %d bytes of the seed were read, want at most %d", c.name, seed.read, most)
			}
			wantImage(t, s.b, r.image("b"))
			wantNothingWritten(t, d, s.b, args)
		}
	})
}

// once prevents repeated requests for slow answers, so that downloads can be counted: a job with a download
// limit sends none.
func once(args ...string) []string { return append(args, "--max-download", "1GiB") }

// wantNothingWritten assembles once more, and checks that no byte is written.
func wantNothingWritten(t testing.TB, d *depot, target string, args []string) {
	t.Helper()
	var again assembled
	wrote := counted(t, target, func() { again = assemble(t, args...) })
	if wrote.written != 0 || again.Written != 0 || again.InPlace != again.Size || total(d.news()) != 0 {
		t.Errorf("once more, the kernel has written %d bytes: %+v", wrote.written, again)
	}
}

// TestCountedInGo counts at the interfaces the bytes that the kernel counts below them.
func TestCountedInGo(t *testing.T) {
	t.Parallel()
	r := published(t, ext4)
	x, held := r.read(t, "b"), r.read(t, "a")
	from, err := locate.Access{}.Open(locate.Path(filepath.Join(r.dir, "default.castr")))
	if err != nil {
		t.Fatal(err)
	}
	slot := filepath.Join(t.TempDir(), "slot")
	must(t, "cp", r.image("c"), slot)
	allowed := writable(t, x, openFile(t, slot))
	f, err := os.OpenFile(slot, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	target, a := &counting{File: f}, &counting{File: openFile(t, r.image("a"))}
	plan := seed.NewPlan(x, seed.Seed{Name: "a", Index: held, Data: a})
	chunks := store.NewChunks(from, x.Algorithm())
	if _, err := update.Run(t.Context(), plan, chunks, target, update.Options{}); err != nil {
		t.Fatal(err)
	}
	wantImage(t, slot, r.image("b"))
	t.Logf("written %d of %d, read %d of the seed's %d", target.wrote.Load(), allowed, a.got.Load(), held.Size())
	if target.wrote.Load() > allowed || a.got.Load() > held.Size() {
		t.Errorf("written %d bytes, want at most %d; read %d of the seed, want at most %d",
			target.wrote.Load(), allowed, a.got.Load(), held.Size())
	}
}

// counting is a file that counts read and written bytes.
type counting struct {
	*os.File
	got, wrote atomic.Int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.got.Add(int64(len(p)))
	return c.File.ReadAt(p, off)
}

func (c *counting) WriteAt(p []byte, off int64) (int, error) {
	c.wrote.Add(int64(len(p)))
	return c.File.WriteAt(p, off)
}

// Zero implements assemble.Target by writing zeros.
func (c *counting) Zero(off, n int64) error {
	_, err := c.WriteAt(make([]byte, n), off)
	return err
}

func openFile(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestFlippedByte: a wrong byte in a seed costs the download of one chunk.
func TestFlippedByte(t *testing.T) {
	t.Parallel()
	size := 64 * mib
	if long() {
		size = gib
	}
	content := testimages.Sparse(3, size)
	at := int64(size)/2 + 4711
	for bytes.Equal(content[at:at+kib], make([]byte, kib)) {
		at += kib
	}
	r := single(t, content)
	x := r.read(t, "x")
	content[at] ^= 1
	seed := t.TempDir() + "/seed"
	if err := os.WriteFile(seed, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, index := range []string{"", "=" + r.index("x")} {
		d := newDepot(t, r)
		target := t.TempDir() + "/target"
		got := assemble(t, once(d.url+"/x.caibx", target, "--state", "", "--seed", seed+index)...)
		want := r.stored(t, x.At(x.Find(at)).Digest)
		if sent := total(d.news()); sent != want || got.Downloads != 1 {
			t.Errorf("seed%s: downloaded %d chunks, %d bytes, want one of %d", index, got.Downloads, sent, want)
		}
		wantImage(t, target, r.image("x"))
	}
}
