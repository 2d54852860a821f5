package view

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/singleflight"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/blob/view/fetch"
	"cairn/internal/test/boottrace"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/supply"
)

// bootTime is the time of a boot on a current machine with the image on its disk.
const bootTime = 6 * time.Second

const traces = "../../internal/test/boottrace/testdata"

// boot is a recorded boot of an image, whose chunks have synthetic bytes.
type boot struct {
	trace *boottrace.Trace
	index *blob.Index
	store *syntheticStore
	seed  *syntheticStore // chunks on this machine; nil for none
	delta bool            // the chunks that seed lacks are in a delta
}

// syntheticStore is a store of chunks whose bytes repeat their digests. stored holds the sizes of the chunk files.
type syntheticStore struct{ stored map[blob.Digest]int }

// Get implements store.Getter.
func (m *syntheticStore) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	storetest.GetterFunc(m.get).Get(ctx, wants, done)
}

// MayCopy implements fetch.Donors.
func (m *syntheticStore) MayCopy(_ blob.Algorithm, d blob.Digest, _ int64) bool {
	_, ok := m.stored[d]
	return ok
}

// Copy implements fetch.Donors.
func (m *syntheticStore) Copy(_ blob.Algorithm, d blob.Digest, dst []byte) bool {
	writeSynthetic(d, dst)
	return m.MayCopy(0, d, 0)
}

func (m *syntheticStore) get(ctx context.Context, d blob.Digest, dst []byte) error {
	if _, ok := m.stored[d]; !ok {
		return store.ErrNotFound
	}
	writeSynthetic(d, dst)
	return ctx.Err()
}

// writeSynthetic fills dst with repetitions of d.
func writeSynthetic(d blob.Digest, dst []byte) {
	for n := copy(dst, d[:]); n < len(dst); n *= 2 {
		copy(dst[n:], dst[:n])
	}
}

// linkedDelta makes the chunks that the seed lacks, with bytes from the other end of a link. A payload has two fifths of
// the bytes of its chunk in the store: the share in the delta of the releases of docs/benchmarks.md as ext4.
type linkedDelta struct {
	*boot
	link  *link
	limit *supply.Link
}

// MayMake implements fetch.Deltas.
func (d linkedDelta) MayMake(digest blob.Digest, _ int64) bool { return !d.seed.MayCopy(0, digest, 0) }

// Make implements fetch.Deltas.
func (d linkedDelta) Make(ctx context.Context, digest blob.Digest, dst []byte) bool {
	if !d.MayMake(digest, 0) {
		return false
	}
	err := d.limit.Admit(ctx, func() (int, error) {
		if err := sleep(ctx, d.link.latency); err != nil {
			return 0, err
		}
		err := sleep(ctx, time.Until(d.link.send(d.store.stored[digest]*2/5+500)))
		return len(dst), err
	})
	writeSynthetic(digest, dst)
	return err == nil
}

func loadBoot(t testing.TB, name string) *boot {
	t.Helper()
	read := func(suffix string) *bytes.Reader {
		p, err := os.ReadFile(filepath.Join(traces, name+suffix))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.NewReader(p)
	}
	trace, err := boottrace.Decode(read(".trace.gz"))
	if err != nil {
		t.Fatal(err)
	}
	shape, err := boottrace.DecodeShape(read(".shape.gz"))
	if err != nil {
		t.Fatal(err)
	}
	// The trace was recorded on an emulated, slow machine. At its speed every prefetch would finish in time.
	b := &boot{trace: trace.Within(bootTime), store: &syntheticStore{map[blob.Digest]int{}}}
	const most = 256 << 10
	builder, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: most / 16, Avg: most / 4, Max: most})
	if err != nil {
		t.Fatal(err)
	}
	zeros := map[int64]blob.Digest{}
	for _, c := range shape {
		if _, ok := zeros[c.Size]; !ok && c.ID < 0 {
			zeros[c.Size] = blob.SHA512_256.SumZeros(c.Size)
		}
		d := zeros[c.Size]
		if c.ID >= 0 {
			d = blob.SHA512_256.Sum(binary.LittleEndian.AppendUint64(nil, uint64(c.ID)))
			b.store.stored[d] = int(c.Stored)
		}
		if _, err := builder.Add(c.Size, d); err != nil {
			t.Fatal(err)
		}
	}
	b.index = builder.Index()
	return b
}

