package release_test

import (
	"errors"
	"path/filepath"
	"testing"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/pack"
)

// TestOpenMap: a map lies beside its index and is checked.
func TestOpenMap(t *testing.T) {
	dir := t.TempDir()
	at, err := release.MapOf(locate.Path(filepath.Join(dir, "v2.caibx")))
	if err != nil || at.String() != filepath.Join(dir, "v2.camap") {
		t.Fatalf("MapOf = %v, %v", at, err)
	}
	x := newIndex(t, 10)
	if _, err := release.OpenMap(t.Context(), release.Access{}, at, x); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an absent map: %v", err)
	}
	writeFile(t, at.String(), []byte("no map"))
	if _, err := release.OpenMap(t.Context(), release.Access{}, at, x); !errors.Is(err, pack.ErrInvalid) {
		t.Errorf("an invalid map: %v", err)
	}
	m, err := pack.NewMap(x, func(blob.Digest) (pack.Place, bool) { return pack.Place{}, false })
	if err != nil {
		t.Fatal(err)
	}
	file, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, at.String(), file)
	if _, err := release.OpenMap(t.Context(), release.Access{}, at, x); err != nil {
		t.Errorf("OpenMap: %v", err)
	}
	if _, err := release.OpenMap(t.Context(), release.Access{}, at, newIndex(t, 11)); !errors.Is(err, pack.ErrInvalid) {
		t.Errorf("a map of another index: %v", err)
	}
}
