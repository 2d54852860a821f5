package imagecache

import (
	"bytes"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/internal/test/need"
	"cairn/testimages"
)

var params = chunker.Params{Min: 4 << 10, Avg: 16 << 10, Max: 64 << 10}

func index(t testing.TB, image []byte) *blob.Index {
	t.Helper()
	x, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)), scan.Options{Params: params})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// mixed has data, zeros, the data again, and other data.
func mixed() []byte {
	part := testimages.Random(1, 900_000)
	return bytes.Join([][]byte{part, make([]byte, 500_000), part, testimages.Random(2, 700_001)}, nil)
}

// rig is a cache of one image.
type rig struct {
	t     testing.TB
	path  string
	image []byte
	x     *blob.Index
	dir   *Dir
	file  *File
	disk  *worse
}

func newRig(t testing.TB, image []byte) *rig {
	r := &rig{t: t, path: t.TempDir(), image: image, x: index(t, image)}
	r.open(Options{})
	return r
}

func (r *rig) open(o Options) {
	r.t.Helper()
	var err error
	if r.dir, err = open(r.path, o, func(m medium) medium { r.disk = &worse{medium: m}; return r.disk }); err != nil {
		r.t.Fatal(err)
	}
	dir := r.dir
	r.t.Cleanup(func() { _ = dir.Close() })
	if r.file, err = r.dir.Image(r.x); err != nil {
		r.t.Fatal(err)
	}
}

// newHeardRig is a rig, and what its directory says.
func newHeardRig(t testing.TB, image []byte) (*rig, *spoken) {
	t.Helper()
	r, said := newRig(t, image), new(spoken)
	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	r.open(Options{Log: slog.New(slog.NewTextHandler(said, nil))})
	return r, said
}

// raw is the name of the whole image's file, and whether the file has it.
func (r *rig) raw() (name string, complete bool) {
	name = filepath.Join(r.file.path, rawName)
	_, err := os.Stat(name)
	return name, err == nil
}

// sync flushes what was written, and returns when that is done.
func (r *rig) sync() {
	r.dir.do((*keeper).beginFlush)
	r.dir.do(func(*keeper) {})
}

func (r *rig) data(i int) []byte { c := r.x.At(i); return r.image[c.Offset:c.End()] }

// halfMinuteLater has a disk that failed tried again.
func (r *rig) halfMinuteLater() {
	if r.dir.health.paused.Load() != 0 {
		r.dir.health.paused.Store(1)
	}
}

// put writes chunks, and returns when they are flushed.
func (r *rig) put(lo, hi int) {
	r.t.Helper()
	r.write(lo, hi)
	r.sync()
}

// write writes chunks, and returns when they are written.
func (r *rig) write(lo, hi int) {
	r.t.Helper()
	for i := lo; i < hi; i++ {
		r.file.OfferWait(r.t.Context(), i, r.data(i))
	}
	r.settle()
}

// settle returns when nothing waits to be written.
func (r *rig) settle() {
	r.t.Helper()
	if err := r.dir.queue.room.Acquire(r.t.Context(), queueBytes); err != nil {
		r.t.Fatal(err)
	}
	r.dir.queue.room.Release(queueBytes)
}

// check: what the cache has is right. It returns how many chunks it has, and how many it claims.
func (r *rig) check() (proven, claimed int) {
	r.t.Helper()
	for i, c := range r.x.All() {
		p := testimages.Random(7, int(c.Size))
		if r.file.Has(i) {
			proven++
			if !r.file.Read(p, c.Offset, i, i+1) || !bytes.Equal(p, r.data(i)) {
				r.t.Errorf("chunk %d is wrong", i)
			}
		}
		if r.file.Claims(i) {
			claimed++
			if r.file.Read(p, c.Offset, i, i+1) || r.file.ReadNow(p, c.Offset, i, i+1) {
				r.t.Errorf("chunk %d is read without proof", i)
			}
		}
	}
	return proven, claimed
}

