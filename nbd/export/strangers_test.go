package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/nbd"
	"cairn/store/locate"
)

// makeSpecial makes a file that is not a regular one.
func makeSpecial(t *testing.T, kind, path string) {
	t.Helper()
	var err error
	switch kind {
	case "FIFO":
		err = unix.Mkfifo(path, 0o600)
	case "link to a FIFO":
		err = errors.Join(unix.Mkfifo(path+".fifo", 0o600), os.Symlink(path+".fifo", path))
	case "link to a device":
		err = os.Symlink("/dev/zero", path)
	case "directory":
		err = os.Mkdir(path, 0o700)
	case "socket":
		var l net.Listener
		if l, err = net.Listen("unix", path); err == nil {
			t.Cleanup(func() { l.Close() })
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDirectorySpecialFiles: a file that is not a regular one is not an export, and does not block a
// scan, a client or a read.
func TestDirectorySpecialFiles(t *testing.T) {
	for _, kind := range []string{"FIFO", "link to a FIFO", "link to a device", "directory", "socket"} {
		t.Run(kind, func(t *testing.T) {
			r := newDirectoryRig(t)
			r.writeIndex("a", "1 end")
			path := r.pathOf("b")
			makeSpecial(t, kind, path)
			if names := r.listNames(); len(names) != 1 {
				t.Errorf("the exports are %q", names)
			}
			r.openExport("b", "")
			r.openExport("a", "1 end").Release()
			if _, _, err := r.readFile(path); err == nil {
				t.Error("readFile read it") // as when it replaces a regular file that was checked
			}
		})
	}
}

// TestDirectoryFIFOSwapped: clients and scans never block on a file that is replaced by a FIFO and
// back at any moment.
func TestDirectoryFIFOSwapped(t *testing.T) {
	r := newDirectoryRig(t)
	path := r.pathOf("a")
	r.writeIndex("a", "1 end")
	makeSpecial(t, "FIFO", path+".fifo")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var publisher sync.WaitGroup
	stop := make(chan struct{})
	publisher.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, path+".fifo", unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 500 {
		if e, err := r.Open(ctx, "a"); err == nil {
			e.Release()
		} else if !errors.Is(err, nbd.ErrUnknown) {
			t.Fatalf("Open: %v", err)
		}
		if _, err := r.All(ctx); err != nil {
			t.Fatalf("All: %v", err)
		}
	}
	close(stop)
	publisher.Wait()
}

// TestDirectoryWithoutAnswer: while a file system does not answer for one file, the other files are
// exports, a client of that file waits until its deadline, and a version in use has its canonical
// name.
func TestDirectoryWithoutAnswer(t *testing.T) {
	r := newDirectoryRig(t)
	r.writeIndex("a", "1 end")
	r.writeIndex("b", "b end")
	first := r.openExport("a", "1 end")
	blocked, release, read := make(chan struct{}), make(chan struct{}), r.directory.read
	block := sync.OnceFunc(func() { close(blocked) })
	r.directory.read = func(at locate.Location, file io.Reader) (*unopened, error) {
		if at == locate.Path(r.pathOf("a")) {
			block()
			<-release
		}
		return read(at, file)
	}
	r.writeIndex("a", "2 end")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := r.Open(ctx, "a")
		ended <- err
	}()
	<-blocked
	r.openExport("b", "b end").Release()
	if names := r.listNames(); len(names) != 2 {
		t.Errorf("the exports are %q", names)
	}
	other, stop := context.WithCancel(t.Context())
	stop()
	if _, err := r.Describe(other, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("Describe of the file = %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Open of the file = %v", err)
	}
	first.Release()
	close(release)
	r.openExport("a", "2 end").Release()
	r.closeVersions()
	r.checkOpen(map[string]int{})
}

// TestDirectoryNewFileIsListed: a list contains a new file that another goroutine is reading.
func TestDirectoryNewFileIsListed(t *testing.T) {
	r := newDirectoryRig(t)
	r.writeIndex("a", "1 end")
	blocked, release, read := make(chan struct{}), make(chan struct{}), r.directory.read
	block := sync.OnceFunc(func() { close(blocked) })
	r.directory.read = func(at locate.Location, file io.Reader) (*unopened, error) {
		block()
		<-release
		return read(at, file)
	}
	go func() { _ = r.scanFiles(t.Context()) }()
	<-blocked
	listed := make(chan []string)
	go func() { listed <- r.listNames() }()
	select {
	case names := <-listed:
		t.Errorf("the list does not wait for the file, and has %q", names)
		close(release)
	case <-time.After(20 * time.Millisecond): // a list that does not wait may pass, one that waits never fails
		close(release)
		if names := <-listed; len(names) != 1 {
			t.Errorf("the list has %q", names)
		}
	}
}

// TestDirectoryBudget: images without a client are closed, the least recently used first, when their
// memory exceeds its limit, or when another image needs descriptors. Images in use stay open. Beyond
// the descriptors an image is opened without files, and closed when its client disconnects.
func TestDirectoryBudget(t *testing.T) {
	r := newDirectoryRig(t)
	r.limits = imageLimits{idle: 2}
	names := []string{"a", "b", "c", "d"}
	for _, name := range names {
		r.writeIndex(name, name+" end")
	}
	used := r.openExport("a", "a end")
	for _, name := range append(names, "b") {
		r.openExport(name, name+" end").Release()
	}
	r.checkOpen(map[string]int{"a end": 1, "b end": 1, "d end": 1})

	r.limits = imageLimits{idle: 100, onDisk: 3}
	other := r.openExport("c", "c end")
	r.checkOpen(map[string]int{"a end": 1, "b end": 1, "c end": 1})
	last := r.openExport("d", "d end")
	r.checkOpen(map[string]int{"a end": 1, "c end": 1, "d end": 1})
	beyond := r.openExport("b", "b end")
	if used.Description != "" || other.Description != "" || last.Description != "" || beyond.Description == "" {
		t.Error("an image within the limit has no files, or one beyond it has")
	}
	beyond.Release()
	r.checkOpen(map[string]int{"a end": 1, "c end": 1, "d end": 1})
	used.Release()
	r.writeIndex("a", "no index")
	r.listNames()
	r.openExport("b", "b end").Release()
	r.openExport("a", "a end").Release() // it stays, since its file is invalid
	for _, e := range []*nbd.Export{other, last} {
		e.Release()
	}
	r.closeVersions()
	r.checkOpen(map[string]int{})
	if r.onDisk != 0 {
		t.Errorf("%d images have files", r.onDisk)
	}
}

// TestDirectoryIdleImages: clients that choose one export after the other leave few images open.
func TestDirectoryIdleImages(t *testing.T) {
	r := newDirectoryRig(t)
	want := make(map[string]int)
	for n := range 2 * maxIdle {
		name := fmt.Sprint(n)
		r.writeIndex(name, name+" end")
		r.openExport(name, name+" end").Release()
		if n >= maxIdle {
			want[name+" end"] = 1
		}
	}
	r.checkOpen(want)
	r.closeVersions()
}

// countFiles returns the number of descriptors of this process.
func countFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// TestIndexMemory: the memory of an image counts while the image is open.
func TestIndexMemory(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	_, x := publishImage(t, dir, "a", 1)
	_, y := publishImage(t, other, "b", 2)
	at, err := locate.Parse(filepath.Join(other, "b.caibx"))
	if err != nil {
		t.Fatal(err)
	}
	var now atomic.Int64
	c := openCatalogue(t, Options{Indexes: []locate.Location{at}, Directory: dir, IndexMemory: now.Store})
	if got, want := now.Load(), indexMemory(y); got != want {
		t.Errorf("at the start %d bytes count, want %d", got, want)
	}
	e, err := c.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := now.Load(), indexMemory(x)+indexMemory(y); got != want {
		t.Errorf("with a client %d bytes count, want %d", got, want)
	}
	if err := os.Remove(filepath.Join(dir, "a.caibx")); err != nil {
		t.Fatal(err)
	}
	e.Release()
	if _, err := c.Open(t.Context(), "a"); err == nil {
		t.Error("a removed image is opened")
	}
	if got, want := now.Load(), indexMemory(y); got != want {
		t.Errorf("in the end %d bytes count, want %d", got, want)
	}
}

// TestDescriptorsOfManyImages: clients that choose one image after the other leave no more than the
// budget open, and their images are kept on disk.
func TestDescriptorsOfManyImages(t *testing.T) {
	const images, budget = 12, 2
	dir := t.TempDir()
	var want [][]byte
	for n := range images {
		image, _ := publishImage(t, dir, fmt.Sprint(n), uint64(n))
		want = append(want, image)
	}
	var notes atomic.Int64
	c := openCatalogue(t, Options{Directory: dir, Cache: t.TempDir(), Memory: 64 << 20, Files: budget * filesPerImage,
		Notes: func(Note) { notes.Add(1) }})
	before := countFiles(t)
	for n := range images {
		checkExport(t, c, fmt.Sprint(n), want[n])
	}
	const others = 8 + 1 // donors and the sampled file of the image cache
	if left := countFiles(t) - before; left > budget*filesPerImage+others {
		t.Errorf("%d descriptors are open, allowed are %d and %d", left, budget*filesPerImage, others)
	}
	if n := notes.Load(); n > 0 {
		t.Errorf("there are %d notes", n)
	}
}

// TestQuestionsCostNothing: neither scans nor clients that list exports or request information open
// an image or ask a store. A profile is prefetched when a client has chosen the export.
func TestQuestionsCostNothing(t *testing.T) {
	dir := t.TempDir()
	_, x := publishImage(t, dir, "a", 1)
	reads := []profile.Read{{Chunk: x.At(0)}, {Chunk: x.At(1)}}
	writeFile(t, filepath.Join(dir, "a.caprf"), profile.New(x, reads).Encode())
	var requests atomic.Int64
	files := http.FileServer(http.Dir(dir))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		files.ServeHTTP(w, r)
	}))
	defer s.Close()
	at, err := locate.Parse(s.URL + "/default.castr")
	if err != nil {
		t.Fatal(err)
	}
	var logged syncLog
	cache := t.TempDir()
	c := openCatalogue(t, Options{Directory: dir, Stores: [][]locate.Location{{at}}, AutoProfile: true, Fill: true,
		Cache: cache, Log: logged.logger()})
	for range 2 {
		if _, err := c.All(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"", "a", "a@" + x.Digest().String()} {
			if e, err := c.Describe(t.Context(), name); err != nil || e.Device.Size() != paddedSize(x.Size()) {
				t.Errorf("Describe(%q) = %+v, %v", name, e, err)
			}
		}
	}
	const prefetch = "prefetching the chunks of a profile"
	if images, err := os.ReadDir(filepath.Join(cache, "images")); err != nil || len(images) > 0 {
		t.Errorf("the cache has %d images, %v", len(images), err)
	}
	if n := requests.Load(); n > 0 || strings.Contains(logged.String(), prefetch) {
		t.Errorf("the store has got %d requests; logged is\n%s", n, logged.String())
	}
	e, err := c.Open(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Release()
	if !strings.Contains(logged.String(), prefetch) {
		t.Errorf("no prefetch for a client; logged is\n%s", logged.String())
	}
}

// TestStoreWithoutAnswer: while one store is being opened, other stores are opened, and the status is shown.
func TestStoreWithoutAnswer(t *testing.T) {
	var calls atomic.Int32
	opening, answer := make(chan struct{}), make(chan struct{})
	im := newImages(Options{Memory: 1 << 20, Access: release.Access{Locate: func() (a locate.Access, err error) {
		if calls.Add(1) == 1 {
			close(opening)
			<-answer
		}
		return a, nil
	}}})
	defer im.closeAll()
	open := func() error {
		dir := t.TempDir()
		err := os.Mkdir(filepath.Join(dir, "default.castr"), 0o700)
		if err == nil {
			_, err = im.openSource(locate.Path(filepath.Join(dir, "a.caibx")), blob.SHA512_256)
		}
		return err
	}
	ended := make(chan error)
	go func() { ended <- open() }()
	<-opening
	if err := open(); err != nil {
		t.Error(err)
	}
	if n := len(im.openStores()); n != 1 {
		t.Errorf("%d stores are open, want 1", n)
	}
	close(answer)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
