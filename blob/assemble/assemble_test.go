package assemble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/test/need"
	"cairn/seed"
	"cairn/store"
	"cairn/store/storetest"
)

var params = chunker.Params{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}

// index cuts an image.
func index(t testing.TB, image []byte) *blob.Index {
	t.Helper()
	x, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), scan.Options{Params: params})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// memStore is a store that holds an image's chunks, and counts the requests for each.
type memStore struct {
	mu   sync.Mutex
	data map[blob.Digest][]byte
	gets map[blob.Digest]int
	fail error
}

func newStore(t testing.TB, image []byte) *memStore {
	c := &memStore{data: map[blob.Digest][]byte{}, gets: map[blob.Digest]int{}}
	for _, chunk := range index(t, image).All() {
		c.data[chunk.Digest] = image[chunk.Offset:chunk.End()]
	}
	return c
}

// Get implements store.Getter.
func (c *memStore) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	storetest.GetterFunc(c.get).Get(ctx, wants, done)
}

func (c *memStore) get(ctx context.Context, d blob.Digest, dst []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return c.fail
	}
	c.gets[d]++
	data, ok := c.data[d]
	if !ok || len(data) != len(dst) {
		return store.ErrNotFound
	}
	copy(dst, data)
	return ctx.Err()
}

// op is an operation on a device: a write of data at off, or a sync.
type op struct {
	off  int64
	data []byte // nil for a sync
}

// device is a target in memory. It records the operations on it, and fails on demand.
type device struct {
	mu     sync.Mutex
	data   []byte
	log    []op
	failAt int // number of the op that fails, from 1; 0 for none
}

var errDevice = errors.New("input/output error")

func (d *device) do(o op) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, o)
	if len(d.log) == d.failAt {
		return errDevice
	}
	copy(d.data[o.off:], o.data)
	return nil
}

func (d *device) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.NewReader(d.data).ReadAt(p, off)
}
func (d *device) WriteAt(p []byte, off int64) (int, error) {
	return len(p), d.do(op{off, bytes.Clone(p)})
}
func (d *device) Zero(off, n int64) error { return d.do(op{off, make([]byte, n)}) }
func (d *device) Sync() error             { return d.do(op{}) }

// written returns the number of bytes written, and of syncs.
func (d *device) written() (n int64, syncs int) {
	for _, o := range d.log {
		n += int64(len(o.data))
		if o.data == nil {
			syncs++
		}
	}
	return n, syncs
}

func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed)}).Read(p)
	return p
}

// releases returns two images that share much. The second has a change, an insertion, a repeat of a
// part that the first lacks, and zeros.
func releases() (a, b []byte) {
	a = random(1, 1<<20)
	new := random(2, 60_000)
	b = bytes.Join([][]byte{a[:300_000], random(3, 5000), a[300_000:600_000], new, make([]byte, 200_000),
		a[600_000:], random(4, 30_000), new, make([]byte, 100_001)}, nil)
	return a, b
}

func seedOf(t testing.TB, image []byte) seed.Seed {
	return seed.Seed{Name: "a", Index: index(t, image), Data: bytes.NewReader(image)}
}

// distinct returns the number of distinct chunks of b that a lacks, without zero chunks.
func distinct(a, b *blob.Index) int {
	n, has := 0, blob.NewTable(a)
	seen := blob.NewTable(b)
	for i, c := range b.All() {
		if has.Find(c.Digest) < 0 && seen.Find(c.Digest) == i && !b.IsZero(i) {
			n++
		}
	}
	return n
}

func mustRun(t *testing.T, p *seed.Plan, from store.Getter, d *device, o Options, want []byte) Stats {
	t.Helper()
	stats, err := Run(t.Context(), p, from, d, o)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(d.data[:len(want)], want) {
		t.Fatal("the target does not hold the image")
	}
	if stats.Done != int64(len(want)) || stats.Size != stats.Done {
		t.Errorf("stats count %d of %d bytes, want %d: %+v", stats.Done, stats.Size, len(want), stats)
	}
	return stats
}

