package view

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/blob/view/fetch"
	"cairn/blob/view/imagecache"
	"cairn/store"
	"cairn/store/storetest"
	"cairn/testimages"
)

// diskView is an Image with a disk cache.
type diskView struct {
	dir   *imagecache.Dir
	cache *fetch.Cache
	*Image
}

func openDir(t testing.TB, path string) *imagecache.Dir {
	t.Helper()
	dir, err := imagecache.Open(path, imagecache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

func openImage(t testing.TB, dir *imagecache.Dir, x *blob.Index) *imagecache.File {
	t.Helper()
	f, err := dir.Image(x)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// littleMemory is less than the size of the tests' images.
const littleMemory = 100_000

// openDiskView returns a view with a memory limit in bytes and a disk cache at path.
func openDiskView(t testing.TB, path string, x *blob.Index, from store.Getter, memory int64) *diskView {
	t.Helper()
	dir := openDir(t, path)
	cache := fetch.New(t.Context(), fetch.Options{Bytes: memory, Donors: dir})
	t.Cleanup(cache.Close)
	return &diskView{dir, cache, New(x, cache.NewSource(from, fetch.SourceOptions{}), Options{Disk: openImage(t, dir, x)})}
}

func (k *diskView) close(t testing.TB) {
	t.Helper()
	k.cache.Close()
	if err := k.dir.Close(); err != nil {
		t.Error(err)
	}
}

// TestDiskServes checks that chunks are fetched once. After a restart with an empty store all reads succeed from
// disk, and ReadResident too.
func TestDiskServes(t *testing.T) {
	image := mixed()
	x, path := index(t, image), t.TempDir()
	from := newOrigin(t, image)
	k := openDiskView(t, path, x, from, littleMemory)
	checkRead(t, k.Image, image, make([]byte, len(image)), 0)
	k.close(t)
	k = openDiskView(t, path, x, &origin{gets: map[blob.Digest]int{}}, littleMemory)
	checkRead(t, k.Image, image, make([]byte, len(image)), 0)
	checkResident(t, k.Image, image, 0, len(image))
	from.checkOnce(t, x, 0, x.Len())
	if s := k.Stats(); s.Fetched != 0 || s.DiskHits == 0 {
		t.Errorf("Stats = %+v, want all from disk", s)
	}
	p := make([]byte, 60_000)
	if n := testing.AllocsPerRun(100, func() { k.ReadResident(p, 250_000) }); n != 0 {
		t.Errorf("ReadResident from disk allocates %v times", n)
	}
}

// TestDamagedDisk checks that after an unclean stop no damaged byte is served, and only damaged chunks are fetched
// again.
func TestDamagedDisk(t *testing.T) {
	image, x, path := damaged(t, 10, 200_000, 350_000) // the last one in zeros
	from := newOrigin(t, image)
	k := openDiskView(t, path, x, from, littleMemory)
	for off := 0; off < len(image); off += 7000 {
		checkRead(t, k.Image, image, make([]byte, min(7000, len(image)-off)), int64(off))
	}
	if all, _ := from.countRequests(); all > 2 {
		t.Errorf("%d chunks were fetched, want at most the two damaged ones", all)
	}
	if s := k.Stats(); s.ProvenChunks == 0 {
		t.Errorf("Stats = %+v, want chunks that were proven", s)
	}
}

// damaged returns an image and the path of a disk cache that holds all of it, with damaged bytes at the given
// offsets.
func damaged(t testing.TB, offsets ...int64) (image []byte, x *blob.Index, path string) {
	t.Helper()
	image, path = mixed(), t.TempDir()
	x = index(t, image)
	k := openDiskView(t, path, x, newOrigin(t, image), littleMemory)
	checkRead(t, k.Image, image, make([]byte, len(image)), 0)
	k.close(t)
	damage(t, path, image, offsets...)
	return image, x, path
}

// damage changes bytes of the only image in the disk cache at path.
func damage(t testing.TB, path string, image []byte, offsets ...int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(path, "images", "*", "image.*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	f, err := os.OpenFile(files[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range offsets {
		if _, err := f.WriteAt([]byte{image[off] ^ 1}, off); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOtherImagesDisk checks that chunks that another image has on disk are copied and not fetched.
func TestOtherImagesDisk(t *testing.T) {
	a := testimages.Random(1, 500_000)
	b := append(testimages.Random(2, 50_000), a...)
	dir := openDir(t, t.TempDir())
	cache := fetch.New(t.Context(), fetch.Options{Bytes: 1, Donors: dir})
	t.Cleanup(cache.Close)
	xa, xb := index(t, a), index(t, b)
	from := newOrigin(t, a, b)
	va := New(xa, cache.NewSource(from, fetch.SourceOptions{}), Options{Disk: openImage(t, dir, xa)})
	fillDisk(t, va)
	before, _ := from.countRequests()
	vb := New(xb, cache.NewSource(from, fetch.SourceOptions{}), Options{Disk: openImage(t, dir, xb)})
	checkRead(t, vb, b, make([]byte, len(b)), 0)
	after, _ := from.countRequests()
	if got := after - before; got > xb.Len()-xa.Len()+3 {
		t.Errorf("%d chunks were fetched for the second image, of %d", got, xb.Len())
	}
	if s := vb.Stats(); s.CopiedChunks < int64(xa.Len()-3) {
		t.Errorf("%d chunks were copied, want about %d", s.CopiedChunks, xa.Len())
	}
}

// fillDisk fills an image's disk cache, and returns when it is complete.
func fillDisk(t testing.TB, v *Image) {
	t.Helper()
	done := make(chan struct{})
	v.log = slog.New(logSignal{"complete on disk", done})
	v.Fill(0)
	<-done
}

// logSignal is a slog.Handler that closes done when a message contains text.
type logSignal struct {
	text string
	done chan struct{}
}

func (h logSignal) Enabled(context.Context, slog.Level) bool { return true }
func (h logSignal) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h logSignal) WithGroup(string) slog.Handler            { return h }
func (h logSignal) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, h.text) {
		close(h.done)
	}
	return nil
}

// TestFill checks that Fill fetches each chunk once, and that the complete file has the image's bytes and the name
// image.raw.
func TestFill(t *testing.T) {
	image := mixed()
	x, from := index(t, image), newOrigin(t, image)
	k := openDiskView(t, t.TempDir(), x, from, littleMemory)
	fillDisk(t, k.Image)
	from.checkOnce(t, x, 0, x.Len())
	disk := k.disk
	k.close(t)
	got, err := os.ReadFile(filepath.Join(disk.Path(), "image.raw"))
	if err != nil || !bytes.Equal(got, image) {
		t.Errorf("reading the complete image's file: %d bytes, %v, want the image's %d", len(got), err, len(image))
	}
}

// TestCloseImage checks that reads succeed after Close.
func TestCloseImage(t *testing.T) {
	image := mixed()
	x, from := index(t, image), newOrigin(t, image)
	k := openDiskView(t, t.TempDir(), x, from, littleMemory)
	k.Follow(firstChunks(x.Len()))
	checkRead(t, k.Image, image, make([]byte, 300_000), 0)
	if err := k.Image.Close(); err != nil {
		t.Fatal(err)
	}
	checkRead(t, k.Image, image, make([]byte, len(image)), 0)
}

// TestFillRate checks that Fill keeps to its rate.
func TestFillRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 1<<20)
		x, from := index(t, image), newOrigin(t, image)
		k := openDiskView(t, t.TempDir(), x, from, littleMemory)
		defer k.close(t)
		start := time.Now()
		done := make(chan struct{})
		k.log = slog.New(logSignal{"complete on disk", done})
		k.Fill(100_000)
		<-done
		if took := time.Since(start); took < 9*time.Second || took > 13*time.Second {
			t.Errorf("filling 1 MiB at 100 kB/s took %v", took)
		}
	})
}

