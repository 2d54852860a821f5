package export

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// directoryRig is a directory with texts as index files. It counts the open images.
type directoryRig struct {
	*directory
	t       *testing.T
	failing string // text whose image cannot be opened
	logged  syncLog

	opened sync.Mutex     // guards the field below
	isOpen map[string]int // how often each text is open
}

func newDirectoryRig(t *testing.T) *directoryRig {
	r := &directoryRig{t: t, isOpen: make(map[string]int)}
	d, err := openDirectory(t.TempDir(), r.readText, imageLimits{idle: 100}, r.logged.logger())
	if err != nil {
		t.Fatal(err)
	}
	r.directory = d
	return r
}

// readText is an indexReader. Each image takes a byte of memory.
func (r *directoryRig) readText(at locate.Location, file io.Reader) (*unopened, error) {
	text, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(string(text), "end") {
		return nil, errors.New("it is cut short")
	}
	name := nameOf(at)
	e := nbd.Export{Name: name, Canonical: name + "@" + string(text), Device: fakeImage{string(text)}}
	open := func(_ context.Context, onDisk bool) (*nbd.Export, func(), error) {
		if string(text) == r.failing {
			return nil, nil, errors.New("its store is unavailable")
		}
		opened := e
		if !onDisk {
			opened.Description = "without files"
		}
		r.countOpen(string(text), 1)
		return &opened, func() { r.countOpen(string(text), -1) }, nil
	}
	return &unopened{e, 1, open}, nil
}

func (r *directoryRig) countOpen(text string, n int) {
	r.opened.Lock()
	defer r.opened.Unlock()
	r.isOpen[text] += n
}

func (r *directoryRig) writeIndex(name, text string) {
	r.t.Helper()
	path := filepath.Join(r.path, name+release.IndexSuffix)
	if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
		r.t.Fatal(err)
	}
}