func TestRun(t *testing.T) {
	a, b := releases()
	lacking := distinct(index(t, a), index(t, b))
	for _, c := range []struct {
		name    string
		target  []byte
		seeds   []seed.Seed
		options Options
		fetches int
	}{
		{"new file", make([]byte, len(b)), nil, Options{New: true}, distinct(index(t, nil), index(t, b))},
		{"new file, seed", make([]byte, len(b)), []seed.Seed{seedOf(t, a)}, Options{New: true}, lacking},
		{"garbage", random(9, len(b)+5000), nil, Options{}, distinct(index(t, nil), index(t, b))},
		{"garbage, seed", random(9, len(b)+5000), []seed.Seed{seedOf(t, a)}, Options{}, lacking},
		{"garbage, a far store", random(9, len(b)+5000), []seed.Seed{seedOf(t, a)}, Options{Far: true, Memory: 1 << 20}, lacking},
		{"one fetch at a time", random(9, len(b)), []seed.Seed{seedOf(t, a)}, Options{Segments: 1}, lacking},
		{"in place", append(bytes.Clone(b), 1, 2, 3), nil, Options{}, 0},
		{"in place, useless seed", bytes.Clone(b), []seed.Seed{seedOf(t, random(8, 1000))}, Options{}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, from := &device{data: c.target}, newStore(t, b)
			tail := bytes.Clone(c.target[len(b):])
			mustRun(t, seed.NewPlan(index(t, b), c.seeds...), from, d, c.options, b)
			if len(from.gets) != c.fetches {
				t.Errorf("%d chunks fetched, want %d", len(from.gets), c.fetches)
			}
			for digest, n := range from.gets {
				if n != 1 {
					t.Errorf("chunk %v fetched %d times", digest, n)
				}
			}
			if !bytes.Equal(d.data[len(b):], tail) {
				t.Error("bytes behind the image changed")
			}
		})
	}
}

func TestEqualTargetIsNotWritten(t *testing.T) {
	_, b := releases()
	d := &device{data: bytes.Clone(b)}
	stats := mustRun(t, seed.NewPlan(index(t, b)), newStore(t, nil), d, Options{}, b)
	if written, syncs := d.written(); written != 0 || syncs != 1 || stats.InPlace != int64(len(b)) {
		t.Errorf("%d bytes written, %d syncs, %d bytes in place, want none, one, all", written, syncs, stats.InPlace)
	}
}

// TestWritesAreFew: if the target differs in one chunk, only that chunk and the head are written.
func TestWritesAreFew(t *testing.T) {
	_, b := releases()
	x := index(t, b)
	for name, at := range map[string]int{"body": 700_000, "head": 10, "zeros": 700_000 - 20_000} {
		t.Run(name, func(t *testing.T) {
			d := &device{data: bytes.Clone(b)}
			d.data[at] ^= 1
			stats := mustRun(t, seed.NewPlan(x), newStore(t, b), d, Options{}, b)
			written, syncs := d.written()
			head := x.At(headChunks(x) - 1).End()
			if most := headSize + head + x.At(x.Find(int64(at))).Size; written > most || syncs < 3 {
				t.Errorf("%d bytes written with %d syncs, want at most %d with 3", written, syncs, most)
			}
			if stats.Fetches > 1 {
				t.Errorf("%d chunks fetched, want at most 1", stats.Fetches)
			}
		})
	}
}

