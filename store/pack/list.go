package pack

import (
	"context"
	"errors"
	"fmt"

	"cairn/store"
)

// List lists the packs in a directory. One that cannot be listed is an errors.ErrUnsupported.
func List(ctx context.Context, dir store.Reader) (map[Pack]bool, error) {
	l, lists := store.As[store.Lister](dir)
	if !lists {
		return nil, fmt.Errorf("listing the packs in %v: %w", dir, errors.ErrUnsupported)
	}
	packs := map[Pack]bool{}
	for o, err := range l.List(ctx, "") {
		if err != nil {
			return nil, fmt.Errorf("listing the packs in %v: %w", dir, err)
		}
		if id, ok := ParseName(o.Name); ok {
			packs[Pack{ID: id, Size: o.Size}] = true
		}
	}
	return packs, ctx.Err()
}
