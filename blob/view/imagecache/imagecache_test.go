package imagecache

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
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

// mixed returns an image with data, zeros, the same data, and other data.
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
	disk  *faultyMedium
}

func newRig(t testing.TB, image []byte) *rig {
	r := &rig{t: t, path: t.TempDir(), image: image, x: index(t, image)}
	r.openCache(Options{})
	return r
}

func (r *rig) openCache(o Options) {
	r.t.Helper()
	var err error
	if r.dir, err = openDir(r.path, o, func(m medium) medium { r.disk = &faultyMedium{medium: m}; return r.disk }); err != nil {
		r.t.Fatal(err)
	}
	dir := r.dir
	r.t.Cleanup(func() { _ = dir.Close() })
	if r.file, err = r.dir.Image(r.x); err != nil {
		r.t.Fatal(err)
	}
}

// newLoggedRig returns a rig and the log of its Dir.
func newLoggedRig(t testing.TB, image []byte) (*rig, *logBuffer) {
	t.Helper()
	r, logs := newRig(t, image), new(logBuffer)
	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	r.openCache(Options{Log: slog.New(slog.NewTextHandler(logs, nil))})
	return r, logs
}

// rawFile returns the name of a complete image's file, and whether the file exists.
func (r *rig) rawFile() (name string, complete bool) {
	name = filepath.Join(r.file.path, rawName)
	_, err := os.Stat(name)
	return name, err == nil
}

// flush flushes the written chunks, and returns after the flush.
func (r *rig) flush() {
	r.dir.runTask((*keeper).beginFlush)
	r.dir.runTask(func(*keeper) {})
}

func (r *rig) chunkData(i int) []byte { c := r.x.At(i); return r.image[c.Offset:c.End()] }

// endRetryPause ends the pause after a failure of the disk.
func (r *rig) endRetryPause() {
	if r.dir.health.paused.Load() != nil {
		r.dir.health.paused.Store(&time.Time{})
	}
}

// writeAndFlush writes the chunks [lo, hi), and returns after they are flushed.
func (r *rig) writeAndFlush(lo, hi int) {
	r.t.Helper()
	r.writeChunks(lo, hi)
	r.flush()
}

// writeChunks writes the chunks [lo, hi), and returns before they are flushed.
func (r *rig) writeChunks(lo, hi int) {
	r.t.Helper()
	for i := lo; i < hi; i++ {
		r.file.OfferWait(r.t.Context(), i, r.chunkData(i))
	}
	r.awaitWrites()
}

// awaitWrites returns when the queue is empty.
func (r *rig) awaitWrites() {
	r.t.Helper()
	if err := r.dir.queue.room.Acquire(r.t.Context(), queueBytes); err != nil {
		r.t.Fatal(err)
	}
	r.dir.queue.room.Release(queueBytes)
}

// checkChunks checks the bytes of all proven chunks, and returns the numbers of proven and of claimed chunks.
func (r *rig) checkChunks() (proven, claimed int) {
	r.t.Helper()
	for i, c := range r.x.All() {
		p := testimages.Random(7, int(c.Size))
		if r.file.Has(i) {
			proven++
			if !r.file.Read(p, c.Offset, i, i+1) || !bytes.Equal(p, r.chunkData(i)) {
				r.t.Errorf("chunk %d has wrong bytes", i)
			}
		}
		if r.file.Claims(i) {
			claimed++
			if r.file.Read(p, c.Offset, i, i+1) || r.file.ReadNow(p, c.Offset, i, i+1) {
				r.t.Errorf("chunk %d is read though only claimed", i)
			}
		}
	}
	return proven, claimed
}

// proveClaimed calls Prove for all claimed chunks, and returns the number of valid ones.
func (r *rig) proveClaimed() (right int) {
	r.t.Helper()
	for i, c := range r.x.All() {
		p := make([]byte, c.Size)
		if r.file.Claims(i) && r.file.Prove(i, p) {
			right++
			if !bytes.Equal(p, r.chunkData(i)) {
				r.t.Errorf("Prove accepts chunk %d with wrong bytes", i)
			}
		}
		if r.file.Claims(i) {
			r.t.Errorf("chunk %d is still claimed", i)
		}
	}
	return right
}

