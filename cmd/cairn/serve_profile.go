package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"cairn/blob"
	"cairn/blob/profile"
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
	return locationFlag{&f.at}.Set(text)
}

// prefetch begins to fetch what is likely to be read of an image, as the flags want it.
func (im *images) prefetch(ctx context.Context, v *view.Image, x *blob.Index, index locate.Location) error {
	if im.flags.prefetch == prefetchNone {
		return nil
	}
	p, err := im.profile(ctx, index)
	if err != nil {
		return err
	}
	if p != nil {
		plan := p.Plan(x)
		im.log.Info("prefetching what a profile tells", "image", exportName(index), "chunks", len(plan.Chunks),
			"known", plan.Known, "guessed", plan.Guessed, "unknown", plan.Unknown)
		v.Follow(plan.Chunks)
	}
	if im.flags.prefetch == prefetchAll {
		v.Fill(im.flags.prefetchRate)
	}
	return nil
}

// profile is the profile of an index, or nil. One that was not asked for by name is a help and no condition.
func (im *images) profile(ctx context.Context, index locate.Location) (*profile.Profile, error) {
	switch f := im.flags.profile; f.word {
	case profileNone:
		return nil, nil
	case profileAuto:
		return im.profileBeside(ctx, index), nil
	}
	return readProfile(ctx, im.flags.profile.at, im.stores.access)
}

func (im *images) profileBeside(ctx context.Context, index locate.Location) *profile.Profile {
	at, err := profileOf(index)
	if err != nil {
		return nil // a stream has none
	}
	p, err := readProfile(ctx, at, im.stores.access)
	switch {
	case err == nil:
		return p
	case !errors.Is(err, store.ErrNotFound) && !errors.Is(err, fs.ErrNotExist):
		say("warning: going on without a profile: %v", err)
	}
	return nil
}

// profileOf returns the location of an index's profile: beside it, with another suffix.
func profileOf(index locate.Location) (locate.Location, error) {
	_, name, err := index.Split()
	if err != nil {
		return locate.Location{}, err
	}
	return index.Beside(strings.TrimSuffix(name, indexSuffix) + profile.Suffix)
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
	r, name, err := a.file(at)
	if err != nil {
		return nil, err
	}
	defer closeReader(r)
	data, err := r.Read(ctx, name, nil, profile.MaxSize)
	if err != nil {
		return nil, err
	}
	return profile.Decode(bytes.NewReader(data))
}

func newProfile(x *blob.Index, touches []view.Touch) *profile.Profile {
	reads := make([]profile.Read, len(touches))
	for i, t := range touches {
		reads[i] = profile.Read{Chunk: t.Chunk, After: t.After}
	}
	return profile.New(x, reads)
}
