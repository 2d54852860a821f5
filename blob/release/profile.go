package release

import (
	"context"
	"fmt"
	"io"
	"strings"

	"cairn/blob/profile"
	"cairn/store/locate"
)

// ProfileOf returns the location of an index's boot profile: NAME.caprf beside NAME.caibx.
func ProfileOf(index locate.Location) (locate.Location, error) {
	_, name, err := index.Split()
	if err != nil {
		return locate.Location{}, err
	}
	return index.Beside(strings.TrimSuffix(name, IndexSuffix) + profile.Suffix)
}

// OpenProfile reads and checks the profile at a location. Its errors are those of Open, except that an
// error about the content wraps profile.ErrInvalid.
func OpenProfile(ctx context.Context, a Access, at locate.Location) (p *profile.Profile, err error) {
	err = a.streamFile(ctx, at, profile.MaxSize, func(r io.Reader) error {
		p, err = profile.Decode(r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading profile %s: %w", at, err)
	}
	return p, nil
}