// prove proves all that is claimed, and returns how much of it was right.
func (r *rig) prove() (right int) {
	r.t.Helper()
	for i, c := range r.x.All() {
		p := make([]byte, c.Size)
		if r.file.Claims(i) && r.file.Prove(i, p) {
			right++
			if !bytes.Equal(p, r.data(i)) {
				r.t.Errorf("chunk %d is wrong and proven", i)
			}
		}
		if r.file.Claims(i) {
			r.t.Errorf("chunk %d is still claimed", i)
		}
	}
	return right
}

// crash lets go of the files as they are, as the end of the process would.
func (r *rig) crash() {
	r.t.Helper()
	r.settle()
	r.file.lock.Close()
}

func (r *rig) zeros() (n int) {
	for i := range r.x.Len() {
		if r.x.IsZero(i) {
			n++
		}
	}
	return n
}

func TestCloseAndOpen(t *testing.T) {
	r := newRig(t, mixed())
	if n, claimed := r.check(); n != r.zeros() || claimed != 0 {
		t.Errorf("a new file has %d chunks, want %d zeros", n, r.zeros())
	}
	r.put(3, 9)
	before, _ := r.check()
	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	r.open(Options{})
	if n, claimed := r.check(); n != before || claimed != 0 {
		t.Errorf("after closing and opening %d chunks are proven, %d claimed, want %d, 0", n, claimed, before)
	}
}

// TestComplete: a complete file has the name and the bytes of the image, and again after a restart.
func TestComplete(t *testing.T) {
	r := newRig(t, mixed())
	r.put(0, r.x.Len())
	for range 2 {
		r.sync()
		name, complete := r.raw()
		got, err := os.ReadFile(name)
		if !complete || err != nil || !bytes.Equal(got, r.image) {
			t.Fatalf("complete: %v; reading %s: %d bytes, %v", complete, name, len(got), err)
		}
		if err := r.dir.Close(); err != nil {
			t.Fatal(err)
		}
		r.open(Options{})
	}
}

// TestUncleanStop: what was not closed must be proven, and is all there.
func TestUncleanStop(t *testing.T) {
	for _, synced := range []bool{true, false} {
		r := newRig(t, mixed())
		r.write(0, 20)
		if synced {
			r.sync()
		}
		proven, claimed := r.check()
		want := proven + claimed
		r.crash()
		r.open(Options{})
		if n, claimed := r.check(); n != r.zeros() || claimed < want-n {
			t.Errorf("%d proven, %d claimed, want %d and %d", n, claimed, r.zeros(), want-r.zeros())
		}
		if got := r.prove(); got < want-r.zeros() {
			t.Errorf("%d chunks are right, want %d", got, want-r.zeros())
		}
		r.check()
	}
}

// TestMapSaysNoMoreThanDisk: the map never speaks of a chunk that was not flushed before.
func TestMapSaysNoMoreThanDisk(t *testing.T) {
	r := newRig(t, mixed())
	r.put(0, 10)
	r.disk.before(func() { r.write(15, 16) }) // too late for this flush
	r.put(10, 12)
	file, err := os.ReadFile(filepath.Join(r.file.path, mapName))
	if err != nil {
		t.Fatal(err)
	}
	state, err := r.file.maps.layout.newest(file)
	if err != nil {
		t.Fatal(err)
	}
	if state.bits[15/8]>>(15%8)&1 != 0 || state.bits[0] == 0 || state.clean {
		t.Errorf("the map says %x, clean: %v", state.bits, state.clean)
	}
}

