package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/blob/release"
	"cairn/nbd"
	"cairn/store/locate"
)

// fakeImage is an image whose "index" is a file with its text.
type fakeImage struct{ text string }

func (d fakeImage) Size() int64 { return int64(len(d.text)) }
func (d fakeImage) ReadAt(_ context.Context, p []byte, o int64) error {
	copy(p, d.text[o:])
	return nil
}

// directoryRig is a directory whose index files are texts, with the open images.
type directoryRig struct {
	*directory
	t       *testing.T
	isOpen  map[string]int // how often each text is open
	failing string         // a text whose image cannot be opened
	logged  bytes.Buffer
}

func newDirectoryRig(t *testing.T) *directoryRig {
	r := &directoryRig{t: t, isOpen: make(map[string]int)}
	d, err := openDirectory(t.TempDir(), r.openFile, slog.New(slog.NewTextHandler(&r.logged, nil)))
	if err != nil {
		t.Fatal(err)
	}
	r.directory = d
	return r
}

// openFile is an opener. It is called with the directory's lock held, as is the function it returns.
func (r *directoryRig) openFile(_ context.Context, at locate.Location) (*nbd.Export, func(), error) {
	path, _ := at.Local()
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case !strings.HasSuffix(string(text), "end"):
		return nil, nil, errors.New("it is cut short")
	case string(text) == r.failing:
		return nil, nil, errors.New("its store is away")
	}
	name := nameOf(at)
	r.isOpen[string(text)]++
	return &nbd.Export{Name: name, Canonical: name + "@" + string(text), Device: fakeImage{string(text)}},
		func() { r.isOpen[string(text)]-- }, nil
}

func (r *directoryRig) write(name, text string) {
	r.t.Helper()
	path := filepath.Join(r.path, name+release.IndexSuffix)
	if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
		r.t.Fatal(err)
	}
}

