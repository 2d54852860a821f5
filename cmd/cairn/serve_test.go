package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/nbd"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/supply"
)

// fakeImage is an image whose "index" is a file with its text.
type fakeImage struct{ text string }

func (d fakeImage) Size() int64 { return int64(len(d.text)) }
func (d fakeImage) ReadAt(_ context.Context, p []byte, o int64) error {
	copy(p, d.text[o:])
	return nil
}

// watchRig is a watched directory, with what is open in it.
type watchRig struct {
	*watch
	t    *testing.T
	open map[string]int // by text
	log  bytes.Buffer
}

func newWatchRig(t *testing.T) *watchRig {
	r := &watchRig{t: t, open: make(map[string]int)}
	w, err := newWatch(t.TempDir(), r.openFile, slog.New(slog.NewTextHandler(&r.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	r.watch = w
	return r
}

// openFile is called with the watch's lock held, as is what it returns.
func (r *watchRig) openFile(_ context.Context, at locate.Location) (*nbd.Export, func(), error) {
	path, _ := at.Local()
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	if !strings.HasSuffix(string(text), "end") {
		return nil, nil, errors.New("it is cut short")
	}
	name := exportName(at)
	r.open[string(text)]++
	return &nbd.Export{Name: name, Canonical: name + "@" + string(text), Device: fakeImage{string(text)}},
		func() { r.open[string(text)]-- }, nil
}

func (r *watchRig) write(name, text string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name+release.IndexSuffix)
	if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
		r.t.Fatal(err)
	}
}

// get opens an export, which must be the image with this text; "" wants it unknown.
func (r *watchRig) get(name, want string) *nbd.Export {
	r.t.Helper()
	e, err := r.Open(r.t.Context(), name)
	if want == "" {
		if !errors.Is(err, nbd.ErrUnknown) {
			r.t.Errorf("Open(%q) = %+v, %v, want it unknown", name, e, err)
		}
		return nil
	}
	if err != nil {
		r.t.Fatalf("Open(%q): %v", name, err)
	}
	if got := e.Device.(fakeImage).text; got != want {
		r.t.Errorf("Open(%q) is %q, want %q", name, got, want)
	}
	return e
}

// wantDescribed says which image clients are told of that ask about a name.
func (r *watchRig) wantDescribed(name, canonical string) {
	r.t.Helper()
	e, err := r.Describe(r.t.Context(), name)
	if err != nil {
		r.t.Fatalf("Describe(%q): %v", name, err)
	}
	_, text, _ := strings.Cut(canonical, "@")
	if e.Canonical != canonical || e.Device.Size() != int64(len(text)) || e.Release != nil {
		r.t.Errorf("Describe(%q) = %+v, want %s", name, e, canonical)
	}
}

func (r *watchRig) wantOpen(want map[string]int) {
	r.t.Helper()
	got := make(map[string]int)
	for text, n := range r.open {
		if n != 0 {
			got[text] = n
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("open are:\n%s", diff)
	}
}

func (r *watchRig) names() []string {
	r.t.Helper()
	all, err := r.All(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	var names []string
	for _, l := range all {
		names = append(names, l.Name)
	}
	return names
}

func TestWatch(t *testing.T) {
	r := newWatchRig(t)
	r.get("a", "")
	r.get("", "")
	r.write("a", "1 end")
	old := r.get("a", "1 end")
	r.get("", "1 end").Release()

	r.write("a", "2 end")
	r.write("b", "b end")
	newer := r.get("a", "2 end")
	r.get("", "") // there are two
	if diff := cmp.Diff([]string{"a", "b"}, r.names()); diff != "" {
		t.Error(diff)
	}
	r.get("a@1 end", "1 end").Release() // it is in use
	r.wantDescribed("a@1 end", "a@1 end")
	r.wantDescribed("a", "a@2 end")
	r.get("a@2 end", "2 end").Release()
	r.get("b@2 end", "")
	r.wantOpen(map[string]int{"1 end": 1, "2 end": 1})
	old.Release()
	old.Release() // once more does no harm
	r.wantOpen(map[string]int{"2 end": 1})
	r.get("a@1 end", "")

	if err := os.Remove(filepath.Join(r.dir, "a.caibx")); err != nil {
		t.Fatal(err)
	}
	r.get("a", "")
	if diff := cmp.Diff([]string{"b"}, r.names()); diff != "" {
		t.Error(diff)
	}
	r.get("a@2 end", "2 end").Release()
	newer.Release()
	r.get("a@2 end", "")
	r.wantOpen(map[string]int{})

	r.wantDescribed("b", "b@b end")
	r.wantDescribed("b@b end", "b@b end")
	r.wantDescribed("", "b@b end")
	r.wantOpen(map[string]int{}) // who only asks opens nothing
	r.get("b", "b end").Release()
	r.wantOpen(map[string]int{"b end": 1}) // warm, for the next client
	r.shut()
	r.wantOpen(map[string]int{})
}

// TestWatchBroken: a file that is no whole index is told of once, and what was served before stays.
func TestWatchBroken(t *testing.T) {
	r := newWatchRig(t)
	r.write("a", "1 en")
	r.get("a", "")
	if names := r.names(); names != nil {
		t.Errorf("a broken index is listed: %q", names)
	}
	r.names()
	if n := strings.Count(r.log.String(), "an index is ignored"); n != 1 {
		t.Errorf("the log tells %d times of the broken index:\n%s", n, r.log.String())
	}
	r.write("a", "1 end")
	first := r.get("a", "1 end")
	r.write("a", "2 e")
	r.get("a", "1 end").Release()
	r.write("a", "2 end")
	r.get("a", "2 end").Release()
	first.Release()
	r.wantOpen(map[string]int{"2 end": 1})
	if err := os.Chtimes(filepath.Join(r.dir, "a.caibx"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	r.get("a", "2 end").Release() // touched, and the same
	r.wantOpen(map[string]int{"2 end": 1})
}

// TestWatchNames: clients choose names, and none leads out of the directory.
func TestWatchNames(t *testing.T) {
	r := newWatchRig(t)
	inner := filepath.Join(r.dir, "in")
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(filepath.Dir(r.dir), "out.caibx"), filepath.Join(inner, "x.caibx"), filepath.Join(r.dir, ".hidden.caibx")} {
		if err := os.WriteFile(path, []byte("1 end"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(r.dir, "dir.caibx"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../out", "in/x", ".hidden", "dir", "..", "/", "a\x00", strings.Repeat("x", 4096), "@", "x@"} {
		r.get(name, "")
	}
	r.write("\xff", "1 end")
	r.get("\xff", "") // the protocol has names of UTF-8 only
	if names := r.names(); names != nil {
		t.Errorf("there are %q", names)
	}
	r.write("v@2", "1 end")
	r.get("v@2", "1 end").Release()
	r.get("v@2@1 end", "1 end").Release()
}

// TestWatchReplacedMeanwhile: a name with a digest never stands for another image, not even when the file is replaced
// between the look at it and its opening.
func TestWatchReplacedMeanwhile(t *testing.T) {
	r := newWatchRig(t)
	r.write("a", "1 end")
	r.names()
	open := r.watch.open
	r.watch.open = func(ctx context.Context, at locate.Location) (*nbd.Export, func(), error) {
		r.write("a", "2 end")
		return open(ctx, at)
	}
	r.get("a@1 end", "")
	r.get("a", "2 end").Release()
	r.shut()
	r.wantOpen(map[string]int{})
}

// TestWatchBack: an image that comes back while clients have it open is the same one, and found as long as one of them
// does.
func TestWatchBack(t *testing.T) {
	r := newWatchRig(t)
	r.write("a", "1 end")
	first := r.get("a", "1 end")
	r.write("a", "2 end")
	r.get("a", "2 end").Release()
	r.write("a", "1 end")
	second := r.get("a", "1 end")
	r.wantOpen(map[string]int{"1 end": 1})
	r.write("a", "3 end")
	r.get("a", "3 end").Release()
	first.Release()
	r.get("a@1 end", "1 end").Release()
	second.Release()
	r.get("a@1 end", "")
	r.wantOpen(map[string]int{"3 end": 1})
	r.shut()
	r.wantOpen(map[string]int{})
}

// TestStoreNames: no two stores have one name in the metrics, also when only their secrets tell them apart.
func TestStoreNames(t *testing.T) {
	var s seenStores
	names := make(map[string]bool)
	for _, token := range []string{"a", "b", "c", "d"} {
		at, err := locate.Parse("https://images.example.com/default.castr?token=" + token)
		if err != nil {
			t.Fatal(err)
		}
		s.add([]locate.Location{at}, blob.SHA512_256, supply.New(store.Policy{}, supply.Options{}))
	}
	for _, st := range s.list() {
		if names[st.name] || strings.Contains(st.name, "token") {
			t.Errorf("a store is named %q, besides %v", st.name, names)
		}
		names[st.name] = true
	}
}

func TestChain(t *testing.T) {
	r := newWatchRig(t)
	r.write("a", "1 end")
	r.write("b", "b end")
	static, err := nbd.NewStatic(&nbd.Export{Name: "a", Description: "fixed", Device: fakeImage{"fixed"}})
	if err != nil {
		t.Fatal(err)
	}
	c := chain{static, r}
	for name, want := range map[string]string{"": "fixed", "a": "fixed", "b": "b end"} {
		e, err := c.Open(t.Context(), name)
		if err != nil || e.Device.(fakeImage).text != want {
			t.Errorf("Open(%q) = %+v, %v, want %q", name, e, err, want)
		}
		if d, err := c.Describe(t.Context(), name); err != nil || d.Name != e.Name || d.Device.Size() != int64(len(want)) {
			t.Errorf("Describe(%q) = %+v, %v, want %q", name, d, err, want)
		}
	}
	all, err := c.All(t.Context())
	if diff := cmp.Diff([]nbd.Listing{{Name: "a", Description: "fixed"}, {Name: "b"}}, all); diff != "" || err != nil {
		t.Errorf("All: %v\n%s", err, diff)
	}
}
