package pack

import (
	"context"
	"fmt"

	"cairn/store"
)

// View presents packs as a casync chunk store: a store.Reader of the names of compressed chunks.
type View struct {
	dir  *Dir
	find Finder
}

var _ store.Reader = (*View)(nil)

// NewView returns a View of the chunks that find finds in packs of a directory.
func NewView(dir *Dir, find Finder) *View { return &View{dir, find} }

// String implements store.Reader.
func (v *View) String() string { return v.dir.from.String() }

// Read implements store.Reader.
func (v *View) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	at, err := v.findObject(name)
	switch {
	case err != nil:
		return nil, err
	case at.Size > limit:
		return nil, fmt.Errorf("%v/%s has %d bytes: %w (%d)", v, name, at.Size, store.ErrTooLarge, limit)
	}
	return v.dir.ReadFile(ctx, at, dst)
}

// Stat implements store.Reader. It sends no request: the pack may be absent.
func (v *View) Stat(_ context.Context, name string) (int64, error) {
	at, err := v.findObject(name)
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