// checkBytes checks the bytes of a read at off.
func (b *boot) checkBytes(t testing.TB, p []byte, off int64) {
	for at := int64(0); at < int64(len(p)); {
		i := b.index.Find(off + at)
		c := b.index.At(i)
		from := off + at - c.Offset
		n := min(c.Size-from, int64(len(p))-at)
		want := c.Digest
		if b.index.IsZero(i) {
			want = blob.Digest{}
		}
		for k := range n {
			if p[at+k] != want[(from+k)%32] {
				t.Errorf("the read of %d bytes at %d has wrong bytes in chunk %d", len(p), off, i)
				return
			}
		}
		at += n
	}
}

// newLink returns the store behind a link with a latency of 20 ms and 100 Mbit/s.
func (b *boot) newLink() *link {
	l := newLink(b.store, 20*time.Millisecond, 12_500_000)
	l.size = func(d blob.Digest, _ int) int { return b.store.stored[d] + 500 }
	return l
}

// profile returns the profile of the boot, as recorded on a machine with the image on its disk.
func (b *boot) profile() *profile.Profile {
	r := NewRecorder(b.index, 0)
	for _, read := range b.trace.Reads {
		for i := b.index.Find(read.Offset); i < b.index.Len() && b.index.At(i).Offset < read.Offset+read.Length; i++ {
			r.recordRead(i)
		}
	}
	var reads []profile.Read
	for _, touch := range r.Reads() {
		reads = append(reads, profile.Read{Chunk: touch.Chunk, After: touch.After})
	}
	return profile.New(b.index, reads)
}

// outcome holds the cost of a replay. sent is in bytes.
type outcome struct {
	boottrace.Waited
	gets  int
	sent  int64
	stats Stats
}

func (o outcome) String() string {
	return fmt.Sprintf("stalled %6.2fs, %5d requests, %5.1f MiB, prefetched bytes used %.0f %%", o.Stalled.Seconds(), o.gets,
		float64(o.sent)/(1<<20), 100*float64(o.stats.BytesUsed)/float64(max(o.stats.BytesAhead, 1)))
}

// replay boots one machine from a view, in virtual time. begin may start prefetches.
func (b *boot) replay(t *testing.T, o Options, begin func(v *Image)) (out outcome) {
	return b.replayMany(t, 1, o, begin)
}

// replayMany boots several machines at once from one view, and returns the outcome of one of them.
func (b *boot) replayMany(t *testing.T, machines int, o Options, begin func(v *Image)) (out outcome) {
	synctest.Test(t, func(t *testing.T) {
		l := b.newLink()
		memory := fetch.Options{Bytes: 256 << 20}
		if b.seed != nil {
			memory.Seeds = b.seed
		}
		cache := fetch.New(t.Context(), memory)
		defer cache.Close()
		from := supply.New(store.Policy{Patience: 100 * time.Millisecond}, supply.Options{}, l)
		at := fetch.SourceOptions{Fetches: from.Requests(), Link: from.Link()}
		if b.delta {
			at.Deltas = linkedDelta{b, l, from.Link()}
		}
		v := New(b.index, cache.NewSource(from, at), o)
		if begin != nil {
			begin(v)
		}
		read := func(ctx context.Context, p []byte, off int64) error {
			if !v.ReadResident(p, off) {
				if err := v.ReadAt(ctx, p, off); err != nil {
					return err
				}
			}
			b.checkBytes(t, p, off)
			return nil
		}
		var others sync.WaitGroup
		for range machines - 1 {
			others.Go(func() {
				if _, err := b.trace.Replay(t.Context(), read); err != nil {
					t.Error(err)
				}
			})
		}
		var err error
		if out.Waited, err = b.trace.Replay(t.Context(), read); err != nil {
			t.Error(err)
		}
		others.Wait()
		cache.Close() // fetches in flight count too
		out.gets, out.sent, out.stats = l.gets, l.sent, v.Stats()
	})
	return out
}

