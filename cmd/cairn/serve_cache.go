package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"cairn/blob"
	"cairn/blob/view"
	"cairn/blob/view/imagecache"
	"cairn/nbd"
	"cairn/store/locate"
)

// How much of the images is fetched before it is asked for.
const (
	prefetchNone    = "none"
	prefetchProfile = "profile"
	prefetchAll     = "all"
)

// imageFlags say where serve keeps images, and what it fetches before it is asked.
type imageFlags struct {
	memory       int64
	prefetch     string
	prefetchRate int64
	profile      profileFlag
	record       string
	recordTime   time.Duration
	stallTimeout time.Duration
}

// storePatience is how long a request to the stores is repeated before the view decides, who knows whether
// anybody waits for it.
const storePatience = 100 * time.Millisecond

func defaultImageFlags() imageFlags {
	return imageFlags{
		memory: 256 << 20, prefetch: prefetchProfile, profile: profileFlag{word: profileAuto},
		recordTime: 5 * time.Minute, stallTimeout: 10 * time.Minute,
	}
}

func (f *imageFlags) add(c *cobra.Command) {
	flags := c.Flags()
	if cache := flags.Lookup("cache"); cache != nil {
		cache.Usage = "`directory` that keeps images: what was fetched once is there after a restart"
	}
	if limit := flags.Lookup("cache-limit"); limit != nil {
		limit.Usage = "`size` that all images in --cache may have; 0 is no limit (default: what they have, and half of what is free)"
	}
	flags.Var(amount(&f.memory), "memory", "keep at most that many `bytes` of chunks in memory, of all exports together")
	flags.Var(choice{&f.prefetch, []string{prefetchNone, prefetchProfile, prefetchAll}}, "prefetch",
		"`what` to fetch before it is read: none, profile (what a boot reads, as a profile tells), or all (needs --cache)")
	flags.Var(amount(&f.prefetchRate), "prefetch-rate", "with --prefetch all: fetch at most that many `bytes` a second of what nobody has asked for (default: no limit)")
	flags.Var(&f.profile, "profile", "`file` with a boot profile; auto is NAME.caprf beside NAME.caibx, if there is one; none is none")
	flags.StringVar(&f.record, "record", "", "write what is read, in the order in which it is, into this profile `file`; - is stdout, at the end, with --print-uri=false")
	takeDash(c, "record")
	flags.DurationVar(&f.recordTime, "record-time", f.recordTime, "with --record: for how long after the first read; 0 is no limit")
	flags.DurationVar(&f.stallTimeout, "stall-timeout", f.stallTimeout,
		"how long a read, and the start for its index, waits for stores that do not answer, before it fails; 0 is for ever")
}

// check says what is wrong with the flags, if anything.
func (f *imageFlags) check(cache, watch string, indexes int) error {
	switch {
	case f.prefetch == prefetchAll && cache == "":
		return errors.New("--prefetch all needs --cache DIRECTORY to put the images in")
	case f.record != "" && (indexes != 1 || watch != ""):
		return errors.New("--record is for one image: name one INDEX")
	case f.recordTime < 0 || f.stallTimeout < 0:
		return errors.New("--record-time and --stall-timeout are not less than nothing")
	}
	return nil
}

// hold is how long a read waits, as a view has it.
func (f *imageFlags) hold() time.Duration {
	if f.stallTimeout == 0 {
		return view.ForEver
	}
	return f.stallTimeout
}

// images are the images that serve offers, with all that they share. Safe for concurrent use.
type images struct {
	flags  imageFlags
	stores stores
	dir    *imagecache.Dir // nil when there is none
	cache  *view.Cache
	log    *slog.Logger

	seen seenStores

	background sync.WaitGroup
	stop       chan struct{} // ends what is in the background

	mu      sync.Mutex // guards what follows
	sources map[sourceKey]*view.Source
	closers []func()
	records []*recording // at most one
}

// sourceKey is what tells the sources of images apart.
type sourceKey struct {
	locations string // the sum of each
	algorithm blob.Algorithm
}

// newImages makes what images share. Fetches end with the context, or with close.
func newImages(ctx context.Context, f imageFlags, s stores, log *slog.Logger) *images {
	im := &images{flags: f, stores: s, log: log, sources: map[sourceKey]*view.Source{}, stop: make(chan struct{})}
	if s.cache != "" {
		im.dir = openImageCache(s.cache, s.cacheLimit, log)
		im.stores.cache, im.stores.cacheLimit = "", 0
	}
	im.stores.patience, im.stores.quiet = storePatience, true
	im.cache = view.NewCache(ctx, view.Limits{Bytes: max(f.memory, 1), Disk: im.dir, Log: log})
	return im
}