// TestDamage: whatever happened to the files while nobody had them, no wrong byte comes out.
func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(r *rig){
		"flipped map":          func(r *rig) { r.change(mapName, func(p []byte) []byte { p[100] ^= 1; p[len(p)/2+100] ^= 1; return p }) },
		"truncated map":        func(r *rig) { r.change(mapName, func(p []byte) []byte { return p[:50] }) },
		"no map":               func(r *rig) { os.Remove(filepath.Join(r.file.path, mapName)) },
		"flipped data":         func(r *rig) { r.change(partialName, flip) },
		"truncated data":       func(r *rig) { r.change(partialName, func(p []byte) []byte { return p[:300_000] }) },
		"longer data":          func(r *rig) { r.change(partialName, func(p []byte) []byte { return append(p, 1, 2, 3) }) },
		"no data":              func(r *rig) { os.Remove(filepath.Join(r.file.path, partialName)) },
		"data in holes":        func(r *rig) { r.change(partialName, func(p []byte) []byte { p[1_200_000] = 1; return p }) },
		"map of another image": func(r *rig) { r.change(mapName, func([]byte) []byte { return other(r) }) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, mixed())
			r.put(0, r.x.Len()-3)
			if err := r.dir.Close(); err != nil {
				t.Fatal(err)
			}
			damage(r)
			r.open(Options{})
			r.check()
			r.prove()
			r.check()
			r.put(0, r.x.Len())
			r.sync()
			raw, complete := r.raw()
			if got, err := os.ReadFile(raw); !complete || err != nil || !bytes.Equal(got, r.image) {
				t.Errorf("afterwards the file cannot be completed: %v, %v", complete, err)
			}
		})
	}
}

func flip(p []byte) []byte {
	for i := 0; i < len(p); i += 50_000 {
		p[i] ^= 1
	}
	return p
}

func (r *rig) change(name string, f func([]byte) []byte) {
	r.t.Helper()
	path := filepath.Join(r.file.path, name)
	p, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, f(p), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// other is a whole and clean map of another image that says it has everything.
func other(r *rig) []byte {
	l := r.file.maps.layout
	l.digest[0]++
	all := bytes.Repeat([]byte{255}, l.bitBytes())
	if l.chunks%8 != 0 {
		all[len(all)-1] >>= 8 - l.chunks%8
	}
	return l.encode(mapState{sequence: 9, clean: true, bits: all, proven: all})
}

// TestCopy: chunks of one image are found for another, in open files and in those of earlier runs.
func TestCopy(t *testing.T) {
	a := mixed()
	b := append(testimages.Random(5, 200_000), a...)
	r := newRig(t, a)
	r.put(0, r.x.Len())
	xb := index(t, b)
	shared := 0
	check := func(dir *Dir) {
		t.Helper()
		shared = 0
		for i, c := range xb.All() {
			dst := make([]byte, c.Size)
			if !xb.IsZero(i) && dir.MayCopy(xb.Algorithm(), c.Digest, c.Size) && dir.Copy(xb.Algorithm(), c.Digest, dst) {
				shared++
				if !bytes.Equal(dst, b[c.Offset:c.End()]) {
					t.Errorf("chunk %d is copied wrong", i)
				}
			}
		}
		if shared < xb.Len()/2 {
			t.Errorf("%d of %d chunks are shared", shared, xb.Len())
		}
		if dir.MayCopy(blob.SHA256, xb.At(xb.Len()-1).Digest, xb.At(xb.Len()-1).Size) {
			t.Error("a chunk is found by a digest of the other kind")
		}
	}
	check(r.dir)
	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	dir, err := Open(r.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := dir.Image(xb); err != nil {
		t.Fatal(err)
	}
	check(dir)
	r.change(rawName, flip) // in place, under the open donor
	for i, c := range xb.All() {
		dst := make([]byte, c.Size)
		if dir.Copy(xb.Algorithm(), c.Digest, dst) && !bytes.Equal(dst, b[c.Offset:c.End()]) {
			t.Errorf("chunk %d is copied wrong from a damaged file", i)
		}
	}
}

// TestTwoProcesses: the second one is told, and the first goes on. A lock on an open file stands for a process.
func TestTwoProcesses(t *testing.T) {
	r := newRig(t, mixed())
	r.put(0, 5)
	second, err := Open(r.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := second.Image(r.x); !errors.Is(err, ErrBusy) {
		t.Errorf("Image for the second = %v, want %v", err, ErrBusy)
	}
	if second.evictClosed(nil, 1<<40) != 0 {
		t.Error("the second process evicts what the first has open")
	}
	r.put(5, 10)
	r.check()
}

// worse is a file that fails on demand.
type worse struct {
	medium
	mu                          sync.Mutex
	writeErr, readErr, flushErr error
	beforeFlush, afterRead      func()
	uncached                    bool
}

func (w *worse) uncache() {
	w.uncached = true
	w.medium.uncache()
}

func (w *worse) fail(which *error, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*which = err
}

func (w *worse) before(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.beforeFlush = f
}

func (w *worse) after(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.afterRead = f
}

func (w *worse) get(which *error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *which
}

func (w *worse) WriteAt(p []byte, off int64) (int, error) {
	if err := w.get(&w.writeErr); err != nil {
		return 0, err
	}
	return w.medium.WriteAt(p, off)
}

func (w *worse) ReadAt(p []byte, off int64) (int, error) {
	if err := w.get(&w.readErr); err != nil {
		return 0, err
	}
	n, err := w.medium.ReadAt(p, off)
	w.mu.Lock()
	after := w.afterRead
	w.afterRead = nil
	w.mu.Unlock()
	if after != nil {
		after()
	}
	return n, err
}

func (w *worse) readNow(p []byte, off int64) bool {
	return w.get(&w.readErr) == nil && w.medium.readNow(p, off)
}

func (w *worse) flush() error {
	w.mu.Lock()
	before := w.beforeFlush
	w.beforeFlush = nil
	w.mu.Unlock()
	if before != nil {
		before()
	}
	if err := w.get(&w.flushErr); err != nil {
		return err
	}
	return w.medium.flush()
}

// spoken is a log that is kept.
type spoken struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *spoken) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *spoken) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), text)
}