// TestFillAgain checks that Fill fetches a chunk again that was found damaged on disk, and that no read gets wrong bytes
// from then on.
func TestFillAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 200_000)
		x, from, path := index(t, image), newOrigin(t, image), t.TempDir()
		k := openDiskView(t, path, x, from, 1)
		defer k.close(t)
		fillDisk(t, k.Image)
		k.log = slog.New(slog.DiscardHandler)
		damage(t, path, image, x.At(3).Offset, x.At(5).Offset)
		for k.dir.Usage().Damaged < 2 {
			time.Sleep(time.Second)
		}
		checkRead(t, k.Image, image, make([]byte, 10), x.At(3).Offset)
		for k.disk.Missing() > 0 {
			time.Sleep(time.Second)
		}
		checkResident(t, k.Image, image, 0, len(image))
		if all, _ := from.countRequests(); all != x.Len()+2 {
			t.Errorf("%d chunks were fetched, want %d and two of them again", all, x.Len())
		}
	})
}

// TestDemandFirst checks that Fill and Follow delay a read by little, also if its chunk is queued as a prefetch.
func TestDemandFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 8<<20)
		x := index(t, image)
		l := newLink(newOrigin(t, image), 20*time.Millisecond, 12_500_000)
		k := openDiskView(t, t.TempDir(), x, l, 4<<20)
		defer k.close(t)
		k.Fill(0)
		k.Follow(firstChunks(x.Len()))
		time.Sleep(200 * time.Millisecond)
		for _, i := range []int{x.Len() - 1, x.Len() - 100, x.Len() / 2, x.Len() / 3} {
			start := time.Now()
			checkRead(t, k.Image, image, make([]byte, 100), x.At(i).Offset)
			if took := time.Since(start); took > 120*time.Millisecond {
				t.Errorf("reading chunk %d of %d beside prefetching took %v", i, x.Len(), took)
			}
		}
	})
}

