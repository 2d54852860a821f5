package cachedir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/blob"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/supply"
)

const kib = 1 << 10

// sample is a chunk for tests.
type sample struct {
	data   []byte
	digest blob.Digest
}

// newSample returns an incompressible chunk that takes more than size bytes when it is stored.
func newSample(seed uint64, size int) sample {
	data := storetest.Bytes(seed, size)
	return sample{data, blob.SHA512_256.Sum(data)}
}

func (s sample) name() string {
	hex := s.digest.String()
	return hex[:4] + "/" + hex + ".cacnk"
}

// open returns a cache that is closed when the test ends.
func open(t *testing.T, path string, limit int64) *Dir {
	t.Helper()
	d := Open(path, Options{Limit: limit})
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// settle waits for the running eviction.
func (d *Dir) settle() { d.evictor.background.Wait() }

// recount counts while no writer is active.
func (d *Dir) recount(t *testing.T) {
	t.Helper()
	d.settle()
	l, err := d.attachLedger(mustExist)
	if err != nil {
		t.Fatal(err)
	}
	d.settle()
	if o, err := l.evictRound(t.Context(), request{}); err != nil || o.left > 0 {
		t.Fatalf("counting: %+v, %v", o, err)
	}
}

func write(t *testing.T, d *Dir, samples ...sample) {
	t.Helper()
	for _, s := range samples {
		if err := d.Write(t.Context(), s.name(), s.data); err != nil {
			t.Fatal(err)
		}
		d.settle()
	}
}

func has(t *testing.T, d *Dir, s sample) bool {
	t.Helper()
	_, err := d.Stat(t.Context(), s.name())
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		t.Fatal(err)
	}
	return err == nil
}

// through gets chunks from the cache, and on a miss from samples.
func through(t *testing.T, d *Dir, failed func(error), samples ...sample) (g store.Getter, far *int) {
	t.Helper()
	keep, err := store.NewWriter(d, store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	far = new(int)
	return supply.Cached(origin{samples, far}, store.NewChunks(d, blob.SHA512_256), keep, failed), far
}

// origin supplies samples, and counts the requests.
type origin struct {
	samples []sample
	asked   *int
}

// Get implements store.Getter.
func (o origin) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	storetest.GetterFunc(o.get).Get(ctx, wants, done)
}

func (o origin) get(_ context.Context, d blob.Digest, dst []byte) error {
	*o.asked++
	for _, s := range o.samples {
		if s.digest == d {
			copy(dst, s.data)
			return nil
		}
	}
	return store.ErrNotFound
}

func wantFrom(t *testing.T, g store.Getter, s sample) {
	t.Helper()
	dst := make([]byte, len(s.data))
	if err := store.GetOne(t.Context(), g, s.digest, dst); err != nil || !bytes.Equal(dst, s.data) {
		t.Errorf("Get = %v, want the chunk", err)
	}
}

func noFailure(t *testing.T) func(error) {
	return func(err error) { t.Errorf("failure reported: %v", err) }
}

