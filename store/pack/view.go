package pack

import (
	"context"
	"errors"
	"fmt"

	"cairn/store"
)

// View presents packs as a casync chunk store: a store.Reader of the names of compressed chunks.
type View struct {
	dir  *Dir
	find Finder
	rest store.Reader // of the chunks in no pack; may be nil
}

var _ store.Reader = (*View)(nil)

// NewView returns a View of the chunks that find finds in packs of a directory. Other names are read from rest, which may
// be nil.
func NewView(dir *Dir, find Finder, rest store.Reader) *View { return &View{dir, find, rest} }

// String implements store.Reader.
func (v *View) String() string { return v.dir.from.String() }

// Read implements store.Reader.
func (v *View) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	at, err := v.findObject(name)
	switch {
	case errors.Is(err, store.ErrNotFound) && v.rest != nil:
		return v.rest.Read(ctx, name, dst, limit)
	case err != nil:
		return nil, err
	case at.Size > limit:
		return nil, fmt.Errorf("%v/%s has %d bytes: %w (%d)", v, name, at.Size, store.ErrTooLarge, limit)
	}
	return v.dir.ReadFile(ctx, at, dst)
}

// Stat implements store.Reader. It does not ask for packs, which may be absent.
func (v *View) Stat(ctx context.Context, name string) (int64, error) {
	at, err := v.findObject(name)
	if errors.Is(err, store.ErrNotFound) && v.rest != nil {
		return v.rest.Stat(ctx, name)
	}
	return at.Size, err
}

func (v *View) findObject(name string) (at Place, err error) {
	if err := store.CheckName(name); err != nil {
		return at, err
	}
	d, packed, is := store.ChunkObject(name)
	at, ok := v.find(d)
	if !is || !packed || !ok {
		return at, fmt.Errorf("%v/%s is in no pack: %w", v, name, store.ErrNotFound)
	}
	return at, nil
}