// TestBadSeeds: the image is right whatever a seed holds. Only the chunks that the seed did not hold
// are fetched.
func TestBadSeeds(t *testing.T) {
	a, b := releases()
	xa, xb := index(t, a), index(t, b)
	lacking := distinct(xa, xb)
	flipped := bytes.Clone(a)
	flipped[500_000] ^= 1
	for _, c := range []struct {
		name string
		data io.ReaderAt
		more int // most chunks to fetch beyond those that a lacks
	}{
		{"one flipped byte", bytes.NewReader(flipped), 1},
		{"shorter than its index", bytes.NewReader(a[:500_000]), distinct(index(t, a[:500_000]), xa) + 1},
		{"other content", bytes.NewReader(random(7, len(a))), xb.Len()},
		{"unreadable part", brokenAt{bytes.NewReader(a), 500_000}, 1},
		{"all unreadable", brokenAt{bytes.NewReader(nil), 0}, xb.Len()},
		{"changes while it is read", &changing{data: a}, xb.Len()},
	} {
		for _, o := range []Options{{}, {New: true}, {Far: true, Memory: 1 << 20}} {
			t.Run(fmt.Sprintf("%s/new=%v", c.name, o.New), func(t *testing.T) {
				d, from := &device{data: make([]byte, len(b))}, newStore(t, b)
				mustRun(t, seed.NewPlan(xb, seed.Seed{Index: xa, Data: c.data}), from, d, o, b)
				if len(from.gets) > lacking+c.more {
					t.Errorf("%d chunks fetched, want at most %d and %d more", len(from.gets), lacking, c.more)
				}
			})
		}
	}
	t.Run("a second seed helps", func(t *testing.T) {
		d, from := &device{data: make([]byte, len(b))}, newStore(t, b)
		bad := seed.Seed{Index: xa, Data: bytes.NewReader(random(7, len(a)))}
		stats := mustRun(t, seed.NewPlan(xb, bad, seedOf(t, a)), from, d, Options{}, b)
		if len(from.gets) != lacking || stats.SeedMiss == 0 {
			t.Errorf("%d chunks fetched, %d misses, want %d, some", len(from.gets), stats.SeedMiss, lacking)
		}
	})
	t.Run("the target helps", func(t *testing.T) {
		d, from := &device{data: bytes.Clone(b)}, newStore(t, b)
		mustRun(t, seed.NewPlan(xb, seed.Seed{Index: xa, Data: bytes.NewReader(random(7, len(a)))}), from, d, Options{}, b)
		if written, _ := d.written(); len(from.gets) != 0 || written != 0 {
			t.Errorf("%d chunks fetched, %d bytes written, want none", len(from.gets), written)
		}
	})
}

// brokenAt fails to read the byte at offset bad.
type brokenAt struct {
	io.ReaderAt
	bad int64
}

func (b brokenAt) ReadAt(p []byte, off int64) (int, error) {
	if off <= b.bad && b.bad < off+int64(len(p)) {
		n, _ := b.ReaderAt.ReadAt(p[:b.bad-off], off)
		return n, errDevice
	}
	return b.ReaderAt.ReadAt(p, off)
}

// changing is a seed with a concurrent writer: each read finds another byte changed.
type changing struct {
	mu   sync.Mutex
	data []byte
	n    int
}

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := bytes.NewReader(c.data).ReadAt(p, off)
	if c.n++; n > 0 {
		p[c.n*7919%n] ^= 0xff
	}
	return n, err
}

// TestPowerCut cuts the power after each operation and loses any unflushed blocks. The rest must be the
// old image, the new one, or one whose head belongs to neither. A second run must complete the image.
// With the race detector there are fewer tries: the copies run in one goroutine and take fifteen times
// as long.
func TestPowerCut(t *testing.T) {
	tries := 20
	if need.Race {
		tries = 2
	}
	a, b := releases()
	old := append(bytes.Clone(a), make([]byte, len(b)-len(a))...)
	sameHead := bytes.Clone(b)
	copy(sameHead[900_000:], random(5, 100_000))
	blank := func(p []byte) []byte { // as btrfs leaves it
		return append(make([]byte, btrfsSuperblock), p[btrfsSuperblock:]...)
	}
	for name, c := range map[string]struct {
		old, new []byte
		mark     int // offset of the superblock
	}{
		"another head": {old, b, 0}, "the same head": {sameHead, b, 0},
		"another head, btrfs": {blank(old), blank(b), btrfsSuperblock}, "the same head, btrfs": {blank(sameHead), blank(b), btrfsSuperblock},
	} {
		t.Run(name, func(t *testing.T) {
			d := &device{data: bytes.Clone(c.old)}
			plan := seed.NewPlan(index(t, c.new), seedOf(t, a))
			mustRun(t, plan, newStore(t, c.new), d, Options{Segments: 2, Far: name == "another head"}, c.new)
			rng := rand.New(rand.NewPCG(1, 2))
			for cut := range len(d.log) + 1 {
				for range tries {
					left := afterCut(c.old, d.log[:cut], rng)
					if !bytes.Equal(left, c.old) && !bytes.Equal(left, c.new) && looksLike(left, c.mark, c.old, c.new) {
						t.Fatalf("power cut after %d of %d operations leaves a mix that looks whole", cut, len(d.log))
					}
				}
				if cut%7 == 0 {
					left := afterCut(c.old, d.log[:cut], rng)
					mustRun(t, plan, newStore(t, c.new), &device{data: left}, Options{}, c.new)
				}
			}
		})
	}
}

