package storetest

import (
	"context"

	"cairn/blob"
	"cairn/store"
)

// GetterFunc is a store.Getter that calls the function once for each chunk, all concurrently.
type GetterFunc func(ctx context.Context, d blob.Digest, dst []byte) error

// Get implements store.Getter.
func (g GetterFunc) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	store.Each(len(wants), len(wants), func(i int) { done(i, g(ctx, wants[i].Digest, wants[i].Dst)) })
}
