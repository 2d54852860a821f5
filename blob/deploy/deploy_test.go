package deploy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/blob/assemble"
	"cairn/blob/ingest"
	"cairn/blob/release"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/blockdev"
	"cairn/internal/openfile"
	"cairn/internal/test/mem"
	"cairn/seed/known"
	"cairn/seed/learn"
	"cairn/store"
	"cairn/store/locate"
	"cairn/testimages"
)

// params cut images of some hundred KiB into many chunks.
var params = chunker.Params{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}

// published is an image, its index and a store that counts the chunks requested from it.
type published struct {
	image []byte
	index *blob.Index
	store.Getter
	gets  atomic.Int64 // requested chunks
	limit int64        // requests after this many fail; 0 for no limit
	begun func()       // called before each Get; may be nil
}

var errStore = errors.New("store failed")

func (p *published) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	if p.begun != nil {
		p.begun()
	}
	for i, w := range wants {
		if n := p.gets.Add(1); p.limit > 0 && n > p.limit {
			done(i, errStore)
			continue
		}
		done(i, store.GetOne(ctx, p.Getter, w.Digest, w.Dst))
	}
}

func publish(t testing.TB, image []byte, params chunker.Params) *published {
	t.Helper()
	var bucket mem.Bucket
	w, err := store.NewWriter(&bucket, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	x, _, err := ingest.Image(t.Context(), chunker.FromReaderAt(bytes.NewReader(image), int64(len(image))), w,
		ingest.Options{Params: params, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	return &published{image: image, index: x, Getter: store.NewChunks(&bucket, x.Algorithm())}
}

func writeFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// slots makes a disk with the slots root-a and root-b of mib MiB each, which begin with a and b.
func slots(t testing.TB, mib int64, a, b []byte) (disk string) {
	t.Helper()
	disk = filepath.Join(t.TempDir(), "disk.img")
	if err := testimages.GPTDisk(disk, 512, testimages.Slots(mib<<20, writeFile(t, a), writeFile(t, b))...); err != nil {
		t.Fatal(err)
	}
	return disk
}

// noted collects notes.
type noted []Note

func (n *noted) add(note Note) { *n = append(*n, note) }

// runJob claims, plans and runs.
func runJob(t testing.TB, p *published, location string, o Options) (assemble.Stats, error) {
	t.Helper()
	to, err := Claim(t.Context(), location, p.index, o)
	if err != nil {
		return assemble.Stats{}, err
	}
	defer to.Close()
	if to.Whole() {
		return assemble.Stats{InPlace: p.index.Size()}, nil
	}
	plan, err := NewPlan(t.Context(), p.index, to, o)
	if err != nil {
		return assemble.Stats{}, err
	}
	defer plan.Close()
	return plan.Run(t.Context(), p, nil)
}

// previewJob looks, plans and previews.
func previewJob(t testing.TB, p *published, location string, o Options) assemble.Stats {
	t.Helper()
	o.ReadOnly = true
	to, err := Look(t.Context(), location, p.index, o)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	plan, err := NewPlan(t.Context(), p.index, to, o)
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	stats, steps, err := plan.Preview(t.Context(), nil, nil)
	if err != nil || len(steps) != p.index.Len() {
		t.Fatalf("%d steps, %v", len(steps), err)
	}
	return stats
}

// isHeldBy reports whether the content at a location begins with the image.
func (p *published) isHeldBy(t testing.TB, location string) bool {
	t.Helper()
	to, err := Look(t.Context(), location, p.index, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	got := make([]byte, len(p.image))
	n, _ := to.before.ReadAt(got, 0)
	return bytes.Equal(got[:n], p.image)
}

// TestRunMatchesPreview: Run completes every kind of target, with the sources that Preview predicted.
func TestRunMatchesPreview(t *testing.T) {
	old := testimages.Sparse(1, 900_000)
	p := publish(t, append(testimages.Random(2, 70_000), old...), params)
	disk := slots(t, 2, old, old[:300_000])
	seeds := []learn.Place{{Path: writeFile(t, old)}}
	for _, c := range []struct {
		name, location string
		seeds          []learn.Place
	}{
		{"new file", filepath.Join(t.TempDir(), "new"), nil},
		{"new file, seed", filepath.Join(t.TempDir(), "new"), seeds},
		{"replaced file", writeFile(t, old), nil},
		{"old slot", disk + "#root-a", nil},
		{"other slot, seed", disk + "#root-b", seeds},
		{"other slot again", disk + "#root-b", nil},
		{"whole slot, seed", disk + "#root-b", seeds},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := Options{Seeds: c.seeds, Workers: 2}
			want := previewJob(t, p, c.location, o)
			before := p.gets.Load()
			got, err := runJob(t, p, c.location, o)
			if err != nil {
				t.Fatal(err)
			}
			if !p.isHeldBy(t, c.location) {
				t.Error("the target does not hold the image")
			}
			if got.Fetches != p.gets.Load()-before {
				t.Errorf("%d chunks fetched, %d counted", p.gets.Load()-before, got.Fetches)
			}
			got.Written, want.Written = 0, 0
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("run differs from preview (-preview +run):\n%s", diff)
			}
		})
	}
}

// TestWholeFile: a file that already is the image is not written and needs no plan.
func TestWholeFile(t *testing.T) {
	p := publish(t, testimages.Random(1, 100_000), params)
	path := writeFile(t, p.image)
	old, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	to, err := Claim(t.Context(), path, p.index, Options{})
	if err != nil || !to.Whole() || to.inPlace || to.IsStream() {
		t.Fatalf("Claim = %+v, %v, want one that is whole", to, err)
	}
	to.Close()
	if now, err := os.Stat(path); err != nil || !os.SameFile(old, now) {
		t.Errorf("the file was replaced, %v", err)
	}
}

// TestSeeds: any fault of a seed is noted, and costs a scan or a download.
func TestSeeds(t *testing.T) {
	old := testimages.Random(1, 600_000)
	p := publish(t, append(bytes.Clone(old), testimages.Random(2, 50_000)...), params)
	held := publish(t, old, params).index
	index := func(name string, x *blob.Index) locate.Location {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, x.Encode(), 0o600); err != nil {
			t.Fatal(err)
		}
		return locate.Path(path)
	}
	other := publish(t, old, chunker.Default).index
	dir, missing := t.TempDir(), filepath.Join(t.TempDir(), "missing")
	for name, data := range map[string][]byte{"old": old, "old.caibx": held.Encode(), ".hidden": old} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	fifos := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(fifos, "old"), old, 0o600), syscall.Mkfifo(filepath.Join(fifos, "fifo"), 0o600),
		syscall.Mkfifo(filepath.Join(fifos, "old.caibx"), 0o600)); err != nil {
		t.Fatal(err)
	}
	path := writeFile(t, old)
	fits, unfit, tree := index("fits.caibx", held), index("unfit.caibx", other), index("tree.caidx", held)
	for name, c := range map[string]struct {
		seed  learn.Place
		notes []Note // compared by type and by these fields
		scans int
	}{
		"with index":        {learn.Place{Path: path, Index: fits}, nil, 0},
		"without":           {learn.Place{Path: path}, nil, 1},
		"directory":         {learn.Place{Path: dir}, nil, 0},
		"FIFOs beside it":   {learn.Place{Path: fifos}, nil, 1},
		"missing":           {learn.Place{Path: missing}, []Note{learn.SeedLeftOut{Seed: missing}}, 0},
		"index missing":     {learn.Place{Path: path, Index: locate.Path(missing)}, []Note{learn.IndexLeftOut{Seed: path}}, 1},
		"index of others":   {learn.Place{Path: path, Index: unfit}, []Note{learn.IndexLeftOut{Seed: path, Err: errors.New("has chunks of")}}, 1},
		"index of a tree":   {learn.Place{Path: path, Index: tree}, []Note{learn.IndexLeftOut{Seed: path, Err: errors.New("is of a directory tree")}}, 1},
		"index of no seed":  {learn.Place{Path: missing, Index: fits}, []Note{learn.SeedLeftOut{Seed: missing}}, 0},
		"index is the seed": {learn.Place{Path: path, Index: locate.Path(path)}, []Note{learn.IndexLeftOut{Seed: path}}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var notes noted
			scans := 0
			o := Options{Seeds: []learn.Place{c.seed}, Notes: notes.add, Scanning: func(string, int64) (func(scan.Stats), func()) {
				scans++
				return func(scan.Stats) {}, func() {}
			}}
			stats, err := runJob(t, p, filepath.Join(t.TempDir(), "new"), o)
			if err != nil {
				t.Fatal(err)
			}
			if scans != c.scans || len(notes) != len(c.notes) {
				t.Fatalf("%d scans, notes %+v; want %d, %+v", scans, notes, c.scans, c.notes)
			}
			_, left := any(append(c.notes, nil)[0]).(learn.SeedLeftOut)
			if used := len(stats.Seeds) == 1 && stats.Seeds[0] > 500_000; used == left {
				t.Errorf("%v bytes come from seeds", stats.Seeds)
			}
			for i, n := range notes {
				if reflect.TypeOf(n) != reflect.TypeOf(c.notes[i]) {
					t.Fatalf("note %+v, want %+v", n, c.notes[i])
				}
				switch n := n.(type) {
				case learn.SeedLeftOut:
					if n.Seed != c.notes[i].(learn.SeedLeftOut).Seed || n.Err == nil {
						t.Errorf("note %+v, want %+v", n, c.notes[i])
					}
				case learn.IndexLeftOut:
					want := c.notes[i].(learn.IndexLeftOut)
					if n.Seed != want.Seed || n.Err == nil || want.Err != nil && !strings.Contains(n.Err.Error(), want.Err.Error()) {
						t.Errorf("note %+v, want %+v", n, want)
					}
				}
			}
		})
	}
}