// afterCut returns the content of a medium after the ops: all flushed blocks, and some of the others.
func afterCut(old []byte, ops []op, rng *rand.Rand) []byte {
	left := bytes.Clone(old)
	flushed := 0
	for i, o := range ops {
		if o.data == nil {
			flushed = i
		}
	}
	for i, o := range ops {
		for at := 0; at < len(o.data); at += superblockSize {
			if i < flushed || rng.IntN(2) == 0 {
				copy(left[o.off+int64(at):], o.data[at:min(at+superblockSize, len(o.data))])
			}
		}
	}
	return left
}

// looksLike reports whether p has the superblock of one of the images, so that a system would mount it.
func looksLike(p []byte, mark int, images ...[]byte) bool {
	for _, image := range images {
		if bytes.Equal(p[mark:mark+superblockSize], image[mark:mark+superblockSize]) {
			return true
		}
	}
	return false
}

// TestInspect: Inspect gets the first chunk before anything is written, from any source.
func TestInspect(t *testing.T) {
	image := random(1, 300_000)
	x := index(t, image)
	first := image[:x.At(0).Size]
	unlike := errors.New("unlike an image")
	for name, held := range map[string][]byte{"from the store": make([]byte, len(image)), "in place": image} {
		d := &device{data: bytes.Clone(held)}
		var shown []byte
		o := Options{Inspect: func(p []byte) error { shown = bytes.Clone(p); return unlike }}
		_, err := Run(t.Context(), seed.NewPlan(x), newStore(t, image), d, o)
		if !errors.Is(err, unlike) || !bytes.Equal(shown, first) {
			t.Errorf("%s: Run = %v, after it showed %d bytes, want %d", name, err, len(shown), len(first))
		}
		if len(d.log) > 0 {
			t.Errorf("%s: the target was changed", name)
		}
	}
	empty := index(t, nil)
	o := Options{Inspect: func([]byte) error { return unlike }}
	if _, err := Run(t.Context(), seed.NewPlan(empty), newStore(t, nil), &device{}, o); err != nil {
		t.Errorf("Run of an empty image = %v", err)
	}
}

// TestTargetFails: Run returns the error of any operation of the target, and a second run completes the image.
func TestTargetFails(t *testing.T) {
	a, b := releases()
	plan := seed.NewPlan(index(t, b), seedOf(t, a))
	for _, o := range []Options{{Segments: 1}, {Segments: 1, New: true}} {
		for n := 1; ; n++ {
			d := &device{data: make([]byte, len(b)), failAt: n}
			_, err := Run(t.Context(), plan, newStore(t, b), d, o)
			if len(d.log) < n {
				break // there are fewer than n operations
			}
			if !errors.Is(err, errDevice) {
				t.Fatalf("operation %d failed: Run = %v, want %v", n, err, errDevice)
			}
			d.failAt = 0
			mustRun(t, plan, newStore(t, b), d, Options{}, b)
		}
	}
}

