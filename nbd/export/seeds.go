package export

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/blob/view/fetch"
	"cairn/internal/bitset"
	"cairn/internal/dashboard"
	"cairn/seed"
	"cairn/seed/learn"
	"cairn/store/locate"
)

const (
	// seedPatience is the time that a read of a seed may take. After it, the chunk comes from the store,
	// and the seed is not read until the read has returned.
	seedPatience = 2 * time.Second
	// maxWrong is the number of wrong chunks after which a seed is not read any more, unless it had more
	// right ones.
	maxWrong = 32
	// maxFormats limits the combinations of algorithm and chunk sizes for which seeds are scanned.
	maxFormats = 8
)

// errWrongSeed is the reason why a seed is not read any more.
var errWrongSeed = errors.New("most of the chunks that were read do not fit its index")

// seeds are local files that may hold chunks of the images. A chunk from a seed is verified, so a stale,
// changing or wrong seed costs a download. The content of the seeds is learned in the background, once for
// each combination of algorithm and chunk sizes. It implements fetch.Donors. Safe for concurrent use.
type seeds struct {
	learner  learn.Options
	opened   []*openSeed
	log      func(msg string, args ...any)
	memory   func(bytes int64)   // is called with the memory of each learned index
	scanning *semaphore.Weighted // one seed is learned at a time
	contents atomic.Pointer[[]*seedContent]
	buffers  sync.Pool // of *[]byte

	mu      sync.Mutex               // guards the field below, and the states of opened
	formats map[format]chan struct{} // closed when the seeds are learned
}

var _ fetch.Donors = (*seeds)(nil)

// format is what two indexes must have in common to share chunks.
type format struct {
	algorithm blob.Algorithm
	params    blob.Params
}

// openSeed is an open seed. The mutex of the seeds guards state and err.
type openSeed struct {
	learn.Opened
	data  io.ReaderAt
	state string // of dashboard.Seed
	err   error
	late  atomic.Int32 // reads that take longer than seedPatience

	chunks, bytes, wrong atomic.Int64
}

// seedContent is the presumed content of a seed, cut for one format.
type seedContent struct {
	*openSeed
	number int // of the seed
	index  *blob.Index
	table  *blob.Table
	lacks  *bitset.Set // chunks that were wrong when they were read
	right  atomic.Int64
	failed atomic.Int64
}

func newSeeds(o Options, memory func(bytes int64)) *seeds {
	s := &seeds{learner: o.Learn, log: o.Log.Info, memory: memory, scanning: semaphore.NewWeighted(1),
		formats: map[format]chan struct{}{}}
	s.learner.Scanning = func(name string, size int64) (func(scan.Stats), func()) {
		s.log("scanning a seed", "seed", name, "size", size)
		return func(scan.Stats) {}, func() {}
	}
	for _, opened := range o.Seeds {
		s.opened = append(s.opened, &openSeed{Opened: opened, data: opened.File, state: dashboard.SeedLearning})
	}
	s.contents.Store(new([]*seedContent))
	return s
}

// learnFormat learns the content of the seeds, cut as x is, unless an earlier call did. It reads the
// indexes that were given with the seeds and are on this machine. It returns the function that does the
// rest in the background, or nil.
func (s *seeds) learnFormat(ctx context.Context, x *blob.Index) (rest func(ctx context.Context)) {
	if !s.addFormat(x) {
		return nil
	}
	var unknown []int
	for n, opened := range s.opened {
		var held *blob.Index
		if !opened.Index.Remote() {
			held = s.learner.GivenIndex(ctx, opened.Opened, x)
		}
		if held == nil {
			unknown = append(unknown, n)
			continue
		}
		s.addContent(n, held)
	}
	if len(unknown) == 0 {
		s.endFormat(x)
		return nil
	}
	return func(ctx context.Context) {
		defer s.endFormat(x)
		if s.scanning.Acquire(ctx, 1) != nil {
			return
		}
		defer s.scanning.Release(1)
		for _, n := range unknown {
			s.learnSeed(ctx, n, x)
		}
	}
}