// TestSeedIsTarget: a seed that shares bytes with the target, or is the stream's file, is refused.
func TestSeedIsTarget(t *testing.T) {
	p := publish(t, testimages.Random(1, 100_000), params)
	disk := slots(t, 1, nil, nil)
	for _, seed := range []string{disk, disk + "#root-b"} {
		_, err := runJob(t, p, disk+"#root-b", Options{Seeds: []learn.Place{{Path: seed}}})
		if refused, ok := errors.AsType[*blockdev.RefusedError](err); !ok || refused.Check != blockdev.CheckOverlap {
			t.Errorf("seed %s: %v, want a refusal", seed, err)
		}
	}
	if _, err := runJob(t, p, disk+"#root-b", Options{Seeds: []learn.Place{{Path: disk + "#root-a"}}}); err != nil {
		t.Errorf("the other slot: %v", err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, err := openfile.NewOutput(f, f)
	if err != nil {
		t.Fatal(err)
	}
	to := streamTarget("out", out)
	_, err = NewPlan(t.Context(), p.index, to, Options{Seeds: []learn.Place{{Path: f.Name()}}})
	if refused, ok := errors.AsType[*blockdev.RefusedError](err); !ok || refused.Check != blockdev.CheckOverlap {
		t.Errorf("the stream's file: %v, want a refusal", err)
	}
}

// TestTooSmall: a slot smaller than the image is refused, also by a preview.
func TestTooSmall(t *testing.T) {
	p := publish(t, testimages.Random(1, 1<<20+1), params)
	slot := slots(t, 1, nil, nil) + "#root-a"
	_, claimed := Claim(t.Context(), slot, p.index, Options{})
	_, looked := Look(t.Context(), slot, p.index, Options{})
	for _, err := range []error{claimed, looked} {
		if refused, ok := errors.AsType[*blockdev.RefusedError](err); !ok || refused.Check != blockdev.CheckTooSmall {
			t.Errorf("%v, want a refusal", err)
		}
	}
}

// TestState: the content of a slot is remembered, an unfinished job is noted, and a preview changes
// nothing.
func TestState(t *testing.T) {
	state := known.Dir(filepath.Join(t.TempDir(), "state"))
	old := publish(t, testimages.Random(1, 300_000), params)
	next := publish(t, slices.Concat([]byte("next"), old.image, testimages.Random(2, 200_000)), params)
	slot := slots(t, 1, nil, nil) + "#root-a"
	var notes noted
	scans := 0
	o := Options{State: state, Name: "next.caibx", Notes: notes.add, Scanning: func(string, int64) (func(scan.Stats), func()) {
		scans++
		return func(scan.Stats) {}, func() {}
	}}
	previewJob(t, old, slot, o)
	if _, err := os.Stat(string(state)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a preview the state is there: %v", err)
	}
	if _, err := runJob(t, old, slot, o); err != nil {
		t.Fatal(err)
	}
	scans, next.limit = 0, 10
	if _, err := runJob(t, next, slot, o); !errors.Is(err, errStore) {
		t.Fatalf("%v, want %v", err, errStore)
	}
	if scans != 0 {
		t.Error("the slot was scanned, though what it holds is remembered")
	}
	next.limit, notes = 0, nil
	previewJob(t, next, slot, o)
	if _, err := runJob(t, next, slot, o); err != nil || !next.isHeldBy(t, slot) {
		t.Errorf("the slot does not hold the image, %v", err)
	}
	var unfinished []Unfinished
	for _, n := range notes {
		if u, ok := n.(Unfinished); ok {
			unfinished = append(unfinished, u)
		}
	}
	if len(unfinished) != 1 || unfinished[0].Index != "next.caibx" || unfinished[0].Digest != next.index.Digest() || unfinished[0].Target != slot {
		t.Errorf("unfinished jobs %+v, want that of next.caibx", unfinished)
	}
	notes = nil
	o.State = known.Dir(filepath.Join(writeFile(t, nil), "no directory"))
	if _, err := runJob(t, next, slot, o); err != nil {
		t.Error(err)
	}
	failed := false
	for _, n := range notes {
		_, is := n.(learn.NotRemembered)
		failed = failed || is
	}
	if !failed {
		t.Errorf("notes %+v, want one that nothing is remembered", notes)
	}
}

// TestStream: a stream gets the image and is closed. After an error it is not closed.
func TestStream(t *testing.T) {
	p := publish(t, testimages.Sparse(1, 500_000), params)
	path := filepath.Join(t.TempDir(), "out")
	run := func() (finished bool, err error) {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		out, err := openfile.NewOutput(f, f)
		if err != nil {
			t.Fatal(err)
		}
		to := streamTarget("out", out)
		defer to.Close()
		plan, err := NewPlan(t.Context(), p.index, to, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer plan.Close()
		_, err = plan.Run(t.Context(), p, nil)
		_, closed := f.Stat()
		return errors.Is(closed, os.ErrClosed), err
	}
	finished, err := run()
	if got, readErr := os.ReadFile(path); err != nil || readErr != nil || !bytes.Equal(got, p.image) || !finished {
		t.Errorf("%v, %v, %d bytes, finished: %v", err, readErr, len(got), finished)
	}
	p.limit = 1
	if finished, err := run(); !errors.Is(err, errStore) || finished {
		t.Errorf("%v, finished: %v", err, finished)
	}
}

// TestTree: an archive of a directory tree is refused by Run and Preview, and leaves no file.
func TestTree(t *testing.T) {
	const entry = 0x1396fabcea5bbb51 // begins each archive, behind its size
	archive := binary.LittleEndian.AppendUint64([]byte{64, 0, 0, 0, 0, 0, 0, 0}, entry)
	archive = append(archive, testimages.Random(1, 50_000)...)
	p := publish(t, archive, params)
	path := filepath.Join(t.TempDir(), "out")
	_, err := runJob(t, p, path, Options{})
	if _, ok := errors.AsType[release.TreeError](err); !ok {
		t.Errorf("Run = %v, want a TreeError", err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("%v is left, %v", left, err)
	}
	to, err := Look(t.Context(), path, p.index, Options{})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := NewPlan(t.Context(), p.index, to, Options{Seeds: []learn.Place{{Path: writeFile(t, archive)}}})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	_, _, err = plan.Preview(t.Context(), nil, nil)
	if _, ok := errors.AsType[release.TreeError](err); !ok {
		t.Errorf("Preview = %v, want a TreeError", err)
	}
}

// TestInterruptedFile: the chunks of an interrupted file are not fetched again.
func TestInterruptedFile(t *testing.T) {
	p := publish(t, testimages.Random(1, 2_000_000), params)
	path := filepath.Join(t.TempDir(), "out")
	p.limit = 300
	if _, err := runJob(t, p, path, Options{Memory: 1 << 20}); !errors.Is(err, errStore) {
		t.Fatalf("%v, want %v", err, errStore)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an interrupted file has its name: %v", err)
	}
	p.limit = 0
	stats, err := runJob(t, p, path, Options{})
	if err != nil || !p.isHeldBy(t, path) || stats.InPlace == 0 {
		t.Errorf("%v, %d bytes were there", err, stats.InPlace)
	}
}