// crash releases the lock and leaves the files as they are, as a killed process does.
func (r *rig) crash() {
	r.t.Helper()
	r.awaitWrites()
	r.file.lock.Close()
}

func (r *rig) countZeros() (n int) {
	for i := range r.x.Len() {
		if r.x.IsZero(i) {
			n++
		}
	}
	return n
}

func TestReopen(t *testing.T) {
	r := newRig(t, mixed())
	if n, claimed := r.checkChunks(); n != r.countZeros() || claimed != 0 {
		t.Errorf("a new file has %d chunks, want %d zeros", n, r.countZeros())
	}
	r.writeAndFlush(3, 9)
	before, _ := r.checkChunks()
	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	r.openCache(Options{})
	if n, claimed := r.checkChunks(); n != before || claimed != 0 {
		t.Errorf("after a restart %d chunks are proven and %d claimed, want %d and 0", n, claimed, before)
	}
}

// TestComplete checks that a complete file has the name and the bytes of the image, also after a restart.
func TestComplete(t *testing.T) {
	r := newRig(t, mixed())
	r.writeAndFlush(0, r.x.Len())
	for range 2 {
		r.flush()
		name, complete := r.rawFile()
		got, err := os.ReadFile(name)
		if !complete || err != nil || !bytes.Equal(got, r.image) {
			t.Fatalf("complete: %v; reading %s: %d bytes, %v", complete, name, len(got), err)
		}
		if err := r.dir.Close(); err != nil {
			t.Fatal(err)
		}
		r.openCache(Options{})
	}
}

// TestUncleanStop checks that after an unclean stop all written chunks are claimed, and only zeros are proven.
func TestUncleanStop(t *testing.T) {
	for _, synced := range []bool{true, false} {
		r := newRig(t, mixed())
		r.writeChunks(0, 20)
		if synced {
			r.flush()
		}
		proven, claimed := r.checkChunks()
		want := proven + claimed
		r.crash()
		r.openCache(Options{})
		if n, claimed := r.checkChunks(); n != r.countZeros() || claimed < want-n {
			t.Errorf("%d proven, %d claimed, want %d and %d", n, claimed, r.countZeros(), want-r.countZeros())
		}
		if got := r.proveClaimed(); got < want-r.countZeros() {
			t.Errorf("Prove accepts %d chunks, want %d", got, want-r.countZeros())
		}
		r.checkChunks()
	}
}

// TestMapSaysNoMoreThanDisk checks that the map lists only flushed chunks.
func TestMapSaysNoMoreThanDisk(t *testing.T) {
	r := newRig(t, mixed())
	r.writeAndFlush(0, 10)
	r.disk.beforeNextFlush(func() { r.writeChunks(15, 16) }) // too late for this flush
	r.writeAndFlush(10, 12)
	file, err := os.ReadFile(filepath.Join(r.file.path, mapName))
	if err != nil {
		t.Fatal(err)
	}
	state, err := r.file.maps.layout.latestState(file)
	if err != nil {
		t.Fatal(err)
	}
	if state.bits[15/8]>>(15%8)&1 != 0 || state.bits[0] == 0 || state.clean {
		t.Errorf("the map has bits %x, clean: %v; want no bit 15, bit 0, not clean", state.bits, state.clean)
	}
}

