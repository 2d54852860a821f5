package release

import (
	"context"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/pack"
)

// OpenMap is ReadMap of the map at a location.
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

// ReadMap reads the map of packs of the image of x from the directory of its index. Absence is store.ErrNotFound, a map
// that is invalid or for another image is pack.ErrInvalid.
func ReadMap(ctx context.Context, dir store.Reader, name string, x *blob.Index) (m *pack.Map, err error) {
	limit := pack.MaxMapSize(x.Len())
	err = store.StreamRange(ctx, dir, name, 0, limit, func(_ store.Part, r io.Reader) error {
		m, err = pack.DecodeMap(io.LimitReader(r, limit), x)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading the map of packs %s in %v: %w", name, dir, err)
	}
	return m, nil
}