func TestStoreFails(t *testing.T) {
	_, b := releases()
	corrupt := &store.CorruptError{Name: "x", Err: errors.New("other bytes")}
	for _, want := range []error{store.ErrNotFound, store.ErrUnavailable, corrupt} {
		d, from := &device{data: make([]byte, len(b))}, newStore(t, b)
		from.fail = want
		if _, err := Run(t.Context(), seed.NewPlan(index(t, b)), from, d, Options{}); !errors.Is(err, want) {
			t.Errorf("Run = %v, want %v", err, want)
		}
	}
}

// TestStoreFailsLate: the chunks that were fetched before the store failed are on the target, except
// the head.
func TestStoreFailsLate(t *testing.T) {
	_, b := releases()
	x := index(t, b)
	plan, d := seed.NewPlan(x), &device{data: make([]byte, len(b))}
	head := int64(headChunks(x))
	for done := 0; ; {
		from := &failing{memStore: newStore(t, b), left: head + 20}
		_, err := Run(t.Context(), plan, from, d, Options{})
		if err == nil {
			break
		}
		before := done
		done = rightChunks(x, d.data)
		if !errors.Is(err, store.ErrUnavailable) || done < before+10 {
			t.Fatalf("a run has brought it from %d to %d chunks: %v", before, done, err)
		}
	}
	if !bytes.Equal(d.data, b) {
		t.Error("the target does not hold the image")
	}
}

// rightChunks returns how many of the image's chunks p holds.
func rightChunks(x *blob.Index, p []byte) (n int) {
	for _, c := range x.All() {
		if x.Algorithm().Sum(p[c.Offset:c.End()]) == c.Digest {
			n++
		}
	}
	return n
}

// failing is a store that returns only left chunks.
type failing struct {
	*memStore
	left int64
}

// Get implements store.Getter.
func (f *failing) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	storetest.GetterFunc(f.get).Get(ctx, wants, done)
}

// get returns no chunk after the end of ctx, and does not count such a call.
func (f *failing) get(ctx context.Context, d blob.Digest, dst []byte) error {
	f.mu.Lock()
	gives := f.left > 0 && ctx.Err() == nil
	if gives {
		f.left--
	}
	f.mu.Unlock()
	if !gives {
		return store.ErrUnavailable
	}
	return f.memStore.get(context.WithoutCancel(ctx), d, dst)
}

// TestCancelled: a cancelled run returns an error, whenever it was cancelled.
func TestCancelled(t *testing.T) {
	a, b := releases()
	for n := range 5 {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		o := Options{Segments: 1, Progress: func(Stats) {
			if calls++; calls > n {
				cancel()
			}
		}}
		d := &device{data: random(3, len(b))}
		_, err := Run(ctx, seed.NewPlan(index(t, b), seedOf(t, a)), newStore(t, b), d, o)
		if calls > n && !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled at call %d: Run = %v, want %v", n, err, context.Canceled)
		}
		cancel()
	}
}

// TestPreviewCancelled: a cancelled preview reads no further.
func TestPreviewCancelled(t *testing.T) {
	image := random(1, 1<<20)
	ctx, cancel := context.WithCancel(t.Context())
	reads := 0
	target := readerAtFunc(func(p []byte, off int64) (int, error) {
		reads++
		cancel()
		return bytes.NewReader(image).ReadAt(p, off)
	})
	o := Options{Segments: 1, Memory: 1 << 20}
	if _, _, err := Preview(ctx, seed.NewPlan(index(t, image)), target, o); !errors.Is(err, context.Canceled) || reads != 1 {
		t.Errorf("Preview = %v after %d reads, want %v after 1", err, reads, context.Canceled)
	}
}