// openExport opens an export and checks its text; "" means that it must be unknown.
func (r *directoryRig) openExport(name, want string) *nbd.Export {
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

// checkDescribed checks the canonical name that Describe returns for a name.
func (r *directoryRig) checkDescribed(name, canonical string) {
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

func (r *directoryRig) checkOpen(want map[string]int) {
	r.t.Helper()
	got := make(map[string]int)
	r.opened.Lock()
	defer r.opened.Unlock()
	for text, n := range r.isOpen {
		if n != 0 {
			got[text] = n
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		r.t.Errorf("open are:\n%s", diff)
	}
}

func (r *directoryRig) listNames() []string {
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
	r.openExport("a", "")
	r.openExport("", "")
	r.writeIndex("a", "1 end")
	old := r.openExport("a", "1 end")
	r.openExport("", "1 end").Release()

	r.writeIndex("a", "2 end")
	r.writeIndex("b", "b end")
	newer := r.openExport("a", "2 end")
	r.openExport("", "") // two exports exist
	if diff := cmp.Diff([]string{"a", "b"}, r.listNames()); diff != "" {
		t.Error(diff)
	}
	r.openExport("a@1 end", "1 end").Release() // it is in use
	r.checkDescribed("a@1 end", "a@1 end")
	r.checkDescribed("a", "a@2 end")
	r.openExport("a@2 end", "2 end").Release()
	r.openExport("b@2 end", "")
	r.checkOpen(map[string]int{"1 end": 1, "2 end": 1})
	old.Release()
	old.Release() // has no effect
	r.checkOpen(map[string]int{"2 end": 1})
	r.openExport("a@1 end", "")

	if err := os.Remove(filepath.Join(r.path, "a.caibx")); err != nil {
		t.Fatal(err)
	}
	r.openExport("a", "")
	if diff := cmp.Diff([]string{"b"}, r.listNames()); diff != "" {
		t.Error(diff)
	}
	r.openExport("a@2 end", "2 end").Release()
	newer.Release()
	r.openExport("a@2 end", "")
	r.checkOpen(map[string]int{})

	r.checkDescribed("b", "b@b end")
	r.checkDescribed("b@b end", "b@b end")
	r.checkDescribed("", "b@b end")
	r.checkOpen(map[string]int{}) // Describe opens nothing
	r.openExport("b", "b end").Release()
	r.checkOpen(map[string]int{"b end": 1}) // stays open for the next client
	r.closeVersions()
	r.checkOpen(map[string]int{})
}

// TestDirectoryBroken: an invalid file is logged once, and its last version remains.
func TestDirectoryBroken(t *testing.T) {
	r := newDirectoryRig(t)
	r.writeIndex("a", "1 en")
	r.openExport("a", "")
	if names := r.listNames(); names != nil {
		t.Errorf("a broken index is listed: %q", names)
	}
	r.listNames()
	if n := strings.Count(r.logged.String(), "an index is ignored"); n != 1 {
		t.Errorf("the broken index is logged %d times:\n%s", n, r.logged.String())
	}
	r.writeIndex("a", "1 end")
	first := r.openExport("a", "1 end")
	r.writeIndex("a", "2 e")
	r.openExport("a", "1 end").Release()
	r.writeIndex("a", "2 end")
	r.openExport("a", "2 end").Release()
	first.Release()
	r.checkOpen(map[string]int{"2 end": 1})
	if err := os.Chtimes(filepath.Join(r.path, "a.caibx"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	r.openExport("a", "2 end").Release() // touched, but not changed
	r.checkOpen(map[string]int{"2 end": 1})
}

// TestDirectoryNames: no name leads out of the directory.
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
		r.openExport(name, "")
	}
	r.writeIndex("\xff", "1 end")
	r.openExport("\xff", "") // the protocol allows only UTF-8
	if names := r.listNames(); names != nil {
		t.Errorf("there are %q", names)
	}
	r.writeIndex("v@2", "1 end")
	r.openExport("v@2", "1 end").Release()
	r.openExport("v@2@1 end", "1 end").Release()
}

// TestDirectoryReplacedMeanwhile: a canonical name never opens another image, even if the file is
// replaced between check and opening.
func TestDirectoryReplacedMeanwhile(t *testing.T) {
	r := newDirectoryRig(t)
	r.writeIndex("a", "1 end")
	r.listNames()
	read := r.directory.read
	r.directory.read = func(at locate.Location, file io.Reader) (*unopened, error) {
		r.writeIndex("a", "2 end")
		return read(at, file)
	}
	r.openExport("a@1 end", "1 end").Release() // the file that was read before it was replaced
	r.openExport("a", "2 end").Release()
	r.closeVersions()
	r.checkOpen(map[string]int{})
}

// TestDirectoryBack: an image that is published again while clients have it open is the same
// version.
func TestDirectoryBack(t *testing.T) {
	r := newDirectoryRig(t)
	r.writeIndex("a", "1 end")
	first := r.openExport("a", "1 end")
	r.writeIndex("a", "2 end")
	r.openExport("a", "2 end").Release()
	r.writeIndex("a", "1 end")
	second := r.openExport("a", "1 end")
	r.checkOpen(map[string]int{"1 end": 1})
	r.writeIndex("a", "3 end")
	r.openExport("a", "3 end").Release()
	first.Release()
	r.openExport("a@1 end", "1 end").Release()
	second.Release()
	r.openExport("a@1 end", "")
	r.checkOpen(map[string]int{"3 end": 1})
	r.closeVersions()
	r.checkOpen(map[string]int{})
}

// TestDirectoryFailure: an image that cannot be opened is an error for its client only, and the
// next client opens it again.
func TestDirectoryFailure(t *testing.T) {
	r := newDirectoryRig(t)
	r.writeIndex("a", "1 end")
	r.writeIndex("b", "b end")
	r.listNames()
	first := r.openExport("b", "b end")
	r.failing = "1 end"
	if e, err := r.Open(t.Context(), "a"); err == nil || errors.Is(err, nbd.ErrUnknown) {
		t.Errorf("Open of an image whose store is unavailable = %v, %v", e, err)
	}
	r.openExport("b", "b end").Release()
	r.checkDescribed("a", "a@1 end")
	r.failing = ""
	r.openExport("a", "1 end").Release()
	first.Release()
	r.closeVersions()
	r.checkOpen(map[string]int{})
}

// TestDirectoryLimit: files beyond the limit are not exports, whether a client lists, describes or
// opens them.
func TestDirectoryLimit(t *testing.T) {
	r := newDirectoryRig(t)
	for i := range maxFiles + 1 {
		if err := os.WriteFile(filepath.Join(r.path, fmt.Sprintf("%04d.caibx", i)), []byte("1 end"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	last := fmt.Sprintf("%04d", maxFiles)
	if n := len(r.listNames()); n != maxFiles {
		t.Errorf("%d files are exports, want %d", n, maxFiles)
	}
	r.openExport(last, "")
	r.openExport("0007", "1 end").Release()
	if err := os.Remove(filepath.Join(r.path, "0000.caibx")); err != nil {
		t.Fatal(err)
	}
	if n := len(r.listNames()); n != maxFiles {
		t.Errorf("%d files are exports, want %d", n, maxFiles)
	}
	r.openExport(last, "1 end").Release()
}

// TestDirectoryEnded: a scan whose context has ended drops no file and ignores none.
func TestDirectoryEnded(t *testing.T) {
	r := newDirectoryRig(t)
	r.writeIndex("a", "1 end")
	read := r.directory.read
	ended, end := context.WithCancel(t.Context())
	r.directory.read = func(locate.Location, io.Reader) (*unopened, error) {
		end()
		return nil, ended.Err()
	}
	if _, err := r.All(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("All = %v", err)
	}
	r.directory.read = read
	r.openExport("a", "1 end").Release()
	if text := r.logged.String(); strings.Contains(text, "ignored") {
		t.Errorf("logged is:\n%s", text)
	}
}

// TestDirectoryConcurrent: clients connect while files are replaced, rolled back and removed. Open
// images stay open, and all are closed at the end.
func TestDirectoryConcurrent(t *testing.T) {
	r := newDirectoryRig(t)
	r.writeIndex("a", "1 end")
	var clients, publisher sync.WaitGroup
	stop := make(chan struct{})
	publisher.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			r.writeIndex("a", fmt.Sprintf("%d end", i%3))
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
				r.opened.Lock()
				if n := r.isOpen[e.Device.(fakeImage).text]; n != 1 {
					t.Errorf("%s, which is in use, is open %d times", e.Canonical, n)
				}
				r.opened.Unlock()
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
	r.closeVersions()
	r.checkOpen(map[string]int{})
	if len(r.retired) > 0 {
		t.Errorf("retired are %v", r.retired)
	}
}

// TestDirectoryReplacedInUse: a version in use is found by its canonical name even at the first
// request after its file was replaced.
func TestDirectoryReplacedInUse(t *testing.T) {
	r := newDirectoryRig(t)
	r.writeIndex("a", "1 end")
	first := r.openExport("a", "1 end")
	r.writeIndex("a", "2 end")
	r.openExport("a@1 end", "1 end").Release()
	if err := os.Remove(filepath.Join(r.path, "a.caibx")); err != nil {
		t.Fatal(err)
	}
	r.openExport("a@1 end", "1 end").Release()
	first.Release()
	r.openExport("a@1 end", "")
}

// TestDirectoryRun: the directory is scanned without clients, until the context ends.
func TestDirectoryRun(t *testing.T) {
	r := newDirectoryRig(t)
	r.writeIndex("a", "1 end")
	ctx, cancel := context.WithCancel(t.Context())
	read := r.directory.read
	r.directory.read = func(at locate.Location, file io.Reader) (*unopened, error) {
		defer cancel()
		return read(at, file)
	}
	r.scanRepeatedly(ctx)
	if _, err := r.calls.callAs(t.Context(), "a", func() (*nbd.Export, error) { return nil, nil }); err != nil {
		t.Fatal(err) // it waits for the check, which the end of ctx does not end
	}
	if text := r.logged.String(); !strings.Contains(text, "an index is published") {
		t.Errorf("logged is:\n%s", text)
	}
	if _, err := openDirectory(filepath.Join(r.path, "none"), r.readText, imageLimits{}, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a missing directory is opened")
	}
}