// TestDamage checks that no wrong byte is read after the files were changed while closed.
func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(r *rig){
		"flipped map": func(r *rig) {
			r.changeFile(mapName, func(p []byte) []byte { p[100] ^= 1; p[len(p)/2+100] ^= 1; return p })
		},
		"truncated map":        func(r *rig) { r.changeFile(mapName, func(p []byte) []byte { return p[:50] }) },
		"no map":               func(r *rig) { os.Remove(filepath.Join(r.file.path, mapName)) },
		"flipped data":         func(r *rig) { r.changeFile(partialName, flip) },
		"truncated data":       func(r *rig) { r.changeFile(partialName, func(p []byte) []byte { return p[:300_000] }) },
		"longer data":          func(r *rig) { r.changeFile(partialName, func(p []byte) []byte { return append(p, 1, 2, 3) }) },
		"no data":              func(r *rig) { os.Remove(filepath.Join(r.file.path, partialName)) },
		"data in holes":        func(r *rig) { r.changeFile(partialName, func(p []byte) []byte { p[1_200_000] = 1; return p }) },
		"map of another image": func(r *rig) { r.changeFile(mapName, func([]byte) []byte { return otherImageMap(r) }) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, mixed())
			r.writeAndFlush(0, r.x.Len()-3)
			if err := r.dir.Close(); err != nil {
				t.Fatal(err)
			}
			damage(r)
			r.openCache(Options{})
			r.checkChunks()
			r.proveClaimed()
			r.checkChunks()
			r.writeAndFlush(0, r.x.Len())
			r.flush()
			raw, complete := r.rawFile()
			if got, err := os.ReadFile(raw); !complete || err != nil || !bytes.Equal(got, r.image) {
				t.Errorf("the file has its final name: %v; reading it: %v; want the complete image", complete, err)
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

func (r *rig) changeFile(name string, f func([]byte) []byte) {
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

// otherImageMap returns a valid, clean map of another image with all chunks.
func otherImageMap(r *rig) []byte {
	l := r.file.maps.layout
	l.digest[0]++
	all := bytes.Repeat([]byte{255}, l.bitBytes())
	if l.chunks%8 != 0 {
		all[len(all)-1] >>= 8 - l.chunks%8
	}
	return l.encodeSlot(mapState{sequence: 9, clean: true, bits: all, proven: all})
}

// TestCopy checks that chunks of one image are copied for another, from open files and from those of earlier
// processes.
func TestCopy(t *testing.T) {
	a := mixed()
	b := append(testimages.Random(5, 200_000), a...)
	r := newRig(t, a)
	r.writeAndFlush(0, r.x.Len())
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
					t.Errorf("Copy returned wrong bytes of chunk %d", i)
				}
			}
		}
		if shared < xb.Len()/2 {
			t.Errorf("%d of %d chunks were copied, want at least half", shared, xb.Len())
		}
		if dir.MayCopy(blob.SHA256, xb.At(xb.Len()-1).Digest, xb.At(xb.Len()-1).Size) {
			t.Error("MayCopy = true for a digest of another algorithm")
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
	r.changeFile(rawName, flip) // in place, while the donor is open
	for i, c := range xb.All() {
		dst := make([]byte, c.Size)
		if dir.Copy(xb.Algorithm(), c.Digest, dst) && !bytes.Equal(dst, b[c.Offset:c.End()]) {
			t.Errorf("Copy returned wrong bytes of chunk %d from a damaged file", i)
		}
	}
}

// TestTwoProcesses checks that a second process gets ErrBusy and the first one continues. A lock on another open file
// stands for the second process.
func TestTwoProcesses(t *testing.T) {
	r := newRig(t, mixed())
	r.writeAndFlush(0, 5)
	second, err := Open(r.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if _, err := second.Image(r.x); !errors.Is(err, ErrBusy) {
		t.Errorf("Image in the second process = %v, want %v", err, ErrBusy)
	}
	if second.evictClosed(nil, 1<<40) != 0 {
		t.Error("the second process evicts the image that the first has open")
	}
	r.writeAndFlush(5, 10)
	r.checkChunks()
}

// faultyMedium is a medium that fails on demand.
type faultyMedium struct {
	medium
	mu                          sync.Mutex
	writeErr, readErr, flushErr error
	mediumErr                   error // of reads past the page cache
	beforeFlush, afterRead      func()
	afterSample                 func() // called after each read past the page cache
	cacheDropped                bool
}

// openMedium returns the reader of the real medium, with the injected errors.
func (w *faultyMedium) openMedium() io.ReaderAt { return faultyReads{w, w.medium.openMedium()} }

type faultyReads struct {
	w    *faultyMedium
	from io.ReaderAt
}

func (r faultyReads) ReadAt(p []byte, off int64) (int, error) {
	if err := r.w.getError(&r.w.mediumErr); err != nil {
		return 0, err
	}
	n, err := r.from.ReadAt(p, off)
	r.w.mu.Lock()
	after := r.w.afterSample
	r.w.mu.Unlock()
	if after != nil {
		after()
	}
	return n, err
}

func (r faultyReads) Close() error {
	if c, is := r.from.(io.Closer); is {
		return c.Close()
	}
	return nil
}

func (w *faultyMedium) dropCache() {
	w.cacheDropped = true
	w.medium.dropCache()
}

func (w *faultyMedium) setError(which *error, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*which = err
}

func (w *faultyMedium) beforeNextFlush(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.beforeFlush = f
}

func (w *faultyMedium) afterNextRead(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.afterRead = f
}

func (w *faultyMedium) getError(which *error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return *which
}

func (w *faultyMedium) WriteAt(p []byte, off int64) (int, error) {
	if err := w.getError(&w.writeErr); err != nil {
		return 0, err
	}
	return w.medium.WriteAt(p, off)
}

func (w *faultyMedium) ReadAt(p []byte, off int64) (int, error) {
	if err := w.getError(&w.readErr); err != nil {
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

func (w *faultyMedium) readNow(p []byte, off int64) bool {
	return w.getError(&w.readErr) == nil && w.medium.readNow(p, off)
}

func (w *faultyMedium) flushData() error {
	w.mu.Lock()
	before := w.beforeFlush
	w.beforeFlush = nil
	w.mu.Unlock()
	if before != nil {
		before()
	}
	if err := w.getError(&w.flushErr); err != nil {
		return err
	}
	return w.medium.flushData()
}

// logBuffer is a buffer for a log. Safe for concurrent use.
type logBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *logBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *logBuffer) count(text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), text)
}

// TestFailingDisk checks that a full or broken disk loses only cached chunks, is logged once, and is tried again.
func TestFailingDisk(t *testing.T) {
	r, logs := newLoggedRig(t, mixed())
	disk := r.disk
	r.writeAndFlush(0, 5)
	disk.setError(&disk.writeErr, syscall.ENOSPC)
	r.writeAndFlush(5, 10)
	if r.file.Has(7) || logs.count("level=WARN") != 1 || logs.count("no space left") != 1 {
		t.Errorf("a full disk: chunk 7 is kept, or %d warnings, want 1", logs.count("level=WARN"))
	}
	disk.setError(&disk.writeErr, nil)
	r.writeAndFlush(5, 10)
	if r.file.Has(7) {
		t.Error("the disk is tried again at once")
	}
	r.endRetryPause()
	r.writeAndFlush(5, 10)
	if !r.file.Has(7) || logs.count("written again") != 1 {
		t.Error("the disk is not tried again")
	}
	disk.setError(&disk.readErr, syscall.EIO)
	p := make([]byte, 10)
	if r.file.Read(p, r.x.At(7).Offset, 7, 8) || r.file.Has(7) || r.file.Wants(7) {
		t.Error("an unreadable chunk is kept")
	}
	disk.setError(&disk.readErr, nil)
	r.checkChunks()
}

// TestFlushFails checks that chunks of a failed flush are missing, whatever the page cache holds, and are written
// again.
func TestFlushFails(t *testing.T) {
	r := newRig(t, mixed())
	disk := r.disk
	disk.setError(&disk.flushErr, syscall.EIO)
	r.writeAndFlush(0, 5)
	if n, claimed := r.checkChunks(); n != r.countZeros() || claimed != 0 || !r.file.Wants(3) {
		t.Errorf("%d chunks are proven and %d claimed, want %d and 0", n, claimed, r.countZeros())
	}
	r.dir.runTask(func(*keeper) {
		disk.setError(&disk.flushErr, nil)
		r.endRetryPause()
	})
	r.writeAndFlush(0, 5)
	if n, _ := r.checkChunks(); n != r.countZeros()+5 {
		t.Errorf("%d chunks are proven after the disk recovered, want %d", n, r.countZeros()+5)
	}
}

// TestFlushFailsBesideWrite checks that chunks written during a failed flush are missing too. The kernel reports the
// error once, and the next flush succeeds.
func TestFlushFailsBesideWrite(t *testing.T) {
	r := newRig(t, mixed())
	r.writeChunks(0, 3)
	r.disk.beforeNextFlush(func() { r.writeChunks(3, 5) })
	r.disk.setError(&r.disk.flushErr, syscall.EIO)
	r.flush()
	r.disk.setError(&r.disk.flushErr, nil)
	r.flush()
	if n, claimed := r.checkChunks(); n != r.countZeros() || claimed != 0 {
		t.Errorf("%d chunks are proven and %d claimed, want %d and 0", n, claimed, r.countZeros())
	}
}

// TestProveBesideFailedFlush checks that a verification is invalid if the disk fails to flush the bytes that it read.
func TestProveBesideFailedFlush(t *testing.T) {
	r := newRig(t, mixed())
	r.writeChunks(0, 3)
	r.disk.afterNextRead(func() {
		r.disk.setError(&r.disk.flushErr, syscall.EIO)
		r.flush()
		r.disk.setError(&r.disk.flushErr, nil)
	})
	r.file.Prove(1, make([]byte, r.x.At(1).Size))
	if n, claimed := r.checkChunks(); n != r.countZeros() || claimed != 0 {
		t.Errorf("%d chunks are proven and %d claimed, want %d and 0", n, claimed, r.countZeros())
	}
}

// TestFailureLoggedOnce checks that a disk whose writes succeed and whose flushes fail is logged once.
func TestFailureLoggedOnce(t *testing.T) {
	r, logs := newLoggedRig(t, mixed())
	disk := r.disk
	disk.setError(&disk.flushErr, syscall.EIO)
	for i := range 5 {
		r.endRetryPause()
		r.writeAndFlush(i, i+1)
	}
	if warned, again := logs.count("level=WARN"), logs.count("written again"); warned != 1 || again != 0 {
		t.Errorf("%d warnings and %d messages of recovery, want 1 and 0", warned, again)
	}
}

// TestUnflushed checks that a chunk is not proven before it is flushed, also if Prove succeeds: the bytes may come
// from the page cache. The file does not get its final name either.
func TestUnflushed(t *testing.T) {
	r := newRig(t, mixed())
	flush := make(chan struct{})
	r.disk.beforeNextFlush(func() { <-flush })
	r.writeChunks(0, r.x.Len())
	for i, c := range r.x.All() {
		if r.x.IsZero(i) {
			continue
		}
		if !r.file.Prove(i, make([]byte, c.Size)) || r.file.Has(i) || !r.file.Queued(i) {
			t.Errorf("chunk %d is not claimed, is proven or is not queued", i)
		}
	}
	r.file.nameComplete()
	if _, complete := r.rawFile(); complete {
		t.Error("the file has its final name before the flush")
	}
	close(flush)
	r.flush()
	if _, complete := r.rawFile(); !complete || r.file.Missing() > 0 || r.file.Queued(0) {
		t.Errorf("the file is incomplete after the flush: %d chunks are missing", r.file.Missing())
	}
}

// TestWriteBesideFlush checks that chunks written during flushes of others are proven in the end.
func TestWriteBesideFlush(t *testing.T) {
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
					r.flush()
				}
			}
		})
		r.writeChunks(0, r.x.Len())
		close(done)
		flusher.Wait()
		r.flush()
		if n := r.file.Missing(); n > 0 {
			t.Fatalf("%d chunks are not proven after the last flush", n)
		}
	}
}