// TestCancelledInRepeats: a cancelled run copies no further repeats.
func TestCancelledInRepeats(t *testing.T) {
	part := random(1, 1<<20)
	image := bytes.Join([][]byte{random(2, 200_000), part, random(3, 300_000), part}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var copied int64
	o := Options{New: true, Segments: 1, Progress: func(s Stats) {
		if s.Copied > 0 {
			cancel()
		}
		copied = s.Copied
	}}
	d := &device{data: make([]byte, len(image))}
	o.Memory = 1 << 20 // the two parts are not in one segment
	_, err := Run(ctx, seed.NewPlan(index(t, image)), newStore(t, image), d, o)
	if !errors.Is(err, context.Canceled) || copied == 0 || copied > 16<<10 {
		t.Errorf("Run = %v with %d bytes copied, want %v after the first chunk", err, copied, context.Canceled)
	}
}

func TestSmallImages(t *testing.T) {
	for _, n := range []int{0, 1, 47, 511, headSize, headSize + 1} {
		for _, o := range []Options{{}, {New: true}} {
			image := random(6, n)
			d := &device{data: make([]byte, n+100)}
			mustRun(t, seed.NewPlan(index(t, image)), newStore(t, image), d, o, image)
		}
	}
}

// FuzzRun: any old content, seed and image give the image.
func FuzzRun(f *testing.F) {
	f.Add(uint64(1), uint16(3), uint16(9), true, true)
	f.Fuzz(func(t *testing.T, source uint64, edits, damage uint16, seeded, fresh bool) {
		rng := rand.New(rand.NewPCG(source, 1))
		a := lumpy(rng, 400_000)
		b := edit(rng, a, int(edits%64))
		d := &device{data: make([]byte, len(b)+10)}
		if !fresh {
			copy(d.data, edit(rng, b, int(damage%16)))
		}
		var seeds []seed.Seed
		if seeded {
			seeds = append(seeds, seed.Seed{Index: index(t, a), Data: bytes.NewReader(edit(rng, a, int(damage%16)))})
		}
		mustRun(t, seed.NewPlan(index(t, b), seeds...), newStore(t, b), d, Options{New: fresh}, b)
	})
}

// lumpy returns random bytes with runs of zeros and repeats.
func lumpy(rng *rand.Rand, n int) []byte {
	var p []byte
	for len(p) < n {
		switch run := rng.IntN(50_000); {
		case rng.IntN(4) == 0:
			p = append(p, make([]byte, run)...)
		case rng.IntN(4) == 0 && len(p) > run:
			p = append(p, p[len(p)-run:]...)
		default:
			p = append(p, random(rng.Uint64(), run)...)
		}
	}
	return p
}

// edit overwrites, inserts and removes some bytes.
func edit(rng *rand.Rand, p []byte, times int) []byte {
	p = bytes.Clone(p)
	for range times {
		at, n := rng.IntN(len(p)), rng.IntN(3000)
		end := min(at+n, len(p))
		switch rng.IntN(3) {
		case 0:
			copy(p[at:end], random(rng.Uint64(), n))
		case 1:
			p = append(p[:at:at], append(random(rng.Uint64(), n), p[at:]...)...)
		case 2:
			p = append(p[:at:at], p[end:]...)
		}
	}
	return p
}

// TestPreview: Run does what Preview predicted.
func TestPreview(t *testing.T) {
	a, b := releases()
	damaged := bytes.Clone(b)
	damaged[700_000] ^= 1
	for name, c := range map[string]struct {
		target []byte
		seed   seed.Seed
	}{
		"new":     {nil, seedOf(t, a)},
		"garbage": {random(9, len(b)), seedOf(t, a)},
		"damaged": {damaged, seedOf(t, random(8, 1000))},
		"lying":   {random(9, len(b)), seed.Seed{Index: index(t, a), Data: bytes.NewReader(random(7, len(a)))}},
	} {
		t.Run(name, func(t *testing.T) {
			plan, d := seed.NewPlan(index(t, b), c.seed), &device{data: c.target}
			var target io.ReaderAt
			if c.target == nil {
				d.data = make([]byte, len(b))
			} else {
				target = bytes.NewReader(bytes.Clone(c.target))
			}
			predicted, sources, err := Preview(t.Context(), plan, target, Options{})
			if err != nil {
				t.Fatal(err)
			}
			stats := mustRun(t, plan, newStore(t, b), d, Options{New: c.target == nil}, b)
			stats.Written = 0
			if diff := cmp.Diff(stats, predicted); diff != "" {
				t.Errorf("stats (-done +predicted):\n%s", diff)
			}
			var fetched int64
			for i, from := range sources {
				if from.Kind == seed.Fetch {
					fetched += plan.Index.At(i).Size
				}
			}
			if fetched != stats.Fetched {
				t.Errorf("%d bytes predicted to be fetched, %d are", fetched, stats.Fetched)
			}
		})
	}
}

// TestOwnContent: chunks that the target holds at another offset are used, in whichever direction they
// moved.
func TestOwnContent(t *testing.T) {
	base := random(1, 6<<20)
	insert := random(2, 50_000)
	for name, c := range map[string]struct{ old, image []byte }{
		"moved up":   {base, append(append(bytes.Clone(base[:300_000]), insert...), base[300_000:]...)},
		"moved down": {base, append(bytes.Clone(base[:300_000]), base[400_000:]...)},
	} {
		t.Run(name, func(t *testing.T) {
			old := append(bytes.Clone(c.old), make([]byte, max(0, len(c.image)-len(c.old)))...)
			d, from := &device{data: old}, newStore(t, c.image)
			own := seed.Seed{Name: "own", Index: index(t, c.old), Data: d}
			o := Options{Own: 1, Memory: 2 << 20}
			mustRun(t, seed.NewPlan(index(t, c.image), own), from, d, o, c.image)
			// Some chunks extend into a segment that is written already.
			if most := distinct(index(t, c.old), index(t, c.image)) + 10; len(from.gets) > most {
				t.Errorf("%d chunks fetched, want at most %d", len(from.gets), most)
			}
		})
	}
}

// medium is a device whose medium corrupts the byte at offset bad.
type medium struct {
	*device
	bad int64
}

func (m medium) ReadBack(p []byte, off int64) (int, error) {
	n, err := m.ReadAt(p, off)
	if i := m.bad - off; i >= 0 && i < int64(n) {
		p[i] ^= 1
	}
	return n, err
}

func TestVerify(t *testing.T) {
	a, b := releases()
	plan := seed.NewPlan(index(t, b), seedOf(t, a))
	for _, c := range []struct {
		name   string
		old    []byte
		bad    int64
		verify Extent
		fails  bool
	}{
		{"nothing", random(9, len(b)), 700_000, Nothing, false},
		{"changed, good", random(9, len(b)), -1, Changed, false},
		{"changed, bad body", random(9, len(b)), 700_000, Changed, true},
		{"changed, bad zeros", random(9, len(b)), int64(len(b) - 50_000), Changed, true},
		{"changed, bad head", random(9, len(b)), 5, Changed, true},
		{"changed, bad where it was not written", bytes.Clone(b), 700_000, Changed, false},
		{"all, good", bytes.Clone(b), -1, All, false},
		{"all, bad where it was not written", bytes.Clone(b), 700_000, All, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &device{data: bytes.Clone(c.old)}
			_, err := Run(t.Context(), plan, newStore(t, b), medium{d, c.bad}, Options{Verify: c.verify})
			if got := errors.Is(err, ErrMedium); got != c.fails || err != nil && !got {
				t.Errorf("Run = %v, want ErrMedium: %v", err, c.fails)
			}
			if c.fails && !bytes.Equal(c.old, b) && looksLike(d.data, 0, c.old, b) {
				t.Error("a target that failed verification looks whole")
			}
		})
	}
}