// du returns the space of the chunks, temporary files and their directories, in blocks of the disk.
func du(t testing.TB, path string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(path, func(file string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		name := filepath.Base(file)
		chunk := strings.HasSuffix(name, ".cacnk") || strings.HasSuffix(name, tempSuffix)
		if err != nil || !chunk && !(e.IsDir() && isChunkDir(name)) {
			return err
		}
		var s unix.Stat_t
		if unix.Lstat(file, &s) == nil {
			bytes += s.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// tallyOf returns the shared tally of a cache.
func tallyOf(t testing.TB, path string) tally {
	t.Helper()
	line, err := os.ReadFile(filepath.Join(path, controlName, "state"))
	if err != nil {
		t.Fatal(err)
	}
	known, err := decodeTally(line)
	if err != nil {
		t.Fatal(err)
	}
	return known
}

func setAge(t *testing.T, path string, s sample, age time.Duration) {
	t.Helper()
	at := time.Now().Add(-age)
	if err := os.Chtimes(filepath.Join(path, s.name()), at, at); err != nil {
		t.Fatal(err)
	}
}

func ageIs(t *testing.T, path string, s sample) time.Duration {
	t.Helper()
	info, err := os.Stat(filepath.Join(path, s.name()))
	if err != nil {
		t.Fatal(err)
	}
	return time.Since(info.ModTime())
}

func TestCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a/b")
	a, b := newSample(1, 20*kib), newSample(2, 50*kib)
	for round := range 3 {
		g, far := through(t, open(t, path, 0), noFailure(t), a, b)
		for range 2 {
			wantFrom(t, g, a)
			wantFrom(t, g, b)
		}
		if want := 2; round == 0 && *far != want || round > 0 && *far != 0 {
			t.Errorf("round %d: far was asked %d times", round, *far)
		}
	}
}

// TestNothingIsMadeToRead: a cache that is only read creates no files.
func TestNothingIsMadeToRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	if d := open(t, path, 0); has(t, d, newSample(1, 10)) {
		t.Error("an absent cache has a chunk")
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory was made: %v", err)
	}
}

// TestDamagedChunks: each damaged chunk is a miss and is replaced, and the count includes the
// damaged one's size.
func TestDamagedChunks(t *testing.T) {
	path := t.TempDir()
	s := newSample(1, 50*kib)
	g, far := through(t, open(t, path, 0), noFailure(t), s)
	wantFrom(t, g, s)
	want := tallyOf(t, path).used
	file := filepath.Join(path, s.name())
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(whole)
	flipped[len(flipped)/2] ^= 1
	for name, data := range map[string][]byte{
		"flipped": flipped, "truncated": whole[:20*kib], "empty": nil, "long": append(flipped, flipped...),
	} {
		err := errors.Join(os.Remove(file), os.WriteFile(file, data, 0o444))
		if err != nil {
			t.Fatal(err)
		}
		*far = 0
		wantFrom(t, g, s)
		wantFrom(t, g, s)
		if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, whole) || *far != 1 {
			t.Errorf("%s: far was asked %d times, and the chunk is whole: %v, %v", name, *far, bytes.Equal(got, whole), err)
		}
		// The test changed the file's size behind the tally; correct the tally.
		want += roundToBlocks(int64(len(whole))) - roundToBlocks(int64(len(data)))
		if got := tallyOf(t, path).used; got != max(want, 0) {
			t.Errorf("%s: %d bytes are counted, want %d", name, got, want)
		}
	}
}

// TestLimit: whatever is written, the directory never exceeds the limit or the count.
func TestLimit(t *testing.T) {
	path := t.TempDir()
	const limit = 600 * kib
	d := open(t, path, limit)
	most := int64(0)
	for seed := range uint64(300) {
		s := newSample(seed, int(seed*7919%(60*kib))+1)
		if err := d.Write(t.Context(), s.name(), s.data); err != nil {
			t.Fatal(err)
		}
		most = max(most, du(t, path))
	}
	d.settle()
	if got, there := tallyOf(t, path).used, du(t, path); got < there {
		t.Errorf("%d bytes are counted, and there are %d", got, there)
	}
	d.recount(t)
	if got, want := tallyOf(t, path).used, du(t, path); got != want {
		t.Errorf("%d bytes are counted anew, and there are %d", got, want)
	}
	if most > limit || most < limit/2 {
		t.Errorf("the directory had %d bytes, want no more than %d, and not much less", most, limit)
	}
}

// TestOldestGoFirst: the least recently used chunks are evicted first; a hit is a use.
func TestOldestGoFirst(t *testing.T) {
	path := t.TempDir()
	const n, limit = 64, 64 * (16 + 4) * kib
	d := open(t, path, limit*2)
	var samples []sample
	for i := range n {
		samples = append(samples, newSample(uint64(i), 16*kib))
	}
	write(t, d, samples...)
	for i, s := range samples {
		setAge(t, path, s, time.Duration(n-i)*24*time.Hour)
	}
	used := samples[3]
	if _, err := d.Read(t.Context(), used.name(), nil, 1<<20); err != nil {
		t.Fatal(err)
	}
	small := open(t, path, limit-1) // below the present size, so that an eighth has to be evicted
	small.startEviction(small.ledger, request{need: limit / 8})
	small.settle()
	gone := 0
	for i, s := range samples {
		is := has(t, small, s)
		if !is {
			gone++
		}
		if i == 3 && !is || i > 3 && is && i < gone || i > 3 && !is && i >= gone+1 {
			t.Errorf("chunk %d is there: %v, after %d older ones went", i, is, gone)
		}
	}
	if gone < n/8-2 || gone > n/8+4 {
		t.Errorf("%d chunks went, want about %d", gone, n/8)
	}
}

func TestMarkUsed(t *testing.T) {
	path := t.TempDir()
	d := open(t, path, 0)
	s := newSample(1, 1000)
	write(t, d, s)
	for _, test := range []struct{ age, min, max time.Duration }{
		{30 * time.Minute, 29 * time.Minute, 31 * time.Minute}, // used recently enough: no write
		{2 * time.Hour, 0, time.Minute},
		{-2 * time.Hour, 0, time.Minute}, // a clock was wrong
	} {
		setAge(t, path, s, test.age)
		if _, err := d.Read(t.Context(), s.name(), nil, 1<<20); err != nil {
			t.Fatal(err)
		}
		if got := ageIs(t, path, s); got < test.min || got > test.max {
			t.Errorf("a chunk of age %v is %v old after a hit, want %v to %v", test.age, got, test.min, test.max)
		}
	}
}

// TestLargerThanLimit: a chunk larger than the limit evicts no others, and is not an error.
func TestLargerThanLimit(t *testing.T) {
	path := t.TempDir()
	d := open(t, path, 20*kib)
	small, large := newSample(1, 1*kib), newSample(2, 30*kib)
	write(t, d, small, large)
	if !has(t, d, small) || has(t, d, large) {
		t.Errorf("the small chunk is kept: %v, the large one: %v", has(t, d, small), has(t, d, large))
	}
	g, _ := through(t, open(t, t.TempDir(), 1), noFailure(t), small)
	wantFrom(t, g, small)
}

// TestAlmostAsLargeAsLimit: each chunk replaces the one before.
func TestAlmostAsLargeAsLimit(t *testing.T) {
	d := open(t, t.TempDir(), 40*kib)
	for seed := range uint64(5) {
		s := newSample(seed, 30*kib)
		write(t, d, s)
		if !has(t, d, s) {
			write(t, d, s)
		}
		if !has(t, d, s) {
			t.Errorf("chunk %d is not kept the second time", seed)
		}
	}
}

func TestLimitLowered(t *testing.T) {
	path := t.TempDir()
	d := open(t, path, 1<<20)
	for seed := range uint64(40) {
		write(t, d, newSample(seed, 16*kib))
	}
	for _, limit := range []int64{400 * kib, 200 * kib} {
		if before := du(t, path); before <= limit {
			t.Fatalf("only %d bytes were kept", before)
		}
		open(t, path, limit).settle()
		if after := du(t, path); after > limit || after < limit/2 {
			t.Errorf("%d bytes are left, want no more than %d, and not much less", after, limit)
		}
		if err := os.Truncate(filepath.Join(path, controlName, "state"), 0); err != nil { // once without a count
			t.Fatal(err)
		}
	}
}

// TestUnlimited: even a full disk evicts nothing.
func TestUnlimited(t *testing.T) {
	path := t.TempDir()
	d := open(t, path, Unlimited)
	s := newSample(1, 10*kib)
	write(t, d, s)
	d.startEviction(d.ledger, request{diskFull: true})
	d.settle()
	if !has(t, d, s) {
		t.Error("the chunk is gone")
	}
}

// TestRemovedWhileInUse: the cache starts anew.
func TestRemovedWhileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	d, other := open(t, path, 0), open(t, path, 0)
	s := newSample(1, 10*kib)
	write(t, d, s)
	write(t, other, s)
	for range 3 {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if has(t, d, s) {
			t.Error("the removed chunk is there")
		}
		write(t, d, s)
		write(t, other, s)
		if !has(t, d, s) || tallyOf(t, path).used != du(t, path) {
			t.Errorf("the chunk is kept: %v, of %d bytes are %d counted", has(t, d, s), du(t, path), tallyOf(t, path).used)
		}
	}
}

