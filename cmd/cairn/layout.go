package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/internal/plaintext"
	"cairn/store"
	"cairn/store/gcroot"
	"cairn/store/locate"
	"cairn/store/pack"
)

// The values of --layout.
const (
	layoutChunks = "chunks"
	layoutPacks  = "packs"
	layoutBoth   = "both"
)

// layout holds the flags for the objects in which chunks are published.
type layout struct {
	layout   string
	packSize int64
	profile  locate.Location
}

func (f *layout) addFlags(c *cobra.Command) {
	f.layout, f.packSize = layoutChunks, pack.DefaultSize
	c.Flags().Var(choiceFlag(&f.layout, layoutChunks, layoutPacks, layoutBoth), "layout",
		"`how` to store new chunks: chunks (an object for each), packs (many in one object), or both")
	c.Flags().Var(limitFlag(&f.packSize), "pack-size",
		fmt.Sprintf("largest `size` of a pack, %s to %s", plaintext.Size(pack.MinSize), plaintext.Size(pack.MaxSize)))
	c.Flags().Var(locationFlag(&f.profile), "profile",
		"`file` with a boot profile, whose chunks are in packs of their own (default: NAME.caprf beside NAME.caibx, if it exists)")
	addCheck(c, func([]string) error {
		switch {
		case !f.packs() && (c.Flags().Changed("pack-size") || c.Flags().Changed("profile")):
			return errors.New("--pack-size and --profile are about packs: add --layout packs or --layout both")
		case f.packSize < pack.MinSize || f.packSize > pack.MaxSize:
			return fmt.Errorf("--pack-size %d: want %d to %d", f.packSize, pack.MinSize, pack.MaxSize)
		case f.profile.IsStream():
			return errors.New("--profile: it is a file or a URL, not stdin; a file of that name is ./-")
		}
		return nil
	})
}

// packs reports whether packs are written.
func (f *layout) packs() bool { return f.layout == layoutPacks || f.layout == layoutBoth }

// openPacks opens the directory of the packs of a store, and reads the boot profile. It returns nil if no packs are
// written. end closes the directory.
func (f *layout) openPacks(ctx context.Context, a *access, of, index locate.Location, records *gcroot.Dir) (o *release.PackOptions, end func(), err error) {
	if !f.packs() {
		return nil, func() {}, nil
	}
	if records == nil {
		return nil, nil, hintError{usageError{fmt.Errorf("--layout %s: packs need gc roots beside the store %s, and its location cannot be listed or changed",
			f.layout, of)}, "publish through a location that can be listed: a directory, S3, SFTP"}
	}
	at, err := release.PackDir(of)
	if err != nil {
		return nil, nil, usageError{err}
	}
	access, err := a.openAccess()
	if err != nil {
		return nil, nil, err
	}
	o = &release.PackOptions{Size: f.packSize, Chunks: f.layout == layoutBoth}
	if o.First, err = f.readProfile(ctx, a, index); err != nil {
		return nil, nil, err
	}
	if o.To, err = access.OpenBucket(at); err != nil {
		return nil, nil, fmt.Errorf("opening %s: %w", at, usageIfUnsupported(err))
	}
	return o, func() { store.Close(o.To) }, nil
}

// readProfile reads the boot profile of --profile, or the one beside the index if there is one.
func (f *layout) readProfile(ctx context.Context, a *access, index locate.Location) (*profile.Profile, error) {
	at, named := f.profile, !f.profile.IsZero()
	if !named {
		var err error
		if at, err = release.ProfileOf(index); err != nil {
			return nil, nil //nolint:nilerr // nothing is beside a stream
		}
	}
	p, err := release.OpenProfile(ctx, a.releaseAccess(), at)
	switch {
	case err == nil || named || ctx.Err() != nil:
		return p, err
	case !release.IsAbsent(err):
		logf("warning: no chunks are packed first: %v", err)
	}
	return nil, nil
}

// announcePacks prints how many objects may come of an image of this size.
func (f *layout) announcePacks(size, chunk int64) {
	if !f.packs() || size < 0 {
		return
	}
	chunks := ""
	if f.layout == layoutBoth {
		chunks = fmt.Sprintf(", and about %s", plaintext.Count(size/chunk, "chunk"))
	}
	logf("writing at most about %s of %s%s, less what is there already",
		plaintext.Count(size/(f.packSize-chunk)+2, "pack"), plaintext.Size(f.packSize), chunks)
}
