package export

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"cairn/blob"
	"cairn/blob/delta/apply"
	"cairn/blob/release"
	"cairn/blob/view"
	"cairn/blob/view/fetch"
	"cairn/blob/view/imagecache"
	"cairn/nbd"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/supply"
)

// storePatience is the time that a failed request to the stores is retried before the view decides.
// The view knows whether a read waits for it.
const storePatience = 100 * time.Millisecond

// memoryPerChunk is an estimate of the bytes of memory that an open image takes for each chunk: the
// index, its table, and the states of the chunks.
const memoryPerChunk = 128

func indexMemory(x *blob.Index) int64 { return int64(x.Len()) * memoryPerChunk }

// image is an open image.
type image struct {
	*view.Image
	index  *blob.Index
	at     locate.Location // of the index
	cached bool            // the index is from the image cache, because its location is unavailable
}

// images opens images, and has the objects that they share. It is safe for concurrent use.
type images struct {
	o     Options
	dir   *imagecache.Dir // nil without one
	seeds *seeds
	cache *fetch.Cache

	decoders  *apply.Decoders     // of chunks of deltas
	searching *semaphore.Weighted // one delta is opened at a time: a table may take much memory before it is refused

	background sync.WaitGroup
	lifetime   context.Context // of the background goroutines; stop ends it
	stop       context.CancelFunc

	fewFiles sync.Once
	opening  singleflight.Group // opens sources

	mu         sync.Mutex             // guards the fields below; not held during I/O
	sources    map[string]imageSource // by algorithm and the sums of the locations
	stores     []*meteredStore
	closers    []func()
	recordings []*recording

	indexMemory int64 // of all open images, seeds and deltas
	deltaMemory int64 // of all deltas
	decoding    bool  // indexMemory includes that of the decoders
}

// imageSource is where images with the same stores get chunks.
type imageSource struct {
	*fetch.Source
	store      *meteredStore
	deltas     *deltas    // nil if there are none
	packMemory *sync.Once // counts the memory for whole packs
}

func newImages(o Options) *images {
	im := &images{o: o, sources: make(map[string]imageSource), decoders: apply.NewDecoders(), searching: semaphore.NewWeighted(1)}
	im.lifetime, im.stop = context.WithCancel(context.Background())
	if o.Cache != "" {
		var err error
		if im.dir, err = imagecache.Open(o.Cache, imagecache.Options{Limit: o.CacheLimit, Log: o.Log}); err != nil {
			im.o.Notes(MemoryNote{Err: err})
		}
	}
	memory := fetch.Options{Bytes: max(o.Memory, 1), Log: o.Log}
	if im.dir != nil {
		memory.Donors = im.dir
	}
	if im.seeds = newSeeds(o, im.addIndexMemory); len(o.Seeds) > 0 {
		memory.Seeds = im.seeds
	}
	im.cache = fetch.New(context.Background(), memory)
	return im
}

// logFailure logs an error that is not returned.
func (im *images) logFailure(what string, err error) {
	if err != nil {
		im.o.Log.Warn(what, "error", err)
	}
}

// openImage opens the image of an index as an export that stays open until closeAll, and starts to
// prefetch.
func (im *images) openImage(ctx context.Context, index locate.Location) (*nbd.Export, error) {
	x, cached, err := im.findIndex(ctx, index)
	if err != nil {
		return nil, &Error{Index, err}
	}
	source, err := im.openSource(index, x.Algorithm())
	if err != nil {
		return nil, err
	}
	e, _, err := im.openIndex(ctx, image{nil, x, index, cached}, source, im.openFile(x, index))
	return e, err
}

// readFile reads the index file of an image. It opens no image and requests nothing of a store. It
// is an indexReader.
func (im *images) readFile(index locate.Location, file io.Reader) (*unopened, error) {
	x, err := release.Decode(index, file)
	if err != nil {
		return nil, &Error{Index, err}
	}
	if err := im.accept(index, x); err != nil {
		return nil, &Error{Index, err}
	}
	im.noteKind(index, x)
	source, err := im.openSource(index, x.Algorithm())
	if err != nil {
		return nil, err
	}
	return &unopened{
		described: *newExport(index, x, closedDevice{size: paddedSize(x.Size())}),
		memory:    indexMemory(x),
		open: func(ctx context.Context, onDisk bool) (*nbd.Export, func(), error) {
			var disk view.Disk
			if onDisk {
				disk = im.openFile(x, index)
			} else {
				im.noteFewFiles(index)
			}
			return im.openIndex(ctx, image{nil, x, index, false}, source, disk)
		},
	}, nil
}

// errFewFiles is the reason of a MemoryNote.
var errFewFiles = errors.New("the open images take all descriptors that the process may have for them; " +
	"raise its limit of open files, and restart")

// noteFewFiles notes, once, that an image is opened without files.
func (im *images) noteFewFiles(index locate.Location) {
	im.fewFiles.Do(func() { im.o.Notes(MemoryNote{index, errFewFiles}) })
}