// TestRemovedAmidWrites: concurrent writers may lose chunks, and nothing else.
func TestRemovedAmidWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	d := open(t, path, 0)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for worker := range uint64(2) {
		wg.Go(func() {
			for i := uint64(0); ctx.Err() == nil; i++ {
				s := newSample(worker<<32|i, kib)
				err := d.Write(ctx, s.name(), s.data)
				// A partly removed directory looks like a store.
				if err != nil && ctx.Err() == nil && !errors.Is(err, errForeign) && !errors.Is(err, errVanishes) {
					t.Error(err)
				}
			}
		})
	}
	for range 10 {
		time.Sleep(5 * time.Millisecond) // writes are under way
		err := os.RemoveAll(path)
		if err != nil && !errors.Is(err, unix.ENOTEMPTY) {
			t.Error(err)
		}
	}
	cancel()
	wg.Wait()
	d.settle()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	s := newSample(1, kib)
	write(t, d, s)
	if !has(t, d, s) || tallyOf(t, path).used != du(t, path) {
		t.Errorf("in the end the chunk is kept: %v", has(t, d, s))
	}
}

// TestMovedWhileInUse: the cache starts anew at its old path.
func TestMovedWhileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	d := open(t, path, 0)
	s := newSample(1, 10*kib)
	write(t, d, s)
	if err := os.Rename(path, path+"-moved"); err != nil {
		t.Fatal(err)
	}
	write(t, d, s)
	if !has(t, d, s) || tallyOf(t, path).used != du(t, path) {
		t.Errorf("the chunk is kept: %v, of %d bytes are %d counted", has(t, d, s), du(t, path), tallyOf(t, path).used)
	}
}

