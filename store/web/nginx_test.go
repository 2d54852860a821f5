package web_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"cairn/store"
	"cairn/store/storetest"
	"cairn/store/web"
)

func TestNginx(t *testing.T) {
	storetest.Test(t, func(t *testing.T) (store.Reader, storetest.Put) {
		dir := t.TempDir()
		put := func(name string, data []byte) {
			path := filepath.Join(dir, "the store", name)
			err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644))
			if err != nil {
				t.Fatal(err)
			}
		}
		return newReader(t, storetest.Nginx(t, dir)+"/the%20store/?ignored=by-nginx", web.Options{}), put
	})
}

// TestNginxDenies: it does so for directories.
func TestNginxDenies(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "abcd"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := newReader(t, storetest.Nginx(t, dir), web.Options{})
	if _, err := r.Read(t.Context(), "abcd", nil, 10); !errors.Is(err, store.ErrDenied) {
		t.Errorf("Read = %v, want ErrDenied", err)
	}
}

func newReader(t *testing.T, base string, o web.Options) *web.Reader {
	t.Helper()
	r, err := web.New(base, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
