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
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/store"
)

// highWater is where an eviction begins, so that there is room for what is written while it counts; lowWater is
// where it ends.
func highWater(limit int64) int64 { return limit - limit/16 }
func lowWater(limit int64) int64  { return limit - limit/8 }

// request is why an eviction is wanted. The zero value only counts, and keeps to the limit.
type request struct {
	need     int64 // bytes that somebody wants to write
	diskFull bool  // whatever the limit is, the disk has no room: others may use it too
}

// excess is how many bytes must go.
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

// evictor is the one eviction that a Dir has under way.
type evictor struct {
	done sync.WaitGroup

	mu        sync.Mutex // guards what follows
	running   bool
	stop      context.CancelFunc // nil before the first
	stopped   bool
	notBefore time.Time // the next one
}

// evict makes room in the background, unless that goes on already, or was of no use a moment ago.
func (d *Dir) evict(l *ledger, r request) {
	e := &d.evictor
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running || e.stopped || time.Now().Before(e.notBefore) {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	e.running, e.stop = true, stop
	e.done.Go(func() {
		defer stop()
		rest := l.evict(ctx, r)
		if !d.isAttached(l) {
			rest = 0
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		e.running, e.notBefore = false, time.Now().Add(rest)
	})
}

// end stops what runs, and waits for it. No other begins.
func (e *evictor) end() {
	e.mu.Lock()
	e.stopped = true
	if e.stop != nil {
		e.stop()
	}
	e.mu.Unlock()
	e.done.Wait()
}

// How long to leave it at that after an eviction that another process is doing, or that was of no use.
const (
	restBriefly = 50 * time.Millisecond
	restLong    = time.Minute
)

// evict counts the directory and removes what was used the longest ago, and says how long the next eviction
// should wait. Its failures are nobody's business: the cache stays full.
func (l *ledger) evict(ctx context.Context, r request) (rest time.Duration) {
	alone, err := l.lock("evictor", unix.LOCK_EX)
	if err != nil {
		return restLong
	}
	if alone == nil {
		return restBriefly
	}
	defer alone.Close()
	o, err := l.round(ctx, r)
	if err == nil && o.left > 0 { // there was more than was known
		o, err = l.round(ctx, request{need: r.need})
	}
	switch {
	case err != nil, o.freed < o.excess/2: // a little less is usual: some chunks were used meanwhile
		return restLong
	case o.excess == 0:
		return restBriefly
	}
	return 0
}

// outcome is what a round found: what was too much of what was known, what of that is gone, and what is too
// much of what is known then. All are bytes.
type outcome struct{ excess, freed, left int64 }

// round counts the directory slice by slice, and on the way removes what is too much.
func (l *ledger) round(ctx context.Context, r request) (o outcome, err error) {
	t, exact, err := l.beginCount(ctx)
	if err != nil {
		return o, err
	}
	limit, err := l.limit(t.used)
	if err != nil {
		return o, err
	}
	o.excess = r.excess(t.used, limit)
	var seen int64
	slices := slicesOf(t.used)
	for _, i := range rand.Perm(slices) {
		s, err := l.see(ctx, slice{i, slices})
		if err != nil {
			return o, err
		}
		// Of what is counted and not there, no slice has a share.
		share := min(float64(s.used)/float64(max(t.used, 1)), 1)
		gone, err := l.remove(ctx, s, int64(math.Ceil(float64(o.excess)*share)))
		o.freed += gone
		if err != nil {
			return o, err
		}
		seen += s.used - gone
	}
	if !exact {
		return o, nil
	}
	err = l.update(ctx, func(t *tally) error {
		t.counted(seen, l.boot, time.Now())
		o.left = request{need: r.need}.excess(t.used, limit)
		return nil
	})
	return o, err
}

// slice is one of several equal parts of the directory, as digests are spread evenly. In a large cache each is
// counted, and gives its share, before the next: so an eviction that is cut short was of use.
type slice struct{ number, of int }

// slicesOf is how many slices there should be, of some ten thousand chunks each.
func slicesOf(used int64) int { return int(min(max(used>>30, 1), 64)) }

// has says whether a directory of chunks is in the slice.
func (s slice) has(dir string) bool {
	n, err := strconv.ParseUint(dir, 16, 16)
	return err == nil && int(n)*s.of>>16 == s.number
}

// sight is what a slice holds, and how old that is.
type sight struct {
	slice slice
	used  int64 // bytes
	now   time.Time
	ages  ages
}

// see counts what is in a slice. The room of a chunk's directory goes with the youngest chunk in it.
func (l *ledger) see(ctx context.Context, of slice) (*sight, error) {
	s, youngest := &sight{slice: of, now: time.Now()}, oldest
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

// drain is how long a count waits for the writes under way, and all other writes for it.
const drain = 100 * time.Millisecond

// beginCount waits until nobody writes, removes what dead writers left, and begins to note what is added: with
// what is seen from then on, that is all there is. Some may be both, which errs on the safe side. It is not
// exact when a writer does not get done.
func (l *ledger) beginCount(ctx context.Context) (known tally, exact bool, err error) {
	err = l.update(ctx, func(t *tally) error {
		known = *t
		alone, err := l.open("writers")
		if err != nil {
			return err
		}
		defer alone.Close()
		draining, cancel := context.WithTimeout(ctx, drain)
		defer cancel()
		if err := lockWithin(draining, alone, unix.LOCK_EX); err != nil {
			return ctx.Err()
		}
		t.added, exact = 0, true
		return l.sweep()
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

// eachChunk calls do for every chunk of a slice, and leave after those of each directory, for it. Memory does not grow with
// their number. What is not called as a chunk and its directory are is not looked at.
func (l *ledger) eachChunk(ctx context.Context, s slice, do func(entry) error, leave func(root *os.File, dir string) error) error {
	return eachName(l.root, func(root *os.File, dirName string) error {
		if !isChunkDir(dirName) || !s.has(dirName) {
			return nil
		}
		err := eachName(filepath.Join(l.root, dirName), func(dir *os.File, name string) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, _, ok := store.ChunkObject(dirName + "/" + name); !ok {
				return nil
			}
			return visit(dir, name, do)
		})
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
			return nil // removed meanwhile, or none of ours
		case err != nil:
			return err
		}
		return leave(root, dirName)
	})
}

func visit(dir *os.File, name string, do func(entry) error) error {
	var s unix.Stat_t
	err := unix.Fstatat(int(dir.Fd()), name, &s, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking at %s/%s: %w", dir.Name(), name, err)
	case s.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil
	}
	return do(entry{dir, name, blocks(s.Size), time.Unix(s.Mtim.Unix())})
}

// remove removes the chunks that were used the longest ago until so many bytes are free.
func (l *ledger) remove(ctx context.Context, s *sight, excess int64) (freed int64, err error) {
	if excess == 0 {
		return 0, nil
	}
	cut, youngest := s.ages.cut(excess), oldest
	var told int64 // of what is freed, what the tally knows
	tell := func() {
		l.giveBack(freed - told)
		told = freed
	}
	defer tell()
	const often = 1 << 20
	err = l.eachChunk(ctx, s.slice, func(e entry) error {
		class := ageOf(s.now, e.used)
		youngest = min(youngest, class)
		if cut.claims(class) && unix.Unlinkat(int(e.dir.Fd()), e.name, 0) == nil { // what cannot be removed stays
			cut.went(class, e.size)
			freed += e.size
		}
		if freed-told >= often {
			tell()
		}
		return nil
	}, func(root *os.File, name string) error {
		if unix.Unlinkat(int(root.Fd()), name, unix.AT_REMOVEDIR) == nil { // it was empty
			cut.went(youngest, blockSize)
			freed += blockSize
		}
		youngest = oldest
		return nil
	})
	return freed, err
}

// ages says how many bytes are of which age, in classes that are 1.6 % wide: memory does not grow with the
// number of chunks, and a cut through them is nearly a cut through the chunks in order.
type ages [oldest + 1]int64

const (
	ageUnit = time.Second / 16
	oldest  = (64-7+2)*64 - 1 // the class of whatever is older than all
)

// ageOf is the class that a chunk is in that was used at some time; older is larger. The future is as young as
// now.
func ageOf(now, used time.Time) int {
	units := uint64(max(now.Sub(used), 0) / ageUnit)
	shift := max(bits.Len64(units)-7, 0)
	return shift*64 + int(units>>shift)
}

// cut divides chunks into those that go, and those that stay.
type cut struct {
	class  int   // older ones go
	within int64 // bytes of this class go
}

// cut finds the oldest bytes.
func (a *ages) cut(excess int64) *cut {
	for class := oldest; class >= 0; class-- {
		if excess <= a[class] {
			return &cut{class, excess}
		}
		excess -= a[class]
	}
	return &cut{-1, 0}
}

// claims says whether a chunk of a class goes.
func (c *cut) claims(class int) bool { return class > c.class || class == c.class && c.within > 0 }

// went says that so many bytes of a class are gone.
func (c *cut) went(class int, size int64) {
	if class == c.class {
		c.within -= size
	}
}
