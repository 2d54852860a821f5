package cachedir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/bits"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
)

// highWater returns the size at which an eviction begins, so that there is room for writes while it
// counts. lowWater is where the eviction ends.
func highWater(limit int64) int64 { return limit - limit/16 }
func lowWater(limit int64) int64  { return limit - limit/8 }

// request describes why an eviction is requested. The zero value only counts, and applies the
// limit.
type request struct {
	need     int64 // bytes of a pending write
	diskFull bool  // the disk is full, whatever the limit; other programs may use it too
}

// excess returns how many bytes to evict.
func (r request) excess(used, limit int64) int64 {
	switch {
	case limit == math.MaxInt64:
		return 0
	case r.diskFull:
		return max(used/16, used-lowWater(limit))
	case used <= highWater(limit)-r.need:
		return 0
	}
	return max(used-min(lowWater(limit), limit-r.need), 0)
}

// evictor is the single background eviction of a Dir.
type evictor struct {
	background sync.WaitGroup

	mu        sync.Mutex // guards the fields below
	running   bool
	stop      context.CancelFunc // nil before the first eviction
	stopped   bool
	notBefore time.Time // start of the next eviction
}

// startEviction starts an eviction in the background, unless one is running or its pause after the
// last one has not ended.
func (d *Dir) startEviction(l *ledger, r request) {
	e := &d.evictor
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running || e.stopped || time.Now().Before(e.notBefore) {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	e.running, e.stop = true, stop
	e.background.Go(func() {
		defer stop()
		pause := l.evictExcess(ctx, r)
		if !d.isAttached(l) {
			pause = 0
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.running, e.notBefore = false, time.Now().Add(pause)
	})
}

// stopAndWait cancels the running eviction and waits for it. No other eviction starts afterwards.
func (e *evictor) stopAndWait() {
	e.mu.Lock()
	e.stopped = true
	if e.stop != nil {
		e.stop()
	}
	e.mu.Unlock()
	e.background.Wait()
}

// Pauses after an eviction: a short one if another process is evicting or nothing was in excess, a
// long one if it failed or freed too little.
const (
	shortPause = 50 * time.Millisecond
	longPause  = time.Minute
)

// evictExcess counts the directory, removes the least recently used chunks, and returns the pause
// before the next eviction. Its errors are not reported: the cache stays full.
func (l *ledger) evictExcess(ctx context.Context, r request) (pause time.Duration) {
	alone, err := l.tryLock("evictor", unix.LOCK_EX)
	if err != nil {
		return longPause
	}
	if alone == nil {
		return shortPause
	}
	defer alone.Close()
	o, err := l.evictRound(ctx, r)
	if err == nil && o.left > 0 { // the old count was too low
		o, err = l.evictRound(ctx, request{need: r.need})
	}
	switch {
	case err != nil, o.freed < o.excess/2: // a little less is normal: some chunks were used meanwhile
		return longPause
	case o.excess == 0:
		return shortPause
	}
	return 0
}

// outcome is the result of a round, in bytes: the excess over the limit by the old count, the bytes
// removed, and the excess left by the new count.
type outcome struct{ excess, freed, left int64 }

// evictRound counts the directory slice by slice, and removes each slice's share of the excess.
func (l *ledger) evictRound(ctx context.Context, r request) (o outcome, err error) {
	t, exact, err := l.beginCount(ctx)
	if err != nil {
		return o, err
	}
	limit, err := l.currentLimit(t.used)
	if err != nil {
		return o, err
	}
	o.excess = r.excess(t.used, limit)
	var seen int64
	slices := slicesOf(t.used)
	for _, i := range rand.Perm(slices) {
		s, err := l.countSlice(ctx, slice{i, slices})
		if err != nil {
			return o, err
		}
		// Bytes that are in the tally but not on the disk belong to no slice.
		share := min(float64(s.used)/float64(max(t.used, 1)), 1)
		gone, err := l.evictSlice(ctx, s, int64(math.Ceil(float64(o.excess)*share)))
		o.freed += gone
		if err != nil {
			return o, err
		}
		seen += s.used - gone
	}
	if !exact {
		return o, nil
	}
	err = l.updateTally(ctx, func(t *tally) error {
		t.setCounted(seen, l.boot, time.Now())
		o.left = request{need: r.need}.excess(t.used, limit)
		return nil
	})
	return o, err
}

// slice is one of several parts of the directory, which are about equal since digests are spread
// evenly. In a large cache each slice is counted and evicted from before the next, so that a
// cancelled eviction still frees space.
type slice struct{ number, of int }

// slicesOf returns the number of slices for a cache of used bytes: one for each GiB, some ten
// thousand chunks, and at most 64.
func slicesOf(used int64) int { return int(min(max(used>>30, 1), 64)) }

// contains reports whether a directory of chunks is in the slice.
func (s slice) contains(dir string) bool {
	n, err := strconv.ParseUint(dir, 16, 16)
	return err == nil && int(n)*s.of>>16 == s.number
}

// sliceCount is the count of a slice by age.
type sliceCount struct {
	slice slice
	used  int64 // bytes
	now   time.Time
	ages  ages
}

// countSlice counts a slice. The space of a chunk directory counts as of the age of its youngest
// chunk.
func (l *ledger) countSlice(ctx context.Context, of slice) (*sliceCount, error) {
	s, youngest := &sliceCount{slice: of, now: time.Now()}, oldest
	err := l.eachChunk(ctx, of, func(e entry) error {
		class := ageOf(s.now, e.used)
		s.used += e.size
		s.ages[class] += e.size
		youngest = min(youngest, class)
		return nil
	}, func(*os.File, string) error {
		s.used += blockSize
		s.ages[youngest] += blockSize
		youngest = oldest
		return nil
	})
	return s, err
}

// drainTimeout limits the time a count waits for the writes under way. All other writes wait for
// it.
const drainTimeout = 100 * time.Millisecond

// beginCount waits for the writes under way, removes the files that dead writers left, and resets
// the count of added bytes. Later additions plus the bytes seen from then on are at least the
// total. Some bytes may count twice, which errs on the safe side. exact is false if a writer does
// not finish within drainTimeout.
func (l *ledger) beginCount(ctx context.Context) (known tally, exact bool, err error) {
	err = l.updateTally(ctx, func(t *tally) error {
		known = *t
		alone, err := l.openControl("writers")
		if err != nil {
			return err
		}
		defer alone.Close()
		draining, cancel := context.WithTimeout(ctx, drainTimeout)
		defer cancel()
		if err := lockWithin(draining, alone, unix.LOCK_EX, math.MaxInt); err != nil {
			return ctx.Err()
		}
		t.added, exact = 0, true
		return l.removeTempFiles()
	})
	return known, exact, err
}

// entry is a chunk in the directory.
type entry struct {
	dir  *os.File
	name string
	size int64 // bytes on the disk
	used time.Time
}

// eachChunk calls do for every chunk of a slice, and leaveDir after the chunks of each directory.
// Memory does not grow with their number. It skips entries that are not named like a chunk or its
// directory.
func (l *ledger) eachChunk(ctx context.Context, s slice, do func(entry) error, leaveDir func(root *os.File, dir string) error) error {
	return l.eachName(".", func(root *os.File, dirName string) error {
		if !isChunkDir(dirName) || !s.contains(dirName) {
			return nil
		}
		err := l.eachName(dirName, func(dir *os.File, name string) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, _, ok := store.ChunkObject(dirName + "/" + name); !ok {
				return nil
			}
			return visitChunk(dir, name, do)
		})
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return nil // removed meanwhile, or not a directory of chunks
		case err != nil:
			return err
		}
		return leaveDir(root, dirName)
	})
}