// TestFailingDisk: a disk that is full or broken costs what it kept, is told of once, and is tried again.
func TestFailingDisk(t *testing.T) {
	r, said := newHeardRig(t, mixed())
	disk := r.disk
	r.put(0, 5)
	disk.fail(&disk.writeErr, syscall.ENOSPC)
	r.put(5, 10)
	if r.file.Has(7) || said.count("level=WARN") != 1 || said.count("no space left") != 1 {
		t.Errorf("a full disk was told of %d times", said.count("level=WARN"))
	}
	disk.fail(&disk.writeErr, nil)
	r.put(5, 10)
	if r.file.Has(7) {
		t.Error("the disk is tried again at once")
	}
	r.halfMinuteLater()
	r.put(5, 10)
	if !r.file.Has(7) || said.count("written again") != 1 {
		t.Error("the disk is not tried again")
	}
	disk.fail(&disk.readErr, syscall.EIO)
	p := make([]byte, 10)
	if r.file.Read(p, r.x.At(7).Offset, 7, 8) || r.file.Has(7) || r.file.Wants(7) {
		t.Error("a chunk that cannot be read is kept")
	}
	disk.fail(&disk.readErr, nil)
	r.check()
}

// TestFlushFails: what a disk failed to flush is forgotten, whatever the kernel shows of it, and is written again.
func TestFlushFails(t *testing.T) {
	r := newRig(t, mixed())
	disk := r.disk
	disk.fail(&disk.flushErr, syscall.EIO)
	r.put(0, 5)
	if n, claimed := r.check(); n != r.zeros() || claimed != 0 || !r.file.Wants(3) {
		t.Errorf("%d chunks are trusted and %d to be proven, want %d, 0", n, claimed, r.zeros())
	}
	r.dir.do(func(*keeper) {
		disk.fail(&disk.flushErr, nil)
		r.halfMinuteLater()
	})
	r.put(0, 5)
	if n, _ := r.check(); n != r.zeros()+5 {
		t.Errorf("%d chunks are trusted when the disk works again, want %d", n, r.zeros()+5)
	}
}