// TestChanging: Changing is called once, before the first change, and never if nothing changes.
func TestChanging(t *testing.T) {
	_, b := releases()
	plan := seed.NewPlan(index(t, b))
	d, calls := &device{data: make([]byte, len(b))}, 0
	o := Options{Changing: func() error {
		if calls++; len(d.log) != 0 {
			t.Error("the target changed before")
		}
		return nil
	}}
	mustRun(t, plan, newStore(t, b), d, o, b)
	mustRun(t, plan, newStore(t, b), d, o, b)
	if calls != 1 {
		t.Errorf("called %d times, want once for two runs", calls)
	}
	d = &device{data: make([]byte, len(b))}
	stop := errors.New("stop")
	_, err := Run(t.Context(), plan, newStore(t, b), d, Options{Changing: func() error { return stop }})
	if !errors.Is(err, stop) || len(d.log) != 0 {
		t.Errorf("Run = %v with %d operations, want %v, none", err, len(d.log), stop)
	}
}

// TestFlushes: the number of bytes between two flushes is bounded.
func TestFlushes(t *testing.T) {
	if testing.Short() {
		t.Skip("writes much")
	}
	image := random(3, 5*flushEvery/2)
	d := &device{data: make([]byte, len(image))}
	mustRun(t, seed.NewPlan(index(t, image)), newStore(t, image), d, Options{New: true}, image)
	var since int64
	for _, o := range d.log {
		if since += int64(len(o.data)); o.data == nil {
			since = 0
		}
		if since > flushEvery+8*maxSegment {
			t.Fatalf("%d bytes written without a flush", since)
		}
	}
}