// oneByOne boots from a plain client, in which each read fetches its missing chunks one after the other.
func (b *boot) oneByOne(t *testing.T) (out outcome) {
	synctest.Test(t, func(t *testing.T) {
		l := b.newLink()
		var flights singleflight.Group
		var cached sync.Map
		var err error
		out.Waited, err = b.trace.Replay(t.Context(), func(ctx context.Context, p []byte, off int64) error {
			for i := b.index.Find(off); i < b.index.Len() && b.index.At(i).Offset < off+int64(len(p)); i++ {
				c := b.index.At(i)
				if _, ok := cached.Load(c.Digest); ok || b.index.IsZero(i) {
					continue
				}
				_, err, _ := flights.Do(c.Digest.String(), func() (any, error) {
					return nil, store.GetOne(ctx, l, c.Digest, make([]byte, c.Size))
				})
				if err != nil {
					return err
				}
				cached.Store(c.Digest, true)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		out.gets, out.sent = l.gets, l.sent
	})
	return out
}

// TestBoot replays a recorded boot of a Debian system over a link of 20 ms and 100 Mbit/s, and compares how long
// reads block with each kind of prefetch.
func TestBoot(t *testing.T) {
	a, b := loadBoot(t, "debian-a"), loadBoot(t, "debian-b")
	t.Logf("%d reads of %.1f MiB, %v between reads", len(b.trace.Reads), float64(b.trace.Bytes())/(1<<20), b.trace.Think())
	plain := b.oneByOne(t)
	t.Logf("one chunk at a time:        %v", plain)
	limit := func(name string, got outcome, share float64) {
		t.Helper()
		t.Logf("%-27s %v: %.1f %%", name+":", got, 100*got.Stalled.Seconds()/plain.Stalled.Seconds())
		if got.Stalled.Seconds() > share*plain.Stalled.Seconds() {
			t.Errorf("%s: stalled for %v, want at most %.0f %% of %v", name, got.Stalled, 100*share, plain.Stalled)
		}
	}
	limit("read-ahead", b.replay(t, Options{}, nil), 1)
	noProfile := b.replay(t, Options{Around: true}, nil)
	limit("with neighbours", noProfile, 0.6)
	follow := func(p *profile.Profile) func(v *Image) {
		return func(v *Image) { v.Follow(p.Plan(b.index).Chunks) }
	}
	limit("with its profile", b.replay(t, Options{Around: true}, follow(b.profile())), 0.1)
	limit("with the last one's profile", b.replay(t, Options{Around: true}, follow(a.profile())), 1)

	if testing.Short() {
		return
	}
	many := b.replayMany(t, 20, Options{Around: true}, nil)
	t.Logf("20 machines at once:        %v", many)
	if many.sent > noProfile.sent*102/100 {
		t.Errorf("20 machines downloaded %d bytes, want at most 2 %% more than the %d of one", many.sent, noProfile.sent)
	}

	rng := rand.New(rand.NewPCG(1, 1))
	for name, chunks := range map[string][]int{"backwards": backwards(b.index.Len()), "at random": rng.Perm(b.index.Len())} {
		wrong := b.replay(t, Options{Around: true}, func(v *Image) { v.Follow(chunks) })
		t.Logf("a profile %-9s         %v", name+":", wrong)
		if wrong.Total > noProfile.Total*11/10 {
			t.Errorf("a boot with a profile %s took %v, want at most 10 %% more than %v", name, wrong.Total, noProfile.Total)
		}
	}
}

// TestBootWithSeed replays the boot with the last release as a seed. With a profile, the store sends hardly more than
// the chunks that the boot reads and the seed does not hold. Without one, neighbours and read-ahead come on top. With a
// delta against the seed, it sends less than these chunks in any case.
func TestBootWithSeed(t *testing.T) {
	a, b := loadBoot(t, "debian-a"), loadBoot(t, "debian-b")
	var needed int64
	for _, i := range b.profile().Plan(b.index).Chunks {
		if d := b.index.At(i).Digest; !b.index.IsZero(i) && !a.store.MayCopy(b.index.Algorithm(), d, 0) {
			needed += int64(b.store.stored[d] + 500)
		}
	}
	plain := b.replay(t, Options{Around: true}, nil)
	t.Logf("without the seed:           %v", plain)
	b.seed = a.store
	limit := func(name string, p *profile.Profile, bytes int64, share float64) {
		t.Helper()
		got := b.replay(t, Options{Around: true}, func(v *Image) {
			if p != nil {
				v.Follow(p.Plan(b.index).Chunks)
			}
		})
		t.Logf("%-27s %v, %.2f times what it needs", name+":", got, float64(got.sent)/float64(needed))
		if got.sent > bytes || got.Stalled.Seconds() > share*plain.Stalled.Seconds() {
			t.Errorf("%s: %d bytes and stalled for %v, want at most %d, and %.0f %% of %v",
				name, got.sent, got.Stalled, bytes, 100*share, plain.Stalled)
		}
	}
	limit("with the seed", nil, needed*2, 0.7)
	limit("with the last one's profile", a.profile(), needed*2, 0.4)
	limit("with its profile", b.profile(), needed*105/100, 0.1)
	b.delta = true
	limit("with a delta", nil, needed, 0.7)
	limit("a delta and the last profile", a.profile(), needed, 0.4)
	limit("a delta and its profile", b.profile(), needed/2, 0.1)
}

func backwards(n int) []int {
	list := firstChunks(n)
	for i := range list {
		list[i] = n - 1 - i
	}
	return list
}

// TestProfileOfLastRelease checks that a release's profile covers most of the bytes that the next release's boot
// reads.
func TestProfileOfLastRelease(t *testing.T) {
	a, b := loadBoot(t, "debian-a"), loadBoot(t, "debian-b")
	plan := a.profile().Plan(b.index)
	planned := map[int]bool{}
	for _, i := range plan.Chunks {
		planned[i] = true
	}
	var read, covered int64
	for _, i := range b.profile().Plan(b.index).Chunks {
		read += b.index.At(i).Size
		if planned[i] {
			covered += b.index.At(i).Size
		}
	}
	t.Logf("%d chunks known, %d guessed, %d unknown: %.1f %% of %.1f MiB", plan.Known, plan.Guessed, plan.Unknown,
		100*float64(covered)/float64(read), float64(read)/(1<<20))
	if float64(covered) < 0.85*float64(read) {
		t.Errorf("the last release's profile covers %.1f %% of the bytes, want 85", 100*float64(covered)/float64(read))
	}
}

// TestMakeShape writes the shapes in testdata from the indexes of two releases:
//
//	CAIRN_SHAPE_DIR=DIR go test -run TestMakeShape ./blob/view
//
// DIR must hold a.caibx, b.caibx and default.castr.
func TestMakeShape(t *testing.T) {
	dir := os.Getenv("CAIRN_SHAPE_DIR")
	if dir == "" {
		t.Skip("CAIRN_SHAPE_DIR is not set")
	}
	ids := map[blob.Digest]int{}
	for _, name := range []string{"a", "b"} {
		f, err := os.Open(filepath.Join(dir, name+".caibx"))
		if err != nil {
			t.Fatal(err)
		}
		x, err := blob.Decode(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(traces, "debian-"+name+".shape.gz"), makeShape(t, x, ids, dir).Encode(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func makeShape(t *testing.T, x *blob.Index, ids map[blob.Digest]int, dir string) (s boottrace.Shape) {
	for i, c := range x.All() {
		if x.IsZero(i) {
			s = append(s, boottrace.Chunk{ID: -1, Size: c.Size})
			continue
		}
		if _, ok := ids[c.Digest]; !ok {
			ids[c.Digest] = len(ids)
		}
		hex := c.Digest.String()
		info, err := os.Stat(filepath.Join(dir, "default.castr", hex[:4], hex+".cacnk"))
		if err != nil {
			t.Fatal(err)
		}
		s = append(s, boottrace.Chunk{ID: ids[c.Digest], Size: c.Size, Stored: info.Size()})
	}
	return s
}

// TestColdDepth checks that 64 concurrent reads of an uncached image reach nearly the rate of 64 concurrent requests
// to a store with a latency of 20 ms, on a link whose bandwidth is no limit.
func TestColdDepth(t *testing.T) {
	b := loadBoot(t, "debian-b")
	places := boottrace.Pages(b.index.Len(), func(i int) (int64, bool) { return b.index.At(i).Offset, b.index.IsZero(i) })[:2000]
	synctest.Test(t, func(t *testing.T) {
		const depth, trip = 64, 20 * time.Millisecond
		l := newLink(b.store, trip, 1.25e9)
		l.size = b.newLink().size
		cache := fetch.New(t.Context(), fetch.Options{Bytes: 64 << 20})
		defer cache.Close()
		from := supply.New(store.Policy{}, supply.Options{}, l)
		v := New(b.index, cache.NewSource(from, fetch.SourceOptions{Fetches: from.Requests(), Link: from.Link()}), Options{Around: true})
		start := time.Now()
		err := boottrace.ReadPages(t.Context(), places, depth, func(ctx context.Context, p []byte, off int64) error {
			defer b.checkBytes(t, p, off)
			return v.ReadAt(ctx, p, off)
		})
		if err != nil {
			t.Error(err)
		}
		rate, most := float64(len(places))/time.Since(start).Seconds(), depth/trip.Seconds()
		t.Logf("%.0f reads a second, %.0f %% of %.0f, with %d requests", rate, 100*rate/most, most, l.gets)
		if rate < 0.8*most || l.gets > len(places)*11/10 {
			t.Errorf("%.0f reads a second with %d requests, want 80 %% of %.0f, and at most 10 %% more than %d", rate, l.gets, most, len(places))
		}
	})
}