// get opens an export, which must be the image with this text; "" wants it unknown.
func (r *directoryRig) get(name, want string) *nbd.Export {
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
func (r *directoryRig) wantDescribed(name, canonical string) {
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

func (r *directoryRig) wantOpen(want map[string]int) {
	r.t.Helper()
	got := make(map[string]int)
	for text, n := range r.isOpen {
		if n != 0 {
			got[text] = n
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("open are:\n%s", diff)
	}
}

func (r *directoryRig) names() []string {
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

func TestDirectory(t *testing.T) {
	r := newDirectoryRig(t)
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

	if err := os.Remove(filepath.Join(r.path, "a.caibx")); err != nil {
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
	r.wantOpen(map[string]int{}) // Describe opens nothing
	r.get("b", "b end").Release()
	r.wantOpen(map[string]int{"b end": 1}) // warm, for the next client
	r.shut()
	r.wantOpen(map[string]int{})
}

// TestDirectoryBroken: a file that is not a whole index is logged once, and its last version stays.
func TestDirectoryBroken(t *testing.T) {
	r := newDirectoryRig(t)
	r.write("a", "1 en")
	r.get("a", "")
	if names := r.names(); names != nil {
		t.Errorf("a broken index is listed: %q", names)
	}
	r.names()
	if n := strings.Count(r.logged.String(), "an index is ignored"); n != 1 {
		t.Errorf("the log tells %d times of the broken index:\n%s", n, r.logged.String())
	}
	r.write("a", "1 end")
	first := r.get("a", "1 end")
	r.write("a", "2 e")
	r.get("a", "1 end").Release()
	r.write("a", "2 end")
	r.get("a", "2 end").Release()
	first.Release()
	r.wantOpen(map[string]int{"2 end": 1})
	if err := os.Chtimes(filepath.Join(r.path, "a.caibx"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	r.get("a", "2 end").Release() // touched, and the same
	r.wantOpen(map[string]int{"2 end": 1})
}

// TestDirectoryNames: clients choose names, and none leads out of the directory.
func TestDirectoryNames(t *testing.T) {
	r := newDirectoryRig(t)
	inner := filepath.Join(r.path, "in")
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(filepath.Dir(r.path), "out.caibx"), filepath.Join(inner, "x.caibx"), filepath.Join(r.path, ".hidden.caibx")} {
		if err := os.WriteFile(path, []byte("1 end"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(r.path, "dir.caibx"), 0o700); err != nil {
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

// TestDirectoryReplacedMeanwhile: a name with a digest never stands for another image, not even when the file is replaced
// between the look at it and its opening.
func TestDirectoryReplacedMeanwhile(t *testing.T) {
	r := newDirectoryRig(t)
	r.write("a", "1 end")
	r.names()
	open := r.directory.open
	r.directory.open = func(ctx context.Context, at locate.Location) (*nbd.Export, func(), error) {
		r.write("a", "2 end")
		return open(ctx, at)
	}
	r.get("a@1 end", "")
	r.get("a", "2 end").Release()
	r.shut()
	r.wantOpen(map[string]int{})
}

// TestDirectoryBack: an image that comes back while clients have it open is the same one, and found as long as one of them
// does.
func TestDirectoryBack(t *testing.T) {
	r := newDirectoryRig(t)
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

// TestDirectoryFailure: an image that cannot be opened is an error for its client only, and is tried again.
func TestDirectoryFailure(t *testing.T) {
	r := newDirectoryRig(t)
	r.write("a", "1 end")
	r.write("b", "b end")
	r.names()
	first := r.get("b", "b end")
	r.failing = "1 end"
	if e, err := r.Open(t.Context(), "a"); err == nil || errors.Is(err, nbd.ErrUnknown) {
		t.Errorf("Open of an image whose store is away = %v, %v", e, err)
	}
	r.get("b", "b end").Release()
	r.wantDescribed("a", "a@1 end")
	r.failing = ""
	r.get("a", "1 end").Release()
	first.Release()
	r.shut()
	r.wantOpen(map[string]int{})
}

// TestDirectoryLimit: files beyond the limit are no exports, by whatever way a client asks.
func TestDirectoryLimit(t *testing.T) {
	r := newDirectoryRig(t)
	for i := range maxFiles + 1 {
		if err := os.WriteFile(filepath.Join(r.path, fmt.Sprintf("%04d.caibx", i)), []byte("1 end"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	last := fmt.Sprintf("%04d", maxFiles)
	if n := len(r.names()); n != maxFiles {
		t.Errorf("%d files are exports, want %d", n, maxFiles)
	}
	r.get(last, "")
	r.get("0007", "1 end").Release()
	if err := os.Remove(filepath.Join(r.path, "0000.caibx")); err != nil {
		t.Fatal(err)
	}
	if n := len(r.names()); n != maxFiles {
		t.Errorf("%d files are exports, want %d", n, maxFiles)
	}
	r.get(last, "1 end").Release()
}

// TestDirectoryEnded: a scan whose context has ended forgets nothing and refuses no file.
func TestDirectoryEnded(t *testing.T) {
	r := newDirectoryRig(t)
	r.write("a", "1 end")
	open := r.directory.open
	r.directory.open = func(ctx context.Context, _ locate.Location) (*nbd.Export, func(), error) {
		return nil, nil, ctx.Err()
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := r.All(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("All = %v", err)
	}
	r.directory.open = open
	r.get("a", "1 end").Release()
	if text := r.logged.String(); strings.Contains(text, "ignored") {
		t.Errorf("logged is:\n%s", text)
	}
}

// TestDirectoryConcurrent: clients come and go while files are replaced, rolled back and removed. What a client has
// open stays open, and nothing is left open at the end.
func TestDirectoryConcurrent(t *testing.T) {
	r := newDirectoryRig(t)
	r.write("a", "1 end")
	var clients, publisher sync.WaitGroup
	stop := make(chan struct{})
	publisher.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			r.write("a", fmt.Sprintf("%d end", i%3))
			if i%7 == 0 {
				_ = os.Remove(filepath.Join(r.path, "a.caibx"))
			}
		}
	})
	for range 8 {
		clients.Go(func() {
			for range 100 {
				e, err := r.Open(t.Context(), "a")
				if errors.Is(err, nbd.ErrUnknown) || errors.Is(err, fs.ErrNotExist) {
					continue // it is removed
				}
				if err != nil {
					t.Error(err)
					return
				}
				again, err := r.Open(t.Context(), e.Canonical)
				if err != nil || again.Canonical != e.Canonical {
					t.Errorf("Open(%q), which is in use: %v, %v", e.Canonical, again, err)
				} else {
					again.Release()
				}
				r.mu.Lock()
				if n := r.isOpen[e.Device.(fakeImage).text]; n != 1 {
					t.Errorf("%s, which is in use, is open %d times", e.Canonical, n)
				}
				r.mu.Unlock()
				e.Release()
				if _, err := r.All(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	clients.Wait()
	close(stop)
	publisher.Wait()
	r.shut()
	r.wantOpen(map[string]int{})
	if len(r.leased) > 0 {
		t.Errorf("leased are %v", r.leased)
	}
}

// TestDirectoryReplacedInUse: a version in use is found under its canonical name at the first look after its file was
// replaced, too.
func TestDirectoryReplacedInUse(t *testing.T) {
	r := newDirectoryRig(t)
	r.write("a", "1 end")
	first := r.get("a", "1 end")
	r.write("a", "2 end")
	r.get("a@1 end", "1 end").Release()
	if err := os.Remove(filepath.Join(r.path, "a.caibx")); err != nil {
		t.Fatal(err)
	}
	r.get("a@1 end", "1 end").Release()
	first.Release()
	r.get("a@1 end", "")
}

// TestDirectoryRun: the directory is scanned without a client, until the context ends.
func TestDirectoryRun(t *testing.T) {
	r := newDirectoryRig(t)
	r.write("a", "1 end")
	ctx, cancel := context.WithCancel(t.Context())
	open := r.directory.open
	r.directory.open = func(ctx context.Context, at locate.Location) (*nbd.Export, func(), error) {
		defer cancel()
		return open(ctx, at)
	}
	r.scanRepeatedly(ctx)
	if text := r.logged.String(); !strings.Contains(text, "an index is published") {
		t.Errorf("logged is:\n%s", text)
	}
	if _, err := openDirectory(filepath.Join(r.path, "none"), r.openFile, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a directory that is not there is opened")
	}
}