// openImageCache opens the directory of cached images. It is a help and no condition.
func openImageCache(path string, limit int64, log *slog.Logger) *imagecache.Dir {
	dir, err := imagecache.Open(path, imagecache.Options{Limit: limit, Log: log})
	if err != nil {
		say("warning: images are kept in memory only: %v", err)
		return nil
	}
	return dir
}

// open makes an export of an index, and begins to fetch what is likely to be read of it. The caller calls release
// when nobody reads from it any more. It implements opener.
func (im *images) open(ctx context.Context, index locate.Location) (e *nbd.Export, release func(), err error) {
	found, err := im.readIndex(ctx, index)
	if err != nil {
		return nil, nil, err
	}
	x := found.Index
	source, err := im.source(index, x.Algorithm())
	if err != nil {
		return nil, nil, err
	}
	o := view.Options{Name: exportName(index), Disk: im.file(x, index), Around: true, Hold: im.flags.hold()}
	if im.flags.record != "" {
		o.Record = im.recorder(x)
	}
	v := view.New(x, source, o)
	ended := func() {}
	if found.cached {
		ended = im.inBackground(func(ctx context.Context) { im.awaitIndex(ctx, index, x) })
	} else {
		im.remember(index, x)
	}
	prefetched, err := im.prefetch(ctx, v, found, index)
	release = func() {
		ended()
		prefetched()
		im.report("closing an image", v.Close())
	}
	if err != nil {
		release()
		return nil, nil, err
	}
	return newExport(index, x, v), release, nil
}

// report says what went wrong at an end that nobody can be told of otherwise.
func (im *images) report(what string, err error) {
	if err != nil {
		im.log.Warn(what, "error", err)
	}
}

// source opens the stores of an index, unless another image has them already.
func (im *images) source(index locate.Location, a blob.Algorithm) (*view.Source, error) {
	groups, err := im.stores.of(index)
	if err != nil {
		return nil, err
	}
	locations := slices.Concat(groups...)
	im.mu.Lock()
	defer im.mu.Unlock()
	k := sourceKey{algorithm: a}
	for _, at := range locations {
		sum := at.Sum()
		k.locations += string(sum[:])
	}
	if s := im.sources[k]; s != nil {
		return s, nil
	}
	from, err := openStores(im.stores, index, a, 0)
	if err != nil {
		return nil, err
	}
	im.closers = append(im.closers, from.Close)
	im.sources[k] = im.cache.Source(im.seen.add(locations, a, from), from.Requests())
	return im.sources[k], nil
}

// file is where an image is kept on disk, or nil.
func (im *images) file(x *blob.Index, index locate.Location) *imagecache.File {
	if im.dir == nil {
		return nil
	}
	file, err := im.dir.Image(x)
	if err != nil {
		say("warning: %s is kept in memory only: %v", index, err)
		return nil
	}
	return file
}

// close ends all fetches, and leaves recordings and cached images in order. Nobody may read from them any more.
func (im *images) close() {
	close(im.stop)
	im.background.Wait()
	im.cache.Close()
	for _, r := range im.records {
		im.report("the recording is not written", r.write())
	}
	for _, c := range im.closers {
		c()
	}
	if im.dir != nil {
		im.report("closing the image cache", im.dir.Close())
	}
}

// recording is a profile that is being made.
type recording struct {
	recorder *view.Recorder
	index    *blob.Index
	path     string
	written  int // reads that are in the file
}

// recordEvery is how often a recording is written before its end.
const recordEvery = 15 * time.Second

// recordGrace is how long the reader of a pipe may take to read a recording.
const recordGrace = 10 * time.Second

// recorder begins a recording of an image.
func (im *images) recorder(x *blob.Index) *view.Recorder {
	r := &recording{recorder: view.NewRecorder(x, im.flags.recordTime), index: x, path: im.flags.record}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.records = append(im.records, r)
	if isStream(r.path) {
		return r.recorder // it is written once
	}
	im.background.Go(func() {
		tick := time.NewTicker(recordEvery)
		defer tick.Stop()
		for {
			select {
			case <-im.stop:
				return
			case <-tick.C:
				if err := r.write(); err != nil {
					im.log.Warn("the recording is not written", "error", err)
				}
			}
		}
	})
	return r.recorder
}

// write puts what was read so far into the file, if there is more than the last time.
func (r *recording) write() error {
	reads := r.recorder.Reads()
	if len(reads) == r.written {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), recordGrace)
	defer cancel()
	if err := writeWhole(ctx, r.path, newProfile(r.index, reads).Encode()); err != nil {
		return fmt.Errorf("writing the recording: %w", err)
	}
	r.written = len(reads)
	return nil
}