func firstChunks(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// TestHold checks that a read blocks while the store is unavailable, succeeds when it recovers, and is logged at
// once. After Hold the read fails, and the next read asks the store again.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 100_000)
		x, from := index(t, image), newOrigin(t, image)
		var logged bytes.Buffer // the handler locks it; no goroutine writes to it any more when the test reads it
		cache := fetch.New(t.Context(), fetch.Options{Log: slog.New(slog.NewTextHandler(&logged, nil))})
		defer cache.Close()
		v := New(x, cache.NewSource(from, fetch.SourceOptions{}), Options{Name: "root", Hold: time.Minute})
		from.failAll(x, store.ErrUnavailable)
		start := time.Now()
		go func() {
			time.Sleep(50 * time.Second)
			from.failAll(x, nil)
		}()
		go func() {
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if s := v.Stats(); len(s.Waiting) != 1 || s.Waiting[0].Chunk != x.At(0) || s.Waiting[0].Err == nil {
				t.Errorf("Stats.Waiting = %+v, want the first chunk", s.Waiting)
			}
		}()
		checkRead(t, v, image, make([]byte, 10), 0)
		if took := time.Since(start); took < 50*time.Second || took > 56*time.Second {
			t.Errorf("a read in an outage of 50s took %v, want 50s to 56s", took)
		}
		if text := logged.String(); strings.Count(text, "reads wait for the store") != 2 || !strings.Contains(text, "answers again") ||
			!strings.Contains(text, "image=root chunk="+x.At(0).Digest.String()+" offset=0 waited=0s error=") {
			t.Errorf("the log lacks a message:\n%s", text)
		}
		from.failAll(x, store.ErrUnavailable)
		start = time.Now()
		last := x.At(x.Len() - 1)
		err := v.ReadAt(t.Context(), make([]byte, 10), last.Offset)
		if took := time.Since(start); took != time.Minute || !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "did not answer in time (1m0s)") {
			t.Errorf("a read in an outage = %v after %v", err, took)
		}
		from.failAll(x, nil)
		time.Sleep(10 * time.Second)
		checkRead(t, v, image, make([]byte, 10), last.Offset)
		if s := v.Stats(); s.Failures != 1 || s.StallTime < 110*time.Second || len(s.Waiting) != 0 {
			t.Errorf("Stats = %+v", s)
		}
	})
}

// failAll sets the error of all requests for x's chunks; nil ends the outage.
func (o *origin) failAll(x *blob.Index, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range x.All() {
		o.fail[c.Digest] = err
	}
}

