package release_test

import (
	"errors"
	"path/filepath"
	"testing"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/pack"
)

// TestReadMap: a map lies beside its index and is checked.
func TestReadMap(t *testing.T) {
	dir := t.TempDir()
	x, b := newIndex(t, 10), new(mem.Bucket)
	at, err := release.MapOf(locate.Path(filepath.Join(dir, "v2.caibx")), x.Digest())
	if want := filepath.Join(dir, "v2."+x.Digest().String()[:16]+".camap"); err != nil || at.String() != want {
		t.Fatalf("MapOf = %v, %v, want %s", at, err, want)
	}
	if _, err := release.ReadMap(t.Context(), b, "v2.camap", x); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an absent map: %v", err)
	}
	m, err := pack.NewMap(x, func(blob.Digest) (pack.Place, bool) { return pack.Place{}, false })
	if err != nil {
		t.Fatal(err)
	}
	file, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write := func(data []byte) {
		t.Helper()
		if err := b.Write(t.Context(), "v2.camap", data); err != nil {
			t.Fatal(err)
		}
	}
	write(file)
	if _, err := release.ReadMap(t.Context(), b, "v2.camap", x); err != nil {
		t.Errorf("ReadMap: %v", err)
	}
	if _, err := release.ReadMap(t.Context(), b, "v2.camap", newIndex(t, 11)); !errors.Is(err, pack.ErrInvalid) {
		t.Errorf("a map of another index: %v", err)
	}
	for name, data := range map[string][]byte{"no map": []byte("no map"), "a longer one": append(file, 0)} {
		write(data)
		if _, err := release.ReadMap(t.Context(), b, "v2.camap", x); !errors.Is(err, pack.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