// openIndex opens an image as an export, and starts to prefetch. The caller calls shut when no client
// reads the image any more.
func (im *images) openIndex(ctx context.Context, i image, source imageSource, disk view.Disk) (
	e *nbd.Export, shut func(), err error,
) {
	im.addIndexMemory(indexMemory(i.index))
	im.learnSeeds(ctx, i.index)
	i.Image = view.New(i.index, source.Source, view.Options{Name: nameOf(i.at), Disk: disk, Around: true,
		Hold: im.o.Hold, Record: im.startRecording(i.index), Log: im.o.Log})
	endCheck := func() {}
	if i.cached {
		endCheck = im.inBackground(func(ctx context.Context) { im.checkServed(ctx, i.at, i.index) })
	} else if im.dir != nil && i.at.Remote() { // for later starts while its location is unavailable
		im.logFailure("saving the index in the image cache", im.dir.Remember(i.at.Sum(), i.index))
	}
	endPacks := im.startPacks(ctx, i, source)
	endDelta := im.startDelta(i, source.deltas)
	endPrefetch, err := im.startPrefetch(ctx, i)
	shut = func() {
		endCheck()
		endDelta()
		endPacks()
		endPrefetch()
		im.logFailure("closing an image", i.Close())
		im.addIndexMemory(-indexMemory(i.index))
	}
	if err != nil {
		shut()
		return nil, nil, err
	}
	return newExport(i.at, i.index, device{i.Image}), shut, nil
}

// learnSeeds learns the content of the seeds, cut as x is. What takes long is done in the background.
// A file system that does not answer cannot be cancelled, so closeAll waits for it only seedPatience.
func (im *images) learnSeeds(ctx context.Context, x *blob.Index) {
	rest := im.seeds.learnFormat(ctx, x)
	if rest == nil {
		return
	}
	im.inBackground(func(ctx context.Context) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			rest(ctx)
		}()
		select {
		case <-done:
			return
		case <-ctx.Done():
		}
		select {
		case <-done:
		case <-time.After(seedPatience):
		}
	})
}

// addIndexMemory counts the memory of an image or seed that is opened, or closed if it is negative.
func (im *images) addIndexMemory(bytes int64) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.indexMemory += bytes; im.o.IndexMemory != nil {
		im.o.IndexMemory(im.indexMemory)
	}
}

// serverAccess returns the access to servers. A server may be silent for this long; 0 is the
// backends' default.
func (im *images) serverAccess(silence time.Duration) release.Access {
	a := im.o.Access
	a.Locate = func() (at locate.Access, err error) {
		if im.o.Access.Locate != nil {
			at, err = im.o.Access.Locate()
		}
		at.Retry = store.Policy{Patience: storePatience}
		at.Web.Patience, at.S3.Patience, at.SFTP.Patience = silence, silence, silence
		return at, err
	}
	return a
}

// openSource opens the stores of an index, unless another image has opened them. Opening may block on a
// file system that does not answer. Then it blocks only the images of the same stores.
func (im *images) openSource(index locate.Location, a blob.Algorithm) (imageSource, error) {
	groups := im.o.Stores
	if len(groups) == 0 {
		beside, err := index.DefaultStore()
		if err != nil {
			return imageSource{}, err
		}
		groups = [][]locate.Location{{beside}}
	}
	key := a.String()
	for _, at := range slices.Concat(groups...) {
		sum := at.Sum()
		key += string(sum[:])
	}
	s, err, _ := im.opening.Do(key, func() (any, error) { return im.openStoresAs(key, groups, a) })
	if err != nil {
		return imageSource{}, err
	}
	return s.(imageSource), nil
}

// openStoresAs returns the source with a key, and opens its stores if there is none.
func (im *images) openStoresAs(key string, groups [][]locate.Location, a blob.Algorithm) (imageSource, error) {
	im.mu.Lock()
	s, opened := im.sources[key]
	im.mu.Unlock()
	if opened {
		return s, nil
	}
	access, err := im.serverAccess(0).Locate()
	if err != nil {
		return imageSource{}, err
	}
	from, err := supply.Open(groups, access, a, im.o.Supply)
	if err != nil {
		return imageSource{}, &Error{Stores, err}
	}
	s.deltas = im.openDeltas(from)
	o := fetch.SourceOptions{Fetches: from.Requests(), Link: from.Link(), Packs: from}
	if s.deltas != nil {
		o.Deltas = s.deltas
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.closers = append(im.closers, from.Close)
	s.store, s.packMemory = newMeteredStore(unusedName(im.stores, slices.Concat(groups...), a), from), new(sync.Once)
	im.stores = append(im.stores, s.store)
	s.Source = im.cache.NewSource(s.store, o)
	im.sources[key] = s
	return s, nil
}

// openStores returns the stores of all images.
func (im *images) openStores() []*meteredStore {
	im.mu.Lock()
	defer im.mu.Unlock()
	return slices.Clone(im.stores)
}

// openFile returns the cache file of an image, or nil.
func (im *images) openFile(x *blob.Index, index locate.Location) view.Disk {
	if im.dir == nil {
		return nil
	}
	file, err := im.dir.Image(x)
	if err != nil {
		im.o.Notes(MemoryNote{index, err})
		return nil
	}
	return file
}

// inBackground runs do in a goroutine. end cancels it and waits for it, and so does closeAll.
func (im *images) inBackground(do func(ctx context.Context)) (end func()) {
	ctx, cancel := context.WithCancel(im.lifetime)
	done := make(chan struct{})
	im.background.Go(func() {
		defer close(done)
		do(ctx)
	})
	return func() { cancel(); <-done }
}

// closeAll cancels all fetches, saves the recordings and closes the image cache. No client may read
// any more.
func (im *images) closeAll() {
	im.stop()
	im.background.Wait()
	im.cache.Close()
	im.decoders.Close()
	for _, r := range im.recordings {
		im.saveRecording(r)
	}
	im.mu.Lock()
	closers := im.closers
	im.mu.Unlock()
	for _, end := range closers {
		end()
	}
	if im.dir != nil {
		im.logFailure("closing the image cache", im.dir.Close())
	}
}