// TestPrefetchInOutage checks that prefetches back off while the store is unavailable, and continue when it recovers.
func TestPrefetchInOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		image := testimages.Random(1, 300_000)
		x, from := index(t, image), newOrigin(t, image)
		v := newView(t, x, from, fetch.Options{})
		from.failAll(x, store.ErrUnavailable)
		v.Follow(firstChunks(x.Len()))
		time.Sleep(time.Minute)
		if all, _ := from.countRequests(); all > 400 {
			t.Errorf("an unavailable store got %d requests in a minute, want at most 400", all)
		}
		from.failAll(x, nil)
		time.Sleep(time.Minute)
		synctest.Wait()
		checkResident(t, v, image, 0, len(image))
	})
}

// TestRecord checks that first reads are recorded in order, from memory or the store, without zeros.
func TestRecord(t *testing.T) {
	image := mixed()
	x := index(t, image)
	cache := fetch.New(t.Context(), fetch.Options{})
	defer cache.Close()
	r := NewRecorder(x, 0)
	v := New(x, cache.NewSource(newOrigin(t, image), fetch.SourceOptions{}), Options{Record: r})
	var want []int
	for _, i := range []int{9, 3, 9, x.Find(350_000), 3, 20} {
		checkRead(t, v, image, make([]byte, 1), x.At(i).Offset)
		v.ReadResident(make([]byte, 1), x.At(i).Offset)
	}
	want = []int{9, 3, 20}
	got := r.Reads()
	if len(got) != len(want) {
		t.Fatalf("%d chunks are recorded, want %d", len(got), len(want))
	}
	for i, n := range want {
		if got[i].Chunk != x.At(n) {
			t.Errorf("chunk %d is recorded as %+v, want %+v", i, got[i].Chunk, x.At(n))
		}
	}
}

// link is a store behind a link. Each answer takes the latency, and all answers share the rate.
type link struct {
	store.Getter
	latency time.Duration
	rate    float64                        // bytes a second
	size    func(d blob.Digest, n int) int // bytes on the link of an answer with a chunk of n bytes

	mu   sync.Mutex // guards the fields below
	free time.Time  // when the link has sent all answers
	gets int
	sent int64 // bytes
}

func newLink(g store.Getter, latency time.Duration, rate float64) *link {
	return &link{Getter: g, latency: latency, rate: rate, size: func(_ blob.Digest, n int) int { return n }}
}

// Get implements store.Getter.
func (l *link) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	storetest.GetterFunc(l.get).Get(ctx, wants, done)
}

func (l *link) get(ctx context.Context, d blob.Digest, dst []byte) error {
	if err := sleep(ctx, l.latency); err != nil {
		return err
	}
	if err := sleep(ctx, time.Until(l.send(l.size(d, len(dst))))); err != nil {
		return err
	}
	return store.GetOne(ctx, l.Getter, d, dst)
}

// send occupies the link for n bytes, and returns the time at which they have arrived.
func (l *link) send(n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.rate * float64(time.Second)))
	l.gets++
	l.sent += int64(n)
	return l.free
}

// BenchmarkReadResidentDisk is BenchmarkReadResident from the disk cache, whose pages are in the page cache.
func BenchmarkReadResidentDisk(b *testing.B) {
	image := testimages.Random(1, 8<<20)
	k := openDiskView(b, b.TempDir(), index(b, image), newOrigin(b, image), littleMemory)
	fillDisk(b, k.Image)
	p, off := make([]byte, 4096), int64(0)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if off = (off + 1_000_003) % (8<<20 - 4096); !k.ReadResident(p, off) {
			b.Fatal("not resident")
		}
	}
}

// TestRecordEnds checks that a recording ends the given time after its first read.
func TestRecordEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := index(t, mixed())
		r := NewRecorder(x, time.Minute)
		time.Sleep(time.Hour) // before the first read
		for _, read := range []struct {
			chunk int
			wait  time.Duration
		}{{1, 0}, {2, time.Minute}, {3, time.Nanosecond}} {
			time.Sleep(read.wait)
			r.recordRead(read.chunk)
		}
		if got := r.Reads(); len(got) != 2 || got[1].Chunk != x.At(2) {
			t.Errorf("recorded are %+v, want the chunks 1 and 2", got)
		}
	})
}