func visitChunk(dir *os.File, name string, do func(entry) error) error {
	var s unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &s, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("reading the size of %s/%s: %w", dir.Name(), name, err)
	case s.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil
	}
	return do(entry{dir, name, roundToBlocks(s.Size), time.Unix(s.Mtim.Unix())})
}

// evictSlice evicts the least recently used chunks of a slice until excess bytes are free.
func (l *ledger) evictSlice(ctx context.Context, s *sliceCount, excess int64) (freed int64, err error) {
	if excess == 0 {
		return 0, nil
	}
	cut, youngest := s.ages.cutAt(excess), oldest
	var released int64 // the part of freed that the tally includes
	release := func() {
		l.releaseSpace(freed - released)
		released = freed
	}
	defer release()
	const often = 1 << 20
	err = l.eachChunk(ctx, s.slice, func(e entry) error {
		class := ageOf(s.now, e.used)
		youngest = min(youngest, class)
		if cut.includes(class) && unix.Unlinkat(int(e.dir.Fd()), e.name, 0) == nil { // unremovable chunks stay
			cut.recordRemoved(class, e.size)
			freed += e.size
		}
		if freed-released >= often {
			release()
		}
		return nil
	}, func(root *os.File, name string) error {
		if unix.Unlinkat(int(root.Fd()), name, unix.AT_REMOVEDIR) == nil { // it was empty
			cut.recordRemoved(youngest, blockSize)
			freed += blockSize
		}
		youngest = oldest
		return nil
	})
	return freed, err
}

// ages counts bytes by age, in classes that are at most 1.6 % wide from an age of 4 seconds on.
// Memory does not grow with the number of chunks, and a cut by class is nearly a cut by the exact
// order of the chunks.
type ages [oldest + 1]int64

const (
	ageUnit = time.Second / 16
	oldest  = (64-7+2)*64 - 1 // the class of the greatest possible age
)

// ageOf returns the class of a chunk by its time of last use; older classes are larger. A time in
// the future counts as now.
func ageOf(now, used time.Time) int {
	units := uint64(max(now.Sub(used), 0) / ageUnit)
	shift := max(bits.Len64(units)-7, 0)
	return shift*64 + int(units>>shift)
}

// cutoff divides chunks into those to evict and those to keep.
type cutoff struct {
	class  int   // all chunks of older classes are evicted
	within int64 // bytes of this class to evict
}

// cutAt returns the cut that evicts the oldest excess bytes.
func (a *ages) cutAt(excess int64) *cutoff {
	for class := oldest; class >= 0; class-- {
		if excess <= a[class] {
			return &cutoff{class, excess}
		}
		excess -= a[class]
	}
	return &cutoff{-1, 0}
}

// includes reports whether a chunk of a class is to be evicted.
func (c *cutoff) includes(class int) bool { return class > c.class || class == c.class && c.within > 0 }

// recordRemoved records that size bytes of a class were removed.
func (c *cutoff) recordRemoved(class int, size int64) {
	if class == c.class {
		c.within -= size
	}
}
