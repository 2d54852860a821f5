package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/blob/view"
	"cairn/store"
	"cairn/store/locate"
)

// What --profile may be besides a file.
const (
	profileAuto = "auto"
	profileNone = "none"
)

// profileFlag is a flag that takes the location of a profile, or a word.
type profileFlag struct {
	word string // profileAuto, profileNone or ""
	at   locate.Location
}

func (f *profileFlag) String() string { return f.word }
func (f *profileFlag) Type() string   { return "location" }

func (f *profileFlag) Set(text string) error {
	f.word = ""
	if text == profileAuto || text == profileNone {
		f.word = text
		return nil
	}
	err := locationFlag{&f.at}.Set(text)
	if f.at.IsStream() {
		err = errors.New("a profile is read for each image, and not from stdin; a file of that name is ./-")
	}
	return err
}

// profileWait is how long a start waits for a profile that is not on this machine.
const profileWait = 2 * time.Second

// prefetch begins to fetch what is likely to be read of an image, as the flags want it. A profile that cannot be reached
// is followed when it can be. The caller calls end before it closes the image.
func (im *images) prefetch(ctx context.Context, v *view.Image, found foundIndex, index locate.Location) (end func(), err error) {
	end = func() {}
	if im.flags.prefetch == prefetchNone {
		return end, nil
	}
	if at := im.profileOf(index); !at.IsZero() {
		p, err := im.readProfileNow(ctx, at, found.cached)
		switch {
		case errors.Is(err, store.ErrUnavailable):
			say("warning: going on without a profile until it can be read: %v", err)
			end = im.inBackground(func(ctx context.Context) { im.followLater(ctx, v, found.Index, index) })
		case err != nil:
			return end, err
		case p != nil:
			im.follow(v, p, found.Index, index)
		}
	}
	if im.flags.prefetch == prefetchAll {
		v.Fill(im.flags.prefetchRate)
	}
	return end, nil
}

func (im *images) follow(v *view.Image, p *profile.Profile, x *blob.Index, index locate.Location) {
	plan := p.Plan(x)
	im.log.Info("prefetching what a profile tells", "image", exportName(index), "chunks", len(plan.Chunks),
		"known", plan.Known, "guessed", plan.Guessed, "unknown", plan.Unknown)
	if plan.Known == 0 && plan.Unknown > 0 {
		im.log.Warn("the profile names no chunk of the image: it was recorded from another one, or one that was cut or hashed in another way",
			"image", exportName(index))
	}
	v.Follow(plan.Chunks)
}

// followLater reads a profile as soon as its location can be reached.
func (im *images) followLater(ctx context.Context, v *view.Image, x *blob.Index, index locate.Location) {
	var p *profile.Profile
	err := store.Policy{Patience: -1, First: time.Second, Max: time.Minute}.Do(ctx, func() (err error) {
		p, err = im.readProfile(ctx, im.profileOf(index))
		return err
	})
	switch {
	case ctx.Err() != nil:
	case err != nil:
		im.log.Warn("there is no profile", "image", exportName(index), "error", err)
	case p != nil:
		im.follow(v, p, x, index)
	}
}

// profileOf returns the location of the profile for an index, or none.
func (im *images) profileOf(index locate.Location) locate.Location {
	switch im.flags.profile.word {
	case profileNone:
		return locate.Location{}
	case profileAuto:
		at, err := profileOf(index)
		if err != nil {
			return locate.Location{} // a stream has none
		}
		return at
	}
	return im.flags.profile.at
}

// auto reports whether the profile is not asked for by name: then it is a help and no condition.
func (f profileFlag) auto() bool { return f.word == profileAuto }

// readProfileNow is readProfile that does not keep the start waiting. Where the index was not to be had, a profile
// beside it is not either.
func (im *images) readProfileNow(ctx context.Context, at locate.Location, away bool) (*profile.Profile, error) {
	if away && im.flags.profile.auto() {
		return nil, fmt.Errorf("reading profile %s: %w", at, store.ErrUnavailable)
	}
	now, cancel := context.WithTimeout(ctx, profileWait)
	defer cancel()
	p, err := im.readProfile(now, at)
	if err != nil && now.Err() != nil && ctx.Err() == nil {
		err = &store.UnavailableError{Err: err}
	}
	return p, err
}

// readProfile reads the profile at a location. One that is not asked for by name may be nil.
func (im *images) readProfile(ctx context.Context, at locate.Location) (*profile.Profile, error) {
	p, err := readProfile(ctx, at, im.stores.access)
	switch {
	case err == nil || !im.flags.profile.auto() || errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil:
		return p, err
	case !errors.Is(err, store.ErrNotFound) && !errors.Is(err, fs.ErrNotExist):
		say("warning: going on without a profile: %v", err)
	}
	return nil, nil
}

// profileOf returns the location of an index's profile: beside it, with another suffix.
func profileOf(index locate.Location) (locate.Location, error) {
	_, name, err := index.Split()
	if err != nil {
		return locate.Location{}, err
	}
	return index.Beside(strings.TrimSuffix(name, release.IndexSuffix) + profile.Suffix)
}

// readProfile reads a profile from a path or URL.
func readProfile(ctx context.Context, at locate.Location, a access) (*profile.Profile, error) {
	p, err := decodeProfile(ctx, at, a)
	if err != nil {
		return nil, fmt.Errorf("reading profile %s: %w", at, err)
	}
	return p, nil
}

func decodeProfile(ctx context.Context, at locate.Location, a access) (*profile.Profile, error) {
	if at.IsStream() {
		return profile.Decode(cancellable(ctx, os.Stdin))
	}
	r, name, err := a.file(at)
	if err != nil {
		return nil, err
	}
	defer closeReader(r)
	var p *profile.Profile
	err = store.Stream(ctx, r, name, profile.MaxSize, func(file io.Reader) error {
		p, err = profile.Decode(file)
		return err
	})
	return p, err
}

func newProfile(x *blob.Index, touches []view.Touch) *profile.Profile {
	reads := make([]profile.Read, len(touches))
	for i, t := range touches {
		reads[i] = profile.Read{Chunk: t.Chunk, After: t.After}
	}
	return profile.New(x, reads)
}
