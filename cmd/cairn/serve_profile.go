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

// prefetch begins to fetch what is likely to be read of an image, as the flags want it.
func (im *images) prefetch(ctx context.Context, v *view.Image, x *blob.Index, index string) error {
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
func (im *images) profile(ctx context.Context, index string) (*profile.Profile, error) {
	switch im.flags.profile {
	case profileNone:
		return nil, nil
	case profileAuto:
		return im.profileBeside(ctx, index), nil
	}
	return readProfile(ctx, im.flags.profile, im.stores.access)
}

func (im *images) profileBeside(ctx context.Context, index string) *profile.Profile {
	location := profileLocation(index)
	if location == "" {
		return nil
	}
	p, err := readProfile(ctx, location, im.stores.access)
	switch {
	case err == nil:
		return p
	case !errors.Is(err, store.ErrNotFound) && !errors.Is(err, fs.ErrNotExist):
		say("warning: going on without a profile: %v", err)
	}
	return nil
}

// profileLocation is where the profile of an index lies: beside it, with another suffix. The query of a URL
// stays, since it may be what opens the door.
func profileLocation(index string) string {
	if index == "-" {
		return ""
	}
	at, query := index, ""
	if strings.Contains(index, "://") {
		if n := strings.IndexAny(index, "?#"); n >= 0 {
			at, query = index[:n], index[n:]
		}
	}
	return strings.TrimSuffix(at, ".caibx") + profile.Suffix + query
}

// readProfile reads a profile from a path or URL.
func readProfile(ctx context.Context, location string, a access) (*profile.Profile, error) {
	p, err := decodeProfile(ctx, location, a)
	if err != nil {
		return nil, fmt.Errorf("reading profile %s: %w", locate.Public(location), err)
	}
	return p, nil
}

func decodeProfile(ctx context.Context, location string, a access) (*profile.Profile, error) {
	r, name, err := a.file(location)
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
