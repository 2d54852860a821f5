package release

import (
	"context"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/store/locate"
	"cairn/store/pack"
)

// OpenMap reads and checks the map of packs at a location, which must be for the image of x. Its errors are those of
// Open, except that an error about the content wraps pack.ErrInvalid.
func OpenMap(ctx context.Context, a Access, at locate.Location, x *blob.Index) (m *pack.Map, err error) {
	err = a.streamFile(ctx, at, pack.MaxMapSize(x.Len()), func(r io.Reader) error {
		m, err = pack.DecodeMap(r, x)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the map of packs %s: %w", at, err)
	}
	return m, nil
}