// TestLargeChunks checks that a chunk larger than the queue's limit is written too.
func TestLargeChunks(t *testing.T) {
	image := testimages.Random(1, queueBytes+4096)
	x, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(image)),
		scan.Options{Params: chunker.Params{Min: 24 << 20, Avg: 24 << 20, Max: 24 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, path: t.TempDir(), image: image, x: x}
	r.openCache(Options{})
	r.writeAndFlush(0, 1)
	if n, _ := r.checkChunks(); n != 1 {
		t.Error("OfferWait drops a large chunk")
	}
	r.file.chunks.markMissing(0)
	r.file.Offer(0, image)
	r.awaitWrites()
	r.flush()
	if n, _ := r.checkChunks(); n != 1 {
		t.Error("Offer drops a large chunk")
	}
}

// TestRecoveryDropsCache checks that after an unclean stop chunks are verified as they are on the disk.
func TestRecoveryDropsCache(t *testing.T) {
	r := newRig(t, mixed())
	r.writeAndFlush(0, 5)
	r.crash()
	r.openCache(Options{})
	if !r.disk.cacheDropped {
		t.Error("the page cache was not dropped")
	}
}

// TestRemoved checks that the removal of an open image's directory is logged once, that reads continue, and that
// writes stop.
func TestRemoved(t *testing.T) {
	r, logs := newLoggedRig(t, mixed())
	r.writeAndFlush(0, 5)
	if err := os.RemoveAll(r.file.path); err != nil {
		t.Fatal(err)
	}
	r.writeAndFlush(5, 6)
	r.writeAndFlush(6, r.x.Len())
	if n, _ := r.checkChunks(); n != r.countZeros()+6 || r.file.Wants(9) {
		t.Errorf("%d chunks are proven, want %d", n, r.countZeros()+6)
	}
	if n := logs.count("removed under the server"); n != 1 || logs.count("level=WARN") != 1 {
		t.Errorf("the removal was logged %d times, want once", n)
	}
}