// TestFlushFailsBesideWrite: what was written while a flush failed is forgotten too. The kernel tells once that
// something did not get to the disk, and the next flush succeeds.
func TestFlushFailsBesideWrite(t *testing.T) {
	r := newRig(t, mixed())
	r.write(0, 3)
	r.disk.before(func() { r.write(3, 5) })
	r.disk.fail(&r.disk.flushErr, syscall.EIO)
	r.sync()
	r.disk.fail(&r.disk.flushErr, nil)
	r.sync()
	if n, claimed := r.check(); n != r.zeros() || claimed != 0 {
		t.Errorf("%d chunks are trusted and %d to be proven, want %d, 0", n, claimed, r.zeros())
	}
}

// TestProveBesideFailedFlush: a proof does not count when the disk fails to flush what it read.
func TestProveBesideFailedFlush(t *testing.T) {
	r := newRig(t, mixed())
	r.write(0, 3)
	r.disk.after(func() {
		r.disk.fail(&r.disk.flushErr, syscall.EIO)
		r.sync()
		r.disk.fail(&r.disk.flushErr, nil)
	})
	r.file.Prove(1, make([]byte, r.x.At(1).Size))
	if n, claimed := r.check(); n != r.zeros() || claimed != 0 {
		t.Errorf("%d chunks are trusted and %d to be proven, want %d, 0", n, claimed, r.zeros())
	}
}

// TestToldOnce: a disk whose memory takes everything and that fails to flush it is told of once.
func TestToldOnce(t *testing.T) {
	r, said := newHeardRig(t, mixed())
	disk := r.disk
	disk.fail(&disk.flushErr, syscall.EIO)
	for i := range 5 {
		r.halfMinuteLater()
		r.put(i, i+1)
	}
	if warned, again := said.count("level=WARN"), said.count("written again"); warned != 1 || again != 0 {
		t.Errorf("told of %d times, and %d times that it works again", warned, again)
	}
}

// TestUnflushed: a chunk is not taken for one on the disk before it is flushed, also when it was proven meanwhile: what
// shows it may be the kernel's memory. Nor does a file get its final name.
func TestUnflushed(t *testing.T) {
	r := newRig(t, mixed())
	flush := make(chan struct{})
	r.disk.before(func() { <-flush })
	r.write(0, r.x.Len())
	for i, c := range r.x.All() {
		if r.x.IsZero(i) {
			continue
		}
		if !r.file.Prove(i, make([]byte, c.Size)) || r.file.Has(i) || !r.file.Queued(i) {
			t.Errorf("chunk %d is not there, is trusted or would be written again", i)
		}
	}
	r.file.nameComplete()
	if _, complete := r.raw(); complete {
		t.Error("the file is complete before it is flushed")
	}
	close(flush)
	r.sync()
	if _, complete := r.raw(); !complete || r.file.Missing() > 0 || r.file.Queued(0) {
		t.Errorf("the file is incomplete when it was flushed: %d chunks are missing", r.file.Missing())
	}
}

// TestStoreBesideFlush: a chunk that is written while others are flushed is trusted in the end.
func TestStoreBesideFlush(t *testing.T) {
	for range 20 {
		r := newRig(t, mixed())
		done := make(chan struct{})
		var flusher sync.WaitGroup
		flusher.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					r.sync()
				}
			}
		})
		r.write(0, r.x.Len())
		close(done)
		flusher.Wait()
		r.sync()
		if n := r.file.Missing(); n > 0 {
			t.Fatalf("%d chunks are not trusted when all was flushed", n)
		}
	}
}

