package release_test

import (
	"errors"
	"path/filepath"
	"testing"

	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/store"
	"cairn/store/locate"
)

// TestOpenProfile: a profile lies beside its index and is checked. On this machine it needs no
// credentials.
func TestOpenProfile(t *testing.T) {
	dir := t.TempDir()
	at, err := release.ProfileOf(locate.Path(filepath.Join(dir, "v2.caibx")))
	if err != nil || at.String() != filepath.Join(dir, "v2.caprf") {
		t.Fatalf("ProfileOf = %v, %v", at, err)
	}
	access := release.Access{Locate: func() (locate.Access, error) { return locate.Access{}, errors.New("no credentials") }}
	if _, err := release.OpenProfile(t.Context(), access, at); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an absent profile: %v", err)
	}
	writeFile(t, at.String(), []byte("no profile"))
	if _, err := release.OpenProfile(t.Context(), access, at); !errors.Is(err, profile.ErrInvalid) {
		t.Errorf("an invalid profile: %v", err)
	}
	x := newIndex(t, 10)
	writeFile(t, at.String(), profile.New(x, nil).Encode())
	if p, err := release.OpenProfile(t.Context(), access, at); err != nil || p.Summarize(nil).Index != x.Digest() {
		t.Errorf("OpenProfile = %v, %v", p, err)
	}
}