// sharing is a new file that can share whole blocks with seeds.
type sharing struct {
	*device
	shared int64 // bytes
}

func (s *sharing) Clone(from io.ReaderAt, at, off, n int64) (lo, hi int64) {
	const block = 512
	if (at-off)%block != 0 {
		return 0, 0
	}
	lo, hi = (off+block-1)/block*block, (off+n)/block*block
	s.mu.Lock()
	defer s.mu.Unlock()
	k, _ := from.ReadAt(s.data[lo:hi], at+lo-off)
	s.shared += int64(k)
	return lo, hi
}

// TestClone: shared bytes are not written, and are verified like all others.
func TestClone(t *testing.T) {
	a := random(1, 1<<20)
	b := bytes.Join([][]byte{a[:200_000], random(2, 512*40), a[200_000:]}, nil)
	lying := bytes.Clone(a)
	lying[700_000] ^= 1
	for name, c := range map[string]struct {
		data io.ReaderAt
		more int
	}{"honest": {bytes.NewReader(a), 0}, "lying": {bytes.NewReader(lying), 1}, "changing": {&changing{data: a}, 1 << 20}} {
		t.Run(name, func(t *testing.T) {
			d, from := &sharing{device: &device{data: make([]byte, len(b))}}, newStore(t, b)
			plan := seed.NewPlan(index(t, b), seed.Seed{Index: index(t, a), Data: c.data})
			stats, err := Run(t.Context(), plan, from, d, Options{New: true})
			if err != nil || !bytes.Equal(d.data, b) {
				t.Fatalf("Run = %v, and the image is there: %v", err, bytes.Equal(d.data, b))
			}
			if len(from.gets) > distinct(index(t, a), index(t, b))+c.more {
				t.Errorf("%d chunks fetched", len(from.gets))
			}
			if name == "honest" && stats.Written > int64(len(b))/4 {
				t.Errorf("%d bytes written of %d, though %d are shared", stats.Written, len(b), d.shared)
			}
		})
	}
}

func TestParts(t *testing.T) {
	for n, want := range map[int][2][]span{
		0:         {},
		100:       {{{0, 100}}, nil},
		65000:     {{{0, 4096}}, {{4096, 65000}}},
		65537:     {{{0, 4096}, {65536, 65537}}, {{4096, 65536}}},
		128 << 10: {{{0, 4096}, {65536, 69632}}, {{4096, 65536}, {69632, 128 << 10}}},
	} {
		superblocks, others := splitHead(n)
		if diff := cmp.Diff(want, [2][]span{superblocks, others}, cmp.AllowUnexported(span{})); diff != "" {
			t.Errorf("parts(%d) (-want +got):\n%s", n, diff)
		}
	}
}
