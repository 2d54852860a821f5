package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/blob"
	"cairn/internal/daemon"
	"cairn/store"
	"cairn/store/locate"
)

const (
	indexPause   = 5 * time.Second  // between attempts to read an index, at most
	indexSilence = 10 * time.Second // of a server, before an index that is in the cache is served instead
	waitTold     = 10 * time.Second // how often the log tells that the server waits
	waitNotified = 2 * time.Minute  // how long systemd is asked to wait on; an attempt and a pause take less
)

// foundIndex is an index, and whether it is the cache's because its location cannot be reached.
type foundIndex struct {
	*blob.Index
	cached bool
}

// readIndex reads the index of an image. While its location cannot be reached, the index that the image cache knows of
// it is used, and without one the location is asked again, for as long as reads would wait. The answer that there is
// none, or no access, is an error at once.
func (im *images) readIndex(ctx context.Context, location locate.Location) (found foundIndex, err error) {
	found.Index = im.recall(location)
	if found.Index != nil {
		return im.readKnown(ctx, location, found.Index)
	}
	wait := waiting{images: im, location: location}
	policy := store.Policy{Patience: im.flags.stallTimeout, Max: indexPause, Waiting: wait.tell}
	if policy.Patience == 0 {
		policy.Patience = -1 // for ever
	}
	err = policy.Do(ctx, func() error {
		found.Index, err = readIndex(ctx, location, im.stores.access)
		return err
	})
	wait.end()
	return found, err
}

// readKnown reads an index that the image cache knows, unless its location cannot be reached.
func (im *images) readKnown(ctx context.Context, location locate.Location, known *blob.Index) (foundIndex, error) {
	access := im.stores.access
	access.silence = indexSilence
	x, err := readIndex(ctx, location, access)
	if ctx.Err() != nil || !errors.Is(err, store.ErrUnavailable) {
		return foundIndex{Index: x}, err
	}
	im.log.Warn("the index cannot be read; serving the image that its location had last, from the cache", "index", location, "digest", known.Digest(), "error", err)
	return foundIndex{known, true}, nil
}

// waiting tells the log and systemd that the server waits for an index.
type waiting struct {
	images   *images
	location locate.Location
	told     time.Time
}

func (w *waiting) tell(failed error, _ time.Duration) {
	if time.Since(w.told) >= waitTold {
		w.told = time.Now()
		w.images.log.Warn("waiting for the index", "index", w.location, "error", failed)
	}
	w.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d\nSTATUS=waiting for the index %s", waitNotified.Microseconds(), w.location))
}

func (w *waiting) end() {
	if !w.told.IsZero() {
		w.notify("STATUS=")
	}
}

func (w *waiting) notify(state string) {
	w.images.report("telling the service manager", daemon.Notify(state))
}

// recall returns the index that a location had last, if the image cache knows it.
func (im *images) recall(location locate.Location) *blob.Index {
	if im.dir == nil || !location.Remote() {
		return nil
	}
	return im.dir.Recall(location.Sum())
}

// remember keeps what index a location has, for a start at which it cannot be reached.
func (im *images) remember(location locate.Location, x *blob.Index) {
	if im.dir != nil && location.Remote() {
		im.report("the index is not remembered", im.dir.Remember(location.Sum(), x))
	}
}

// awaitIndex waits until a location answers whose index was taken from the cache, and tells whether it still has that.
func (im *images) awaitIndex(ctx context.Context, location locate.Location, served *blob.Index) {
	policy := store.Policy{Patience: -1, First: indexPause, Max: time.Minute}
	var x *blob.Index
	err := policy.Do(ctx, func() (err error) {
		x, err = readIndex(ctx, location, im.stores.access)
		return err
	})
	log := im.log.With("index", location)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		log.Warn("the index's location answers again, but not with an index; the image from the cache is served on", "error", err)
	case x.Digest() != served.Digest():
		log.Warn("the index's location answers again, and has another image by now; restart to serve that", "digest", x.Digest())
	default:
		log.Info("the index's location answers again, and has the image that is served")
	}
}

// inBackground does something beside serving, until the function that it returns is called, or all images are closed.
func (im *images) inBackground(do func(ctx context.Context)) (end func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	im.background.Go(func() {
		defer close(done)
		do(ctx)
	})
	im.background.Go(func() {
		defer cancel()
		select {
		case <-im.stop:
		case <-done:
		}
	})
	return func() { cancel(); <-done }
}
