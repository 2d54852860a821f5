package release

import (
	"context"
	"fmt"
	"io"

	"cairn/blob/profile"
	"cairn/store/locate"
)

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