// TestLargeChunks: a chunk that is larger than all that may wait to be written is kept too.
func TestLargeChunks(t *testing.T) {
	image := testimages.Random(1, queueBytes+4096)
	x, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)),
		scan.Options{Params: chunker.Params{Min: 24 << 20, Avg: 24 << 20, Max: 24 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, path: t.TempDir(), image: image, x: x}
	r.open(Options{})
	r.put(0, 1)
	if n, _ := r.check(); n != 1 {
		t.Error("a large chunk is not kept when its writer waits")
	}
	r.file.chunks.forget(0)
	r.file.Offer(0, image)
	r.settle()
	r.sync()
	if n, _ := r.check(); n != 1 {
		t.Error("a large chunk is not kept when it is offered")
	}
}

// TestDistrustsMemory: after an unclean stop chunks are proven as they are on the disk.
func TestDistrustsMemory(t *testing.T) {
	r := newRig(t, mixed())
	r.put(0, 5)
	r.crash()
	r.open(Options{})
	if !r.disk.uncached {
		t.Error("the kernel's memory of the file is not let go")
	}
}

// TestRemoved: that somebody removes the files under a process is told of once; reads go on, and nothing is written
// that nobody would find.
func TestRemoved(t *testing.T) {
	r, said := newHeardRig(t, mixed())
	r.put(0, 5)
	if err := os.RemoveAll(r.file.path); err != nil {
		t.Fatal(err)
	}
	r.put(5, 6)
	r.put(6, r.x.Len())
	if n, _ := r.check(); n != r.zeros()+6 || r.file.Wants(9) {
		t.Errorf("%d chunks are there, want %d", n, r.zeros()+6)
	}
	if n := said.count("removed under the server"); n != 1 || said.count("level=WARN") != 1 {
		t.Errorf("it was told of %d times", n)
	}
}