// TestRemovedByHand: parts of the directory may vanish at any time.
func TestRemovedByHand(t *testing.T) {
	path := t.TempDir()
	d := open(t, path, 0)
	s := newSample(1, 10*kib)
	for _, part := range []string{filepath.Dir(s.name()), controlName + "/writers", controlName + "/state"} {
		write(t, d, s)
		if err := os.RemoveAll(filepath.Join(path, part)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // a lost count is made again before more is kept
			write(t, d, newSample(2, 10*kib), s)
		}
		if !has(t, d, s) {
			t.Errorf("without %s the chunk is not kept", part)
		}
	}
}

func TestSymbolicLink(t *testing.T) {
	dir := t.TempDir()
	link, path := filepath.Join(dir, "link"), filepath.Join(dir, "cache")
	err := errors.Join(os.Symlink("cache", link), os.Mkdir(path, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	s := newSample(1, 10*kib)
	write(t, open(t, link, 0), s)
	if direct := open(t, path, 0); !has(t, direct, s) {
		t.Error("the chunk is not where the link leads to")
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := open(t, link, 0).Write(t.Context(), s.name(), s.data); err == nil {
		t.Error("a link that leads nowhere could be written")
	}
}

// TestLinksInside: nothing outside the directory is counted or removed.
func TestLinksInside(t *testing.T) {
	path, outside := t.TempDir(), t.TempDir()
	s := newSample(1, 10*kib)
	d := open(t, path, 100*kib)
	write(t, d, s)
	victim := filepath.Join(outside, filepath.Base(s.name()))
	err := errors.Join(
		os.WriteFile(victim, make([]byte, 200*kib), 0o644),
		os.RemoveAll(filepath.Join(path, filepath.Dir(s.name()))),
		os.Symlink(outside, filepath.Join(path, filepath.Dir(s.name()))),
	)
	if err != nil {
		t.Fatal(err)
	}
	d.startEviction(d.ledger, request{need: 99 * kib})
	d.settle()
	if _, err := os.Stat(victim); err != nil || tallyOf(t, path).used != 0 {
		t.Errorf("what a link leads to: %v, and %d bytes are counted", err, tallyOf(t, path).used)
	}
}

// TestStoreIsNotACache: a directory of chunks that was not made as a cache is read, and never
// evicted from.
func TestStoreIsNotACache(t *testing.T) {
	path := t.TempDir()
	s, other := newSample(1, 50*kib), newSample(2, 50*kib)
	err := errors.Join(os.Mkdir(filepath.Join(path, filepath.Dir(s.name())), 0o755),
		os.WriteFile(filepath.Join(path, s.name()), s.data, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	d := open(t, path, 1)
	if !has(t, d, s) {
		t.Error("the store is not read")
	}
	if err := d.Write(t.Context(), other.name(), other.data); !errors.Is(err, errForeign) {
		t.Errorf("Write = %v, want errForeign", err)
	}
	d.settle()
	if entries, err := os.ReadDir(path); err != nil || len(entries) != 1 {
		t.Errorf("the store holds %v, %v", entries, err)
	}
	if err := os.Mkdir(filepath.Join(path, controlName), 0o755); err != nil {
		t.Fatal(err)
	}
	adopted := open(t, path, 0)
	adopted.settle()
	write(t, adopted, other)
	if !has(t, adopted, other) || !has(t, adopted, s) {
		t.Error("a store that was made a cache does not keep chunks")
	}
}

func TestNames(t *testing.T) {
	d := open(t, t.TempDir(), 0)
	hex := newSample(1, 10).digest.String()
	for _, name := range []string{
		"", "x", hex, hex + ".cacnk", "0000/" + hex, hex[:4] + "/../" + hex, hex[:4] + "/" + hex + ".tmp",
		hex[:4] + "/" + strings.ToUpper(hex), "a/" + hex[:4] + "/" + hex, "/" + hex[:4] + "/" + hex,
	} {
		if err := d.Write(t.Context(), name, []byte("x")); err == nil {
			t.Errorf("Write(%q) succeeded", name)
		}
	}
	if err := d.Write(t.Context(), hex[:4]+"/"+hex, []byte("x")); err != nil {
		t.Errorf("Write of a plain chunk = %v", err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s := newSample(1, 10)
	if err := open(t, t.TempDir(), 0).Write(ctx, s.name(), s.data); !errors.Is(err, context.Canceled) {
		t.Errorf("Write = %v, want Canceled", err)
	}
}

// tmpfs mounts a small disk.
func tmpfs(t *testing.T, options string) (dir string) {
	t.Helper()
	need.Root(t)
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		need.Missing(t, "mounting a tmpfs: "+err.Error())
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestFullDisk: a disk filled by other programs is reported once and shrinks the cache, and no
// temporary file remains.
func TestFullDisk(t *testing.T) {
	dir := tmpfs(t, "size=2m")
	path := filepath.Join(dir, "cache")
	d := open(t, path, 1<<20)
	var samples []sample
	for seed := range uint64(8) {
		samples = append(samples, newSample(seed, 60*kib))
	}
	write(t, d, samples[:6]...)
	setAge(t, path, samples[0], usedPrecision/2)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 3<<20), 0o644); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling the disk: %v", err)
	}
	before := tallyOf(t, path).used
	var reported []error
	g, _ := through(t, d, func(err error) { reported = append(reported, err) }, samples...)
	for range 2 {
		for _, s := range samples {
			wantFrom(t, g, s)
			d.settle()
		}
	}
	if len(reported) != 1 || !errors.Is(reported[0], unix.ENOSPC) {
		t.Errorf("reported %v, want ENOSPC once", reported)
	}
	if has(t, d, samples[0]) || !has(t, d, samples[1]) {
		t.Errorf("the oldest chunk is there: %v, the next: %v", has(t, d, samples[0]), has(t, d, samples[1]))
	}
	if after := tallyOf(t, path).used; after >= before {
		t.Errorf("%d bytes are counted, and were before: %d", after, before)
	}
	if left, _ := filepath.Glob(filepath.Join(path, controlName, "*"+tempSuffix)); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	write(t, d, samples[7])
	if !has(t, d, samples[7]) {
		t.Error("nothing is kept when there is room again")
	}
}

// TestFailedWriteGivesBack: a failed write releases exactly the space that it reserved.
func TestFailedWriteGivesBack(t *testing.T) {
	dir := tmpfs(t, "size=200k")
	path := filepath.Join(dir, "cache")
	d := open(t, path, Unlimited)
	kept, failing := newSample(1, 50*kib), newSample(2, 150*kib)
	write(t, d, kept)
	if err := os.Mkdir(filepath.Join(path, filepath.Dir(failing.name())), 0o755); err != nil {
		t.Fatal(err)
	}
	want := tallyOf(t, path)
	d.evictor.stopAndWait() // it would count again
	for range 3 {
		if err := d.Write(t.Context(), failing.name(), failing.data); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("Write = %v, want ENOSPC", err)
		}
	}
	if got := tallyOf(t, path); got.used != want.used {
		t.Errorf("%d bytes are counted, want %d as before", got.used, want.used)
	}
}

// TestFullFromTheStart: a cache on a disk without space for its count, or with too little for one
// chunk.
func TestFullFromTheStart(t *testing.T) {
	for _, disk := range []string{"nr_inodes=4", "size=16k", "size=64k"} {
		path := filepath.Join(tmpfs(t, disk), "cache")
		s := newSample(1, 20*kib)
		var reported []error
		g, _ := through(t, open(t, path, 0), func(err error) { reported = append(reported, err) }, s)
		wantFrom(t, g, s)
		wantFrom(t, g, s)
		if len(reported) != 1 || !errors.Is(reported[0], unix.ENOSPC) {
			t.Errorf("%s: reported %v, want ENOSPC once", disk, reported)
		}
	}
}

func TestReadOnlyDisk(t *testing.T) {
	dir := tmpfs(t, "")
	kept, other := newSample(1, kib), newSample(2, kib)
	d := Open(dir, Options{})
	g, _ := through(t, d, noFailure(t), kept)
	wantFrom(t, g, kept)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	setAge(t, dir, kept, 2*time.Hour)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, filepath.Join(dir, "absent")} {
		var reported []error
		g, far := through(t, open(t, path, 0), func(err error) { reported = append(reported, err) }, kept, other)
		wantFrom(t, g, kept)
		wantFrom(t, g, other)
		wantFrom(t, g, other)
		if len(reported) != 1 || !errors.Is(reported[0], unix.EROFS) {
			t.Errorf("%s: reported %v, want EROFS once", path, reported)
		}
		if path == dir && *far != 2 {
			t.Errorf("far was asked %d times, want 2", *far)
		}
	}
}

// TestStopped: a process that is stopped while it holds a lock delays others by at most
// lockPatience.
func TestStopped(t *testing.T) {
	path := t.TempDir()
	s := newSample(1, kib)
	d, stopped := open(t, path, 0), open(t, path, 0)
	write(t, stopped, newSample(2, kib))
	if err := flock(stopped.ledger.state, unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	start := time.Now()
	for range 8 { // all wait at once, not one after the other
		wg.Go(func() {
			if err := d.Write(t.Context(), s.name(), s.data); !errors.Is(err, errBusy) {
				t.Errorf("Write = %v, want errBusy", err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(start); took > 3*lockPatience {
		t.Errorf("it took %v", took)
	}
	if err := flock(stopped.ledger.state, unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	write(t, d, s)
}

// TestStoppedWriter: an eviction frees space even beside a write that does not finish.
func TestStoppedWriter(t *testing.T) {
	path := t.TempDir()
	d := open(t, path, 100*kib)
	writer, err := d.tryReserve(t)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	for seed := range uint64(10) {
		write(t, d, newSample(seed, 16*kib))
	}
	if last := newSample(9, 16*kib); !has(t, d, last) || du(t, path) > 100*kib {
		t.Errorf("the last chunk is kept: %v, in %d bytes", has(t, d, last), du(t, path))
	}
}

// tryReserve returns the lock of a write that has begun.
func (d *Dir) tryReserve(t *testing.T) (*os.File, error) {
	l, err := d.attachLedger(mayCreate)
	if err != nil {
		return nil, err
	}
	r, err := l.reserveSpace(t.Context(), blockSize)
	return r.lock, err
}

// TestConcurrentWrites: concurrent writes of the same chunks leave an exact count.
func TestConcurrentWrites(t *testing.T) {
	path := t.TempDir()
	dirs := []*Dir{open(t, path, 0), open(t, path, 0)}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range uint64(40) {
				s := newSample(i%10, int(i%10)*5000+1)
				if err := dirs[worker%2].Write(t.Context(), s.name(), s.data); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, there := tallyOf(t, path).used, du(t, path)
	if extra := got - there; extra < 0 || extra > 8*10*blockSize || extra%blockSize != 0 {
		t.Errorf("%d bytes are counted, and there are %d", got, there)
	}
	dirs[0].recount(t)
	if got := tallyOf(t, path).used; got != there {
		t.Errorf("%d bytes are counted anew, and there are %d", got, there)
	}
}

// TestCounts: the conditions under which a cache counts again when it is opened.
func TestCounts(t *testing.T) {
	path := t.TempDir()
	write(t, open(t, path, 0), newSample(1, 30*kib))
	right := tallyOf(t, path)
	wrong := right
	wrong.used = 1 << 20
	old, future, other := wrong, wrong, wrong
	old.last -= int64(2 * countEvery / time.Second)
	future.last += int64(2 * countEvery / time.Second)
	other.boot[3]++
	for name, test := range map[string]struct {
		line []byte
		want int64
	}{
		"fresh": {wrong.encode(), wrong.used}, "old": {old.encode(), right.used},
		"future": {future.encode(), right.used}, "before a power cut": {other.encode(), right.used},
		"empty": {nil, right.used}, "damaged": {make([]byte, tallySize), right.used},
	} {
		state := filepath.Join(path, controlName, "state")
		if err := os.WriteFile(state, test.line, 0o644); err != nil {
			t.Fatal(err)
		}
		open(t, path, 0).settle()
		if got := tallyOf(t, path).used; got != test.want {
			t.Errorf("%s: %d bytes are counted, want %d", name, got, test.want)
		}
	}
}

// TestDeadWriters: files of dead writers are removed when the cache is opened, if no writer is
// alive.
func TestDeadWriters(t *testing.T) {
	path := t.TempDir()
	d := open(t, path, 0)
	write(t, d, newSample(1, kib))
	temp := filepath.Join(path, controlName, d.ledger.tempName())
	if err := os.WriteFile(temp, make([]byte, 10*kib), 0o444); err != nil {
		t.Fatal(err)
	}
	writer, err := d.tryReserve(t)
	if err != nil {
		t.Fatal(err)
	}
	open(t, path, 0)
	if _, err := os.Stat(temp); err != nil {
		t.Errorf("with a live writer: %v", err)
	}
	writer.Close()
	open(t, path, 0)
	if _, err := os.Stat(temp); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("with none: %v, want it gone", err)
	}
}

func TestDefaultLimit(t *testing.T) {
	const gib = 1 << 30
	for _, test := range []struct{ size, free, used, want int64 }{
		{1000 * gib, 500 * gib, 0, 100 * gib},
		{16 * gib, 2 * gib, 0, 1 * gib},
		{16 * gib, 1 * gib, 1 * gib, 1 * gib}, // the same when half of it is taken
		{16 * gib, 0, 0, 0},
	} {
		if got := DefaultLimit(test.size, test.free, test.used); got != test.want {
			t.Errorf("DefaultLimit(%d, %d, %d) = %d, want %d", test.size, test.free, test.used, got, test.want)
		}
	}
}

func TestExcess(t *testing.T) {
	for _, test := range []struct {
		r                 request
		used, limit, want int64
	}{
		{request{}, 100, 160, 0}, {request{}, 150, 160, 0}, {request{}, 151, 160, 11}, {request{}, 400, 160, 260},
		{request{need: 10}, 140, 160, 0}, {request{need: 10}, 145, 160, 5}, {request{need: 100}, 90, 160, 30},
		{request{need: 160}, 90, 160, 90}, {request{need: 160}, 0, 160, 0},
		{request{diskFull: true}, 64, 160, 4}, {request{diskFull: true}, 160, 160, 20},
		{request{diskFull: true}, 1000, math.MaxInt64, 0},
	} {
		if got := test.r.excess(test.used, test.limit); got != test.want {
			t.Errorf("%+v.excess(%d, %d) = %d, want %d", test.r, test.used, test.limit, got, test.want)
		}
	}
}

// TestAges: a cut takes the oldest bytes, as many as needed, and classes are narrow.
func TestAges(t *testing.T) {
	now := time.Now()
	class := func(age time.Duration) int { return ageOf(now, now.Add(-age)) }
	for _, age := range []time.Duration{-time.Hour, 0, time.Second, time.Minute, time.Hour, 1000 * time.Hour, math.MaxInt64} {
		got := class(age)
		if later := class(age / 100 * 102); age > 10*time.Second && age < math.MaxInt64 && later <= got {
			t.Errorf("age %v is in class %d, and 2 %% more in %d", age, got, later)
		}
		if got < 0 || got > oldest || (age <= 0) != (got == 0) {
			t.Errorf("age %v is in class %d of %d", age, got, oldest)
		}
	}
	var a ages
	for hour := range time.Duration(10) {
		a[class(hour*time.Hour)] += 20 // two chunks of 10
	}
	for _, excess := range []int64{0, 1, 20, 21, 35, 200, 1000} {
		c, freed := a.cutAt(excess), int64(0)
		for chunk := range 20 {
			hour := int64(chunk / 2)
			if class := class(time.Duration(hour) * time.Hour); c.includes(class) {
				c.recordRemoved(class, 10)
				freed += 10
				if youngest := 10 - (excess+19)/20; hour < youngest {
					t.Errorf("to free %d, a chunk of %d hours goes", excess, hour)
				}
			}
		}
		if want := min((excess+9)/10*10, 200); freed != want {
			t.Errorf("to free %d, %d bytes go, want %d", excess, freed, want)
		}
	}
}

func TestTally(t *testing.T) {
	var a tally
	if a.tryReserve(1, 100) {
		t.Error("a tally that is not known has room")
	}
	a.setCounted(50, [16]byte{1}, time.Now())
	if a.tryReserve(51, 100) || !a.tryReserve(50, 100) || a.tryReserve(1, 100) || a.used != 100 {
		t.Errorf("after 50 of 100 bytes were taken: %+v", a)
	}
	a.added = 0 // a count begins
	a.release(30)
	a.tryReserve(20, 100)
	a.tryReserve(5, 100)
	a.cancelReserve(5)
	a.setCounted(70, [16]byte{1}, time.Now())
	if a.used != 90 {
		t.Errorf("after a count: %+v, want 70 that were seen and 20 that were added", a)
	}
}

// TestSlices: each directory is in exactly one slice.
func TestSlices(t *testing.T) {
	for used, want := range map[int64]int{0: 1, 1 << 30: 1, 5 << 30: 5, math.MaxInt64: 64} {
		slices := slicesOf(used)
		if slices != want {
			t.Errorf("slicesOf(%d) = %d, want %d", used, slices, want)
		}
		const step = 31
		in := make([]int, slices)
		for dir := 0; dir < 1<<16; dir += step {
			for i := range slices {
				if (slice{i, slices}).contains(fmt.Sprintf("%04x", dir)) {
					in[i]++
				}
			}
		}
		total, least := 0, 1<<16
		for _, n := range in {
			total, least = total+n, min(least, n)
		}
		if total != (1<<16-1)/step+1 || least < total/slices-1 {
			t.Errorf("%d slices have %v of %d directories", slices, in, total)
		}
	}
}

func FuzzTally(f *testing.F) {
	f.Add(tally{known: true, used: 1, added: 2, last: 3, boot: [16]byte{4}}.encode())
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, line []byte) {
		known, err := decodeTally(line)
		if err != nil && known != (tally{}) {
			t.Errorf("an error, and %+v", known)
		}
		if err == nil && !bytes.Equal(known.encode(), line) {
			t.Errorf("%x is read as %+v, which is written otherwise", line, known)
		}
		_ = fmt.Sprint(known.isStale([16]byte{}, time.Now()))
	})
}
