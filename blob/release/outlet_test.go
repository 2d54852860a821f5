package release_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/blob/release"
	"cairn/internal/openfile"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/storetest"
)

// bare hides all methods of a bucket except those of store.Bucket.
type bare struct{ store.Bucket }

// uncreating is a bucket whose service does not support creation.
type uncreating struct{ store.Bucket }

func (uncreating) Create(context.Context, string, []byte) error { return errors.ErrUnsupported }
func (uncreating) CheckCreate(context.Context) error            { return nil }

// TestCreateOnly: an existing index is kept, whether it is found before the work or after it. A service
// that cannot create is a NoCreateError.
func TestCreateOnly(t *testing.T) {
	b, x, create := new(mem.Bucket), newIndex(t, 1), release.OutletOptions{CreateOnly: true}
	open := func(b store.Bucket) (*release.Outlet, error) {
		return release.OutletIn(t.Context(), b, locate.Location{}, "x.caibx", create)
	}
	out, err := open(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Publish(t.Context(), x); err != nil {
		t.Errorf("publishing what is new = %v", err)
	}
	if err := out.Publish(t.Context(), newIndex(t, 2)); !errors.Is(err, store.ErrExists) {
		t.Errorf("publishing it again = %v, want ErrExists", err)
	}
	if data, err := b.Read(t.Context(), "x.caibx", nil, 1<<20); err != nil || !bytes.Equal(data, x.Encode()) {
		t.Errorf("the index that existed has changed: %v", err)
	}
	if _, err := open(b); !errors.Is(err, store.ErrExists) {
		t.Errorf("the early check = %v, want ErrExists", err)
	}
	if _, err := open(bare{b}); !isNoCreate(err) {
		t.Errorf("an outlet that cannot tell = %v, want a NoCreateError", err)
	}
	out, err = open(uncreating{new(mem.Bucket)})
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Publish(t.Context(), x); !isNoCreate(err) {
		t.Errorf("Publish where nothing can be created = %v, want a NoCreateError", err)
	}
}

func isNoCreate(err error) bool {
	_, is := errors.AsType[*release.NoCreateError](err)
	return is && errors.Is(err, errors.ErrUnsupported)
}

// TestUnreachable: an unavailable store is found before the work. A store that denies reads is
// accepted.
func TestUnreachable(t *testing.T) {
	for answer, refused := range map[error]bool{store.ErrUnavailable: true, store.ErrDenied: false} {
		b := new(mem.Bucket)
		hiding := statless{b, storetest.Faulty(b, storetest.Always, storetest.Fails(answer))}
		_, err := release.OutletIn(t.Context(), hiding, locate.Location{}, "x.caibx", release.OutletOptions{})
		if errors.Is(err, answer) != refused || (err != nil) != refused {
			t.Errorf("an outlet that answers %v: %v", answer, err)
		}
	}
}

// TestLocalOutlet: a replaced file keeps its attributes, and an unwritable location is found early.
func TestLocalOutlet(t *testing.T) {
	dir := t.TempDir()
	path, want := filepath.Join(dir, "x.caibx"), newIndex(t, 3)
	writeFile(t, path, []byte("old"))
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	out, err := release.OpenOutlet(t.Context(), locate.Access{}, locate.Path(path), release.OutletOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Publish(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	got, err := release.Open(t.Context(), release.Access{}, locate.Path(path))
	if err != nil || got.Digest() != want.Digest() {
		t.Errorf("what was published is read as %v, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o640 {
		t.Errorf("the mode is %v, %v, want 0640 as before", info.Mode(), err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := out.Publish(cancelled, newIndex(t, 4)); !errors.Is(err, context.Canceled) {
		t.Errorf("Publish of a cancelled job = %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("the directory has %v, %v", entries, err)
	}
	for _, bad := range []string{dir, filepath.Join(dir, "absent", "x.caibx")} {
		if _, err := release.OpenOutlet(t.Context(), locate.Access{}, locate.Path(bad), release.OutletOptions{}); err == nil {
			t.Errorf("OpenOutlet(%s) succeeds", bad)
		}
	}
}

// TestStreamOutlet: an index is written to an open file of the process or into a FIFO, which is then
// closed.
func TestStreamOutlet(t *testing.T) {
	x, path := newIndex(t, 3), filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan []byte, 1)
	go func() {
		data, _ := os.ReadFile(path)
		read <- data
	}()
	out, err := release.OpenOutlet(t.Context(), locate.Access{}, locate.Path(path), release.OutletOptions{})
	if err == nil {
		err = out.Publish(t.Context(), x)
	}
	if data := <-read; err != nil || !bytes.Equal(data, x.Encode()) {
		t.Errorf("Publish to a FIFO = %v, %d bytes come", err, len(data))
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	open := locate.Path(fmt.Sprint("/dev/fd/", f.Fd()))
	if _, err := release.OpenOutlet(t.Context(), locate.Access{}, open, release.OutletOptions{}); !errors.Is(err, openfile.ErrReadOnly) {
		t.Errorf("an outlet that is open for reading only = %v", err)
	}
}