// TestDiskFull fills a real file system.
func TestDiskFull(t *testing.T) {
	need.Root(t)
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=1M"); err != nil {
		need.Missing(t, "mounting a tmpfs: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	var said spoken
	image := testimages.Random(1, 4<<20)
	r := &rig{t: t, path: path, image: image, x: index(t, image)}
	r.open(Options{Limit: Unlimited, Log: slog.New(slog.NewTextHandler(&said, nil))})
	r.put(0, r.x.Len())
	n, _ := r.check()
	if n == 0 || n == r.x.Len() || said.count("level=WARN") != 1 {
		t.Errorf("%d of %d chunks are kept, %d warnings", n, r.x.Len(), said.count("level=WARN"))
	}
}

// TestLimit: the images take no more than they may; what was used last and what is pinned stays; reads beside
// that are right or refused.
func TestLimit(t *testing.T) {
	const limit = 2 << 20
	image := testimages.Random(1, 6<<20)
	r := &rig{t: t, path: t.TempDir(), image: image, x: index(t, image)}
	r.open(Options{Limit: limit})
	for i := range 20 {
		r.file.Pin(i)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	read := func() {
		for range 200 {
			i := rng.IntN(r.x.Len())
			c := r.x.At(i)
			p := make([]byte, c.Size)
			if (r.file.ReadNow(p, c.Offset, i, i+1) || r.file.Read(p, c.Offset, i, i+1)) && !bytes.Equal(p, r.data(i)) {
				t.Errorf("chunk %d is read wrong", i)
			}
		}
	}
	for lo := 0; lo < r.x.Len(); lo += 10 {
		r.put(lo, min(lo+10, r.x.Len()))
		var reader sync.WaitGroup
		reader.Go(read)
		r.sync()
		r.dir.do((*keeper).evict)
		reader.Wait()
		if used := r.dir.usedBytes(); used > limit {
			t.Errorf("%d bytes are used, of %d", used, limit)
		}
	}
	n, _ := r.check()
	for i := range 20 {
		if !r.file.Has(i) {
			t.Errorf("chunk %d was evicted, though pinned", i)
		}
	}
	u := r.dir.Usage()
	if u.Bytes > limit || u.Limit != limit || u.Evicted < int64(len(image))-limit-limit/2 || u.Evicted > int64(len(image)) || !u.Working {
		t.Errorf("the usage is %+v, want a limit of %d and most of %d bytes evicted", u, limit, len(image))
	}
	if n < r.x.Len()/10 {
		t.Errorf("only %d of %d chunks are left", n, r.x.Len())
	}
	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	r.open(Options{})
	r.check()
}

// TestEvictClosed: images that nobody has open go first.
func TestEvictClosed(t *testing.T) {
	old := newRig(t, testimages.Random(1, 3<<20))
	old.put(0, old.x.Len())
	if err := old.dir.Close(); err != nil {
		t.Fatal(err)
	}
	image := testimages.Random(2, 3<<20)
	r := &rig{t: t, path: old.path, image: image, x: index(t, image)}
	r.open(Options{Limit: 5 << 20})
	r.put(0, r.x.Len())
	r.sync()
	r.dir.do((*keeper).evict)
	if _, err := os.Stat(old.file.path); !os.IsNotExist(err) {
		t.Errorf("the image that nobody has open is still there: %v", err)
	}
	if n, _ := r.check(); n != r.x.Len() {
		t.Errorf("%d of %d chunks are left of the open one", n, r.x.Len())
	}
}

// TestEvictComplete: a file that is whole no more loses its name before its bytes.
func TestEvictComplete(t *testing.T) {
	r := newRig(t, testimages.Random(1, 3<<20))
	r.put(0, r.x.Len())
	r.sync()
	r.dir.do(func(*keeper) { evictOpen([]*File{r.file}, 1<<20, false) })
	name, complete := r.raw()
	if _, err := os.Stat(name); complete || !os.IsNotExist(err) {
		t.Errorf("the file is complete: %v; its name: %v", complete, err)
	}
	if n, _ := r.check(); n == 0 || n == r.x.Len() {
		t.Errorf("%d of %d chunks are left", n, r.x.Len())
	}
}

// TestAllPinned: the limit holds also when a profile names everything.
func TestAllPinned(t *testing.T) {
	image := testimages.Random(1, 3<<20)
	r := &rig{t: t, path: t.TempDir(), image: image, x: index(t, image)}
	r.open(Options{Limit: 2 << 20})
	for i := range r.x.Len() {
		r.file.Pin(i)
		r.put(i, i+1)
	}
	r.sync()
	r.dir.do((*keeper).evict)
	if used := r.dir.usedBytes(); used > 2<<20 {
		t.Errorf("%d bytes are used, of %d", used, 2<<20)
	}
	r.check()
}

// TestDefaultLimit: a cache that was given no limit leaves the half of what is free.
func TestDefaultLimit(t *testing.T) {
	dir := t.TempDir()
	free := freeBytes(dir)
	d, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.limit < free/4 || d.limit > free*3/4 {
		t.Errorf("the limit is %d with %d free", d.limit, free)
	}
}

// TestCloseFile: the last one who opened an image closes it; its chunks can be copied still, and it can be opened
// again, by another process too.
func TestCloseFile(t *testing.T) {
	r := newRig(t, mixed())
	r.put(0, r.x.Len())
	again, err := r.dir.Image(r.x)
	if err != nil || again != r.file {
		t.Fatalf("opened again: another file, %v", err)
	}
	if err := again.Close(); err != nil || !r.file.Read(make([]byte, 10), 0, 0, 1) {
		t.Errorf("closed by one of two: %v, or it cannot be read", err)
	}
	if err := r.file.Close(); err != nil || r.file.Read(make([]byte, 10), 0, 0, 1) {
		t.Errorf("closed by both: %v, or it can be read", err)
	}
	r.file.Offer(0, r.data(0))
	dst := make([]byte, r.x.At(5).Size)
	if !r.dir.Copy(r.x.Algorithm(), r.x.At(5).Digest, dst) || !bytes.Equal(dst, r.data(5)) {
		t.Error("a closed image's chunk cannot be copied")
	}
	second, err := Open(r.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := second.Image(r.x)
	if err != nil || f.Missing() != 0 {
		t.Errorf("opened by a second process: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if r.file, err = r.dir.Image(r.x); err != nil {
		t.Fatal(err)
	}
	if n, _ := r.check(); n != r.x.Len() {
		t.Errorf("opened again it has %d chunks of %d", n, r.x.Len())
	}
}

func TestReadNowAllocatesNothing(t *testing.T) {
	r := newRig(t, mixed())
	r.put(0, r.x.Len())
	p := make([]byte, 100_000)
	lo, hi := r.x.Find(850_000), r.x.Find(949_999)+1
	if !r.file.ReadNow(p, 850_000, lo, hi) || !bytes.Equal(p, r.image[850_000:950_000]) {
		t.Fatal("a read across data and zeros is refused or wrong")
	}
	if n := testing.AllocsPerRun(100, func() { r.file.ReadNow(p, 850_000, lo, hi) }); n != 0 {
		t.Errorf("ReadNow allocates %v times", n)
	}
}

func FuzzMap(f *testing.F) {
	l := mapLayout{chunks: 13, size: 100}
	good := l.encode(mapState{sequence: 3, clean: true, bits: []byte{1, 2}, proven: []byte{1, 0}})
	f.Add(good)
	f.Add(append(make([]byte, l.slotSize()), good...))
	f.Fuzz(func(t *testing.T, file []byte) {
		s, err := l.newest(file)
		if err != nil {
			return
		}
		if again := l.encode(s); !bytes.Contains(file, again) {
			t.Errorf("newest took what encode does not write")
		}
	})
}

// TestOpenBesideReads: who asks what is at hand does not wait for an image that is being opened, whose disk may be slow.
func TestOpenBesideReads(t *testing.T) {
	r := newRig(t, mixed())
	r.put(0, 5)
	r.crash()
	var dir *Dir
	asked := make(chan struct{})
	dir, err := open(r.path, Options{}, func(m medium) medium {
		disk := &worse{medium: m}
		disk.before(func() {
			go func() {
				dir.MayCopy(r.x.Algorithm(), r.x.At(0).Digest, r.x.At(0).Size)
				close(asked)
			}()
			select {
			case <-asked:
			case <-time.After(10 * time.Second):
				t.Error("MayCopy waits for an image that is being opened")
			}
		})
		return disk
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	if _, err := dir.Image(r.x); err != nil {
		t.Fatal(err)
	}
	<-asked
}

// TestOpenBesideClose: who opens an image while its last user closes it gets it, and is not told that another process
// has it.
func TestOpenBesideClose(t *testing.T) {
	r := newRig(t, mixed())
	r.write(0, 5)
	opened := make(chan error, 1)
	r.disk.before(func() {
		go func() {
			_, err := r.dir.Image(r.x)
			opened <- err
		}()
		time.Sleep(50 * time.Millisecond)
	})
	if err := r.file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Errorf("Image beside Close = %v", err)
	}
}

// TestCloseBesideRead: a file is closed when the reads of it have ended, and not under them.
func TestCloseBesideRead(t *testing.T) {
	r := newRig(t, mixed())
	r.put(0, 5)
	closed := make(chan error, 1)
	r.disk.after(func() {
		go func() { closed <- r.file.Close() }()
		select {
		case err := <-closed:
			t.Errorf("Close under a read = %v", err)
			closed <- err
		case <-time.After(50 * time.Millisecond):
		}
	})
	if !r.file.Read(make([]byte, 10), 0, 0, 1) {
		t.Error("a read beside Close finds nothing")
	}
	if err := <-closed; err != nil {
		t.Errorf("Close = %v", err)
	}
}
