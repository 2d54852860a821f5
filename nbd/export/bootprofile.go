package export

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/store"
	"cairn/store/locate"
)

// profileWait is the time that opening an image waits for a profile.
const profileWait = 2 * time.Second

// startPrefetch starts to prefetch the chunks of a profile, and of all of the image with
// Options.Fill. If the profile is unavailable, it retries in the background. The caller calls end
// before it closes the image.
func (im *images) startPrefetch(ctx context.Context, i image) (end func(), err error) {
	end = func() {}
	if at := im.profileOf(i.at); !at.IsZero() {
		p, err := im.readProfileSoon(ctx, at, i.cached)
		switch {
		case errors.Is(err, store.ErrUnavailable):
			im.o.Notes(ProfileNote{Later: true, Err: err})
			end = im.inBackground(func(ctx context.Context) { im.followLater(ctx, i, at) })
		case err != nil:
			return end, err
		case p != nil:
			im.followProfile(i, p)
		}
	}
	if im.o.Fill {
		i.Fill(im.o.FillRate)
	}
	return end, nil
}

// profileOf returns the location of the profile for an index, or the zero Location.
func (im *images) profileOf(index locate.Location) locate.Location {
	if !im.o.AutoProfile {
		return im.o.Profile
	}
	at, _ := release.ProfileOf(index) // a stream has no profile beside it
	return at
}

// followProfile prefetches the chunks of an image that a profile names.
func (im *images) followProfile(i image, p *profile.Profile) {
	plan := p.Plan(i.index)
	im.o.Log.Info("prefetching the chunks of a profile", "image", nameOf(i.at), "chunks", len(plan.Chunks),
		"known", plan.Known, "guessed", plan.Guessed, "unknown", plan.Unknown)
	if plan.Known == 0 && plan.Unknown > 0 {
		im.o.Log.Warn("the profile names no chunk of the image: it was recorded from another one, "+
			"or one that was cut or hashed in another way", "image", nameOf(i.at))
	}
	i.Follow(plan.Chunks)
}

// followLater follows a profile as soon as its location is available.
func (im *images) followLater(ctx context.Context, i image, at locate.Location) {
	var p *profile.Profile
	err := store.Policy{Patience: -1, First: time.Second, Max: time.Minute}.Do(ctx, func() (err error) {
		p, err = im.readProfile(ctx, at)
		return err
	})
	switch {
	case ctx.Err() != nil:
	case err != nil:
		im.o.Log.Warn("the profile is not used", "image", nameOf(i.at), "error", err)
	case p != nil:
		im.followProfile(i, p)
	}
}

// readProfileSoon is readProfile with a short timeout. If the index was unavailable, a profile
// beside it is assumed to be unavailable too.
func (im *images) readProfileSoon(ctx context.Context, at locate.Location, unreachable bool) (*profile.Profile, error) {
	if unreachable && im.o.AutoProfile {
		return nil, fmt.Errorf("reading profile %s: %w", at, store.ErrUnavailable)
	}
	soon, cancel := context.WithTimeout(ctx, profileWait)
	defer cancel()
	p, err := im.readProfile(soon, at)
	if err != nil && soon.Err() != nil && ctx.Err() == nil {
		err = &store.UnavailableError{Err: err}
	}
	return p, err
}

// readProfile reads the profile at a location. With AutoProfile it returns nil if the profile is
// missing or invalid.
func (im *images) readProfile(ctx context.Context, at locate.Location) (*profile.Profile, error) {
	p, err := release.OpenProfile(ctx, im.serverAccess(0), at)
	switch {
	case err == nil || !im.o.AutoProfile || errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil:
		return p, err
	case !errors.Is(err, store.ErrNotFound) && !errors.Is(err, fs.ErrNotExist):
		im.o.Notes(ProfileNote{Err: err})
	}
	return nil, nil
}
