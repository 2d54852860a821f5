package export

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store"
	"cairn/store/locate"
)

const (
	indexPause   = 5 * time.Second  // between attempts to read an index, at most
	indexSilence = 10 * time.Second // silence of a server before the index from the image cache is served
	waitLogged   = 10 * time.Second // between log messages while Open waits
)

// findIndex reads the index of an image. If its location is unavailable, it returns the index from
// the image cache. Without that, it retries for Options.Hold. Missing indexes and denied access
// fail at once.
func (im *images) findIndex(ctx context.Context, at locate.Location) (x *blob.Index, cached bool, err error) {
	if im.dir != nil && at.Remote() {
		if known := im.dir.Recall(at.Sum()); known != nil {
			return im.findKnown(ctx, at, known)
		}
	}
	var logged time.Time
	policy := store.Policy{Patience: im.o.Hold, Max: indexPause, Waiting: func(failed error, _ time.Duration) {
		if time.Since(logged) >= waitLogged {
			logged = time.Now()
			im.o.Log.Warn("waiting for the index", "index", at, "error", failed)
		}
		im.o.Notes(WaitNote{Index: at})
	}}
	err = policy.Do(ctx, func() error {
		x, err = im.readIndex(ctx, at, 0)
		return err
	})
	if !logged.IsZero() {
		im.o.Notes(WaitNote{Index: at, Over: true})
	}
	return x, false, err
}

// findKnown reads an index, or returns the known one from the image cache if its location is
// unavailable.
func (im *images) findKnown(ctx context.Context, at locate.Location, known *blob.Index) (
	x *blob.Index, cached bool, err error,
) {
	x, err = im.readIndex(ctx, at, indexSilence)
	if ctx.Err() != nil || !errors.Is(err, store.ErrUnavailable) {
		return x, false, err
	}
	if err := im.accept(at, known); err != nil {
		return nil, false, err
	}
	im.o.Log.Warn("the index cannot be read; serving the image that its location had last, from the cache",
		"index", at, "digest", known.Digest(), "error", err)
	return known, true, nil
}

// readIndex reads an index from its location, whose server may be silent for this long.
func (im *images) readIndex(ctx context.Context, at locate.Location, silence time.Duration) (*blob.Index, error) {
	x, err := release.Open(ctx, im.serverAccess(silence), at)
	if err == nil {
		err = im.accept(at, x)
	}
	if err != nil {
		return nil, err
	}
	im.noteKind(at, x)
	return x, nil
}

// accept calls Options.Accept.
func (im *images) accept(at locate.Location, x *blob.Index) error {
	if im.o.Accept == nil {
		return nil
	}
	if err := im.o.Accept(x); err != nil {
		return fmt.Errorf("index %s: %w", at, err)
	}
	return nil
}

func (im *images) noteKind(at locate.Location, x *blob.Index) {
	if kind := release.KindOf(at, x); kind != release.Image {
		im.o.Notes(KindNote{at, kind})
	}
}

// checkServed waits until the location of an index from the cache is available. It logs whether the
// location still has that index.
func (im *images) checkServed(ctx context.Context, at locate.Location, served *blob.Index) {
	policy := store.Policy{Patience: -1, First: indexPause, Max: time.Minute}
	var x *blob.Index
	err := policy.Do(ctx, func() (err error) {
		x, err = im.readIndex(ctx, at, 0)
		return err
	})
	log := im.o.Log.With("index", at)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		log.Warn("the index's location answers again, but not with an index; the image from the cache is served on",
			"error", err)
	case x.Digest() != served.Digest():
		log.Warn("the index's location answers again, and has another image by now; restart to serve that",
			"digest", x.Digest())
	default:
		log.Info("the index's location answers again, and has the image that is served")
	}
}