// TestDiskFull checks a full file system.
func TestDiskFull(t *testing.T) {
	need.Root(t)
	path := t.TempDir()
	if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=1M"); err != nil {
		need.Missing(t, "mounting a tmpfs: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	var logs logBuffer
	image := testimages.Random(1, 4<<20)
	r := &rig{t: t, path: path, image: image, x: index(t, image)}
	r.openCache(Options{Limit: Unlimited, Log: slog.New(slog.NewTextHandler(&logs, nil))})
	r.writeAndFlush(0, r.x.Len())
	n, _ := r.checkChunks()
	if n == 0 || n == r.x.Len() || logs.count("level=WARN") != 1 {
		t.Errorf("%d of %d chunks are kept, want some; %d warnings, want 1", n, r.x.Len(), logs.count("level=WARN"))
	}
}

// TestLimit checks that the images keep to the limit, that pinned chunks stay, and that concurrent reads return right
// bytes or fail.
func TestLimit(t *testing.T) {
	const limit = 2 << 20
	image := testimages.Random(1, 6<<20)
	r := &rig{t: t, path: t.TempDir(), image: image, x: index(t, image)}
	r.openCache(Options{Limit: limit})
	for i := range 20 {
		r.file.Pin(i)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	read := func() {
		for range 200 {
			i := rng.IntN(r.x.Len())
			c := r.x.At(i)
			p := make([]byte, c.Size)
			if (r.file.ReadNow(p, c.Offset, i, i+1) || r.file.Read(p, c.Offset, i, i+1)) && !bytes.Equal(p, r.chunkData(i)) {
				t.Errorf("a read of chunk %d returned wrong bytes", i)
			}
		}
	}
	for lo := 0; lo < r.x.Len(); lo += 10 {
		r.writeAndFlush(lo, min(lo+10, r.x.Len()))
		var reader sync.WaitGroup
		reader.Go(read)
		r.flush()
		r.dir.runTask((*keeper).evictToLimit)
		reader.Wait()
		if used := r.dir.usedBytes(); used > limit {
			t.Errorf("%d bytes are used, want at most %d", used, limit)
		}
	}
	n, _ := r.checkChunks()
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
		t.Errorf("%d of %d chunks are left, want at least a tenth", n, r.x.Len())
	}
	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	r.openCache(Options{})
	r.checkChunks()
}

// TestEvictClosed checks that images that no process has open are evicted first.
func TestEvictClosed(t *testing.T) {
	old := newRig(t, testimages.Random(1, 3<<20))
	old.writeAndFlush(0, old.x.Len())
	if err := old.dir.Close(); err != nil {
		t.Fatal(err)
	}
	image := testimages.Random(2, 3<<20)
	r := &rig{t: t, path: old.path, image: image, x: index(t, image)}
	r.openCache(Options{Limit: 5 << 20})
	r.writeAndFlush(0, r.x.Len())
	r.flush()
	r.dir.runTask((*keeper).evictToLimit)
	if _, err := os.Stat(old.file.path); !os.IsNotExist(err) {
		t.Errorf("the closed image was not evicted: %v", err)
	}
	if n, _ := r.checkChunks(); n != r.x.Len() {
		t.Errorf("%d of %d chunks of the open image are left, want all", n, r.x.Len())
	}
}

// TestEvictComplete checks that an eviction removes the name of a complete image.
func TestEvictComplete(t *testing.T) {
	r := newRig(t, testimages.Random(1, 3<<20))
	r.writeAndFlush(0, r.x.Len())
	r.flush()
	r.dir.runTask(func(*keeper) { evictOpen([]*File{r.file}, 1<<20, false) })
	name, complete := r.rawFile()
	if _, err := os.Stat(name); complete || !os.IsNotExist(err) {
		t.Errorf("the complete name exists: %v, %v", complete, err)
	}
	if n, _ := r.checkChunks(); n == 0 || n == r.x.Len() {
		t.Errorf("%d of %d chunks are left, want some", n, r.x.Len())
	}
}

// TestAllPinned checks that the limit holds if all chunks are pinned.
func TestAllPinned(t *testing.T) {
	image := testimages.Random(1, 3<<20)
	r := &rig{t: t, path: t.TempDir(), image: image, x: index(t, image)}
	r.openCache(Options{Limit: 2 << 20})
	for i := range r.x.Len() {
		r.file.Pin(i)
		r.writeAndFlush(i, i+1)
	}
	r.flush()
	r.dir.runTask((*keeper).evictToLimit)
	if used := r.dir.usedBytes(); used > 2<<20 {
		t.Errorf("%d bytes are used, want at most %d", used, 2<<20)
	}
	r.checkChunks()
}

// TestDefaultLimit checks that a cache without a limit uses about half of the free space.
func TestDefaultLimit(t *testing.T) {
	d, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	free := freeBytes(d.root.Load())
	if d.limit < free/4 || d.limit > free*3/4 {
		t.Errorf("the limit is %d with %d bytes free, want about half", d.limit, free)
	}
}

// TestCloseFile checks that the last user's Close closes an image. Its chunks can still be copied, and it can be
// opened again, also by another process.
func TestCloseFile(t *testing.T) {
	r := newRig(t, mixed())
	r.writeAndFlush(0, r.x.Len())
	again, err := r.dir.Image(r.x)
	if err != nil || again != r.file {
		t.Fatalf("opening again gives another File, or %v", err)
	}
	if err := again.Close(); err != nil || !r.file.Read(make([]byte, 10), 0, 0, 1) {
		t.Errorf("Close of one of two users = %v, or the file cannot be read", err)
	}
	if err := r.file.Close(); err != nil || r.file.Read(make([]byte, 10), 0, 0, 1) {
		t.Errorf("Close of the last user = %v, or the file can be read", err)
	}
	r.file.Offer(0, r.chunkData(0))
	dst := make([]byte, r.x.At(5).Size)
	if !r.dir.Copy(r.x.Algorithm(), r.x.At(5).Digest, dst) || !bytes.Equal(dst, r.chunkData(5)) {
		t.Error("a closed image's chunk cannot be copied")
	}
	second, err := Open(r.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := second.Image(r.x)
	if err != nil || f.Missing() != 0 {
		t.Errorf("Image in a second process = %v, or chunks are missing", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if r.file, err = r.dir.Image(r.x); err != nil {
		t.Fatal(err)
	}
	if n, _ := r.checkChunks(); n != r.x.Len() {
		t.Errorf("after opening again %d of %d chunks are proven", n, r.x.Len())
	}
}

func TestReadNowAllocatesNothing(t *testing.T) {
	r := newRig(t, mixed())
	r.writeAndFlush(0, r.x.Len())
	p := make([]byte, 100_000)
	lo, hi := r.x.Find(850_000), r.x.Find(949_999)+1
	if !r.file.ReadNow(p, 850_000, lo, hi) || !bytes.Equal(p, r.image[850_000:950_000]) {
		t.Fatal("ReadNow across data and zeros fails or returns wrong bytes")
	}
	if n := testing.AllocsPerRun(100, func() { r.file.ReadNow(p, 850_000, lo, hi) }); n != 0 {
		t.Errorf("ReadNow allocates %v times", n)
	}
}

func FuzzMap(f *testing.F) {
	l := mapLayout{chunks: 13, size: 100}
	good := l.encodeSlot(mapState{sequence: 3, clean: true, bits: []byte{1, 2}, proven: []byte{1, 0}})
	f.Add(good)
	f.Add(append(make([]byte, l.slotSize()), good...))
	f.Fuzz(func(t *testing.T, file []byte) {
		s, err := l.latestState(file)
		if err != nil {
			return
		}
		if again := l.encodeSlot(s); !bytes.Contains(file, again) {
			t.Errorf("latestState accepts a slot that encodeSlot does not write")
		}
	})
}

// TestOpenBesideReads checks that MayCopy does not block while an image is opened from a slow disk.
func TestOpenBesideReads(t *testing.T) {
	r := newRig(t, mixed())
	r.writeAndFlush(0, 5)
	r.crash()
	var dir *Dir
	asked := make(chan struct{})
	dir, err := openDir(r.path, Options{}, func(m medium) medium {
		disk := &faultyMedium{medium: m}
		disk.beforeNextFlush(func() {
			go func() {
				dir.MayCopy(r.x.Algorithm(), r.x.At(0).Digest, r.x.At(0).Size)
				close(asked)
			}()
			select {
			case <-asked:
			case <-time.After(10 * time.Second):
				t.Error("MayCopy blocks while an image is opened")
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

// TestOpenBesideClose checks that Image succeeds while the last user closes the image, and does not return ErrBusy.
func TestOpenBesideClose(t *testing.T) {
	r := newRig(t, mixed())
	r.writeChunks(0, 5)
	opened := make(chan error, 1)
	r.disk.beforeNextFlush(func() {
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
		t.Errorf("Image during Close = %v", err)
	}
}

// TestCloseBesideRead checks that Close waits for the reads in progress.
func TestCloseBesideRead(t *testing.T) {
	r := newRig(t, mixed())
	r.writeAndFlush(0, 5)
	closed := make(chan error, 1)
	r.disk.afterNextRead(func() {
		go func() { closed <- r.file.Close() }()
		select {
		case err := <-closed:
			t.Errorf("Close returned during a read: %v", err)
			closed <- err
		case <-time.After(50 * time.Millisecond):
		}
	})
	if !r.file.Read(make([]byte, 10), 0, 0, 1) {
		t.Error("a read fails that began before Close")
	}
	if err := <-closed; err != nil {
		t.Errorf("Close = %v", err)
	}
}

// TestUnflushedIsBounded checks that a disk that does not finish a flush gets a bounded number of bytes, which a crash
// may lose, and that a bounded number waits for it in memory.
func TestUnflushedIsBounded(t *testing.T) {
	const size = 1 << 20
	b, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 1, Avg: size, Max: size})
	if err != nil {
		t.Fatal(err)
	}
	for i := range (unflushedMax+queueBytes)/size + 4 {
		if _, err := b.Add(size, blob.Digest{1, byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	x, data := b.Index(), make([]byte, size)
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, path: t.TempDir(), x: x}
		r.openCache(Options{})
		flush := make(chan struct{})
		r.disk.beforeNextFlush(func() { <-flush })
		var offering sync.WaitGroup
		offering.Go(func() {
			for i := range x.Len() {
				r.file.OfferWait(t.Context(), i, data)
			}
		})
		synctest.Wait() // until the writer and the offers block
		var written, waiting int64
		for i, c := range x.All() {
			switch chunks := r.file.chunks; {
			case chunks.unflushed[i] != 0:
				written += c.Size
			case chunks.queued[i]:
				waiting += c.Size
			}
		}
		if written != unflushedMax || waiting != queueBytes+size { // the next chunk waits for room
			t.Errorf("%d bytes are written and not flushed, %d wait, want %d, %d", written, waiting, unflushedMax, queueBytes+size)
		}
		close(flush)
		offering.Wait()
	})
}

// TestDonorsAreFew checks that the files of closed images that stay open are bounded, while the cache is open and when
// it is opened again.
func TestDonorsAreFew(t *testing.T) {
	r := newRig(t, mixed())
	for i := range uint64(maxDonors + 2) {
		image := testimages.Random(i, 10_000)
		x := index(t, image)
		f, err := r.dir.Image(x)
		if err != nil {
			t.Fatal(err)
		}
		f.OfferWait(t.Context(), 0, image[:x.At(0).Size])
		r.awaitWrites()
		r.flush()
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(r.dir.donors); got != maxDonors {
		t.Errorf("%d closed images are open as donors, want %d", got, maxDonors)
	}
	if err := r.dir.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Open(r.path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := len(again.donors); got != maxDonors {
		t.Errorf("after opening again %d images are donors, want %d", got, maxDonors)
	}
}