// addFormat reports whether the seeds must be learned for x's format.
func (s *seeds) addFormat(x *blob.Index) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := format{x.Algorithm(), x.Params()}
	if len(s.opened) == 0 || len(s.formats) == maxFormats || s.formats[f] != nil {
		return false
	}
	s.formats[f] = make(chan struct{})
	return true
}

// endFormat records that the seeds are learned for x's format.
func (s *seeds) endFormat(x *blob.Index) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.formats[format{x.Algorithm(), x.Params()}])
}

// errFormat reports that seeds are not learned for an image.
var errFormat = errors.New("the images have too many combinations of digest algorithm and chunk sizes")

// awaitFormat blocks until the seeds are learned for x's format.
func (s *seeds) awaitFormat(ctx context.Context, x *blob.Index) error {
	s.mu.Lock()
	learned := s.formats[format{x.Algorithm(), x.Params()}]
	s.mu.Unlock()
	if learned == nil {
		return errFormat
	}
	select {
	case <-learned:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// learnSeed learns the content of a seed whose local index is not given.
func (s *seeds) learnSeed(ctx context.Context, n int, x *blob.Index) {
	opened := s.opened[n].Opened
	if !opened.Index.Remote() {
		opened.Index = locate.Location{} // learnFormat has reported that it is unusable
	}
	held, err := s.learner.Index(ctx, opened, x)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.setState(s.opened[n], dashboard.SeedFailed, err)
		if s.learner.Notes != nil {
			s.learner.Notes(learn.SeedLeftOut{Seed: opened.Name, Err: err})
		}
	default:
		s.addContent(n, held)
	}
}

func (s *seeds) setState(o *openSeed, state string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o.state, o.err = state, err
}

// addContent makes a seed with this content available.
func (s *seeds) addContent(n int, x *blob.Index) {
	c := &seedContent{openSeed: s.opened[n], number: n, index: x, table: blob.NewTable(x), lacks: bitset.New(x.Len())}
	s.mu.Lock()
	all := append(slices.Clone(*s.contents.Load()), c)
	slices.SortStableFunc(all, func(a, b *seedContent) int { return a.number - b.number })
	s.contents.Store(&all)
	c.state, c.err = dashboard.SeedReady, nil
	s.mu.Unlock()
	s.memory(indexMemory(x))
	s.log("a seed is ready", "seed", c.Name, "size", x.Size(), "chunks", x.Len())
}

// dropContent stops the use of a seed with this content, which is mostly wrong.
func (s *seeds) dropContent(c *seedContent, err error) {
	s.mu.Lock()
	before := *s.contents.Load()
	all := slices.DeleteFunc(slices.Clone(before), func(other *seedContent) bool { return other == c })
	s.contents.Store(&all)
	if !slices.ContainsFunc(all, func(other *seedContent) bool { return other.openSeed == c.openSeed }) {
		c.state, c.err = dashboard.SeedFailed, err
	}
	s.mu.Unlock()
	if len(all) == len(before) {
		return // another read dropped it
	}
	s.memory(-indexMemory(c.index))
	if s.learner.Notes != nil {
		s.learner.Notes(learn.SeedLeftOut{Seed: c.Name, Err: err})
	}
}

// findChunk returns the number of the chunk in the seed, or -1 if the seed lacks it or cannot be read now.
func (c *seedContent) findChunk(a blob.Algorithm, digest blob.Digest, size int64) int {
	if c.index.Algorithm() != a || c.late.Load() > 0 {
		return -1
	}
	i := c.table.Find(digest)
	if i < 0 || c.index.At(i).Size != size || c.lacks.Has(i) {
		return -1
	}
	return i
}

// MayCopy implements fetch.Donors.
func (s *seeds) MayCopy(a blob.Algorithm, digest blob.Digest, size int64) bool {
	for _, c := range *s.contents.Load() {
		if c.findChunk(a, digest, size) >= 0 {
			return true
		}
	}
	return false
}

// Copy implements fetch.Donors. A chunk that is wrong in a seed is not read there again.
func (s *seeds) Copy(a blob.Algorithm, digest blob.Digest, dst []byte) bool {
	for _, c := range *s.contents.Load() {
		i := c.findChunk(a, digest, int64(len(dst)))
		if i < 0 {
			continue
		}
		read, answered := s.readSeed(c.openSeed, dst, c.index.At(i).Offset)
		switch {
		case !answered:
		case read && a.Sum(dst) == digest:
			c.noteRight(int64(len(dst)))
			return true
		default:
			s.noteWrong(c, i)
		}
	}
	return false
}

func (c *seedContent) noteRight(size int64) {
	c.right.Add(1)
	c.chunks.Add(1)
	c.bytes.Add(size)
}

// noteWrong records that a seed does not hold chunk i of its index.
func (s *seeds) noteWrong(c *seedContent, i int) {
	c.lacks.Add(i)
	c.wrong.Add(1)
	if failed := c.failed.Add(1); failed >= maxWrong && failed > c.right.Load() {
		s.dropContent(c, errWrongSeed)
	}
}

// readSeed fills dst with the bytes of a seed at off, and reports whether it did. answered is false if
// the read takes longer than seedPatience: a file system that does not answer blocks no client.
func (s *seeds) readSeed(o *openSeed, dst []byte, off int64) (read, answered bool) {
	buffer := s.takeBuffer(len(dst))
	done := make(chan bool, 1)
	go func() {
		n, _ := o.data.ReadAt(*buffer, off)
		done <- n == len(dst)
	}()
	patience := time.NewTimer(seedPatience)
	defer patience.Stop()
	select {
	case read = <-done:
		copy(dst, *buffer)
		s.buffers.Put(buffer)
		return read, true
	case <-patience.C:
		o.late.Add(1)
		go func() {
			<-done
			o.late.Add(-1)
		}()
		return false, false
	}
}

// asSeeds returns the contents of the seeds with a digest algorithm, and the same as seeds of a plan.
func (s *seeds) asSeeds(a blob.Algorithm) (contents []*seedContent, all []seed.Seed) {
	for _, c := range *s.contents.Load() {
		if c.index.Algorithm() == a {
			contents = append(contents, c)
			all = append(all, seed.Seed{Name: c.Name, Index: c.index, Data: contentReader{s, c}})
		}
	}
	return contents, all
}

// isLost reports whether a seed with this content was given up, or does not answer now.
func (s *seeds) isLost(c *seedContent) bool {
	return c.late.Load() > 0 || !slices.Contains(*s.contents.Load(), c)
}

// contentReader reads a seed. A read fails after seedPatience.
type contentReader struct {
	seeds *seeds
	*seedContent
}

var errLost = errors.New("the seed does not answer, or is not read any more")

// ReadAt implements io.ReaderAt. It reads all of p or fails.
func (r contentReader) ReadAt(p []byte, off int64) (int, error) {
	if r.seeds.isLost(r.seedContent) {
		return 0, errLost
	}
	if read, answered := r.seeds.readSeed(r.openSeed, p, off); !read || !answered {
		return 0, errLost
	}
	return len(p), nil
}

// takeBuffer returns a buffer of n bytes. The reader of a late read keeps its buffer.
func (s *seeds) takeBuffer(n int) *[]byte {
	p, _ := s.buffers.Get().(*[]byte)
	if p == nil || cap(*p) < n {
		p = new(make([]byte, n))
	}
	*p = (*p)[:n]
	return p
}

// status returns the states and counts of the seeds.
func (s *seeds) status() []dashboard.Seed {
	all := []dashboard.Seed{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.opened {
		d := dashboard.Seed{Name: o.Name, State: o.state, Size: o.File.Size(),
			Chunks: o.chunks.Load(), Bytes: o.bytes.Load(), Wrong: o.wrong.Load()}
		switch {
		case o.err != nil:
			d.Error = o.err.Error()
		case o.late.Load() > 0:
			d.Error = "a read takes longer than " + seedPatience.String()
		}
		all = append(all, d)
	}
	return all
}
