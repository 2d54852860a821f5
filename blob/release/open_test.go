package release_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/blob/release"
	"cairn/store"
	"cairn/store/locate"
)

// newIndex returns an index of n chunks of one byte each.
func newIndex(t testing.TB, n int) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 1, Avg: 1, Max: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(n) {
		if _, err := b.Add(1, blob.Digest(binary.BigEndian.AppendUint64(make([]byte, 24, 32), i))); err != nil {
			t.Fatal(err)
		}
	}
	return b.Index()
}

func parse(t testing.TB, text string) locate.Location {
	t.Helper()
	l, err := locate.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve answers each request with the next of the answers, and repeats the last. It counts the
// requests.
func serve(t testing.TB, answers ...[]byte) (url string, requests *atomic.Int64) {
	t.Helper()
	requests = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := min(requests.Add(1), int64(len(answers)))
		_, _ = w.Write(answers[n-1])
	}))
	t.Cleanup(server.Close)
	return server.URL, requests
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestOpen reads one index from each kind of location.
func TestOpen(t *testing.T) {
	want := newIndex(t, 100)
	file := filepath.Join(t.TempDir(), "x.caibx")
	writeFile(t, file, want.Encode())
	url, _ := serve(t, want.Encode())
	a := release.Access{
		Locate: func() (locate.Access, error) { return locate.Access{}, nil },
		Stdin:  func(context.Context) io.Reader { return bytes.NewReader(want.Encode()) },
	}
	for _, at := range []string{file, url + "/x.caibx", "-"} {
		x, err := release.Open(t.Context(), a, parse(t, at))
		if err != nil || x.Digest() != want.Digest() {
			t.Errorf("Open(%s) = %v", at, err)
		}
	}
}

// TestOpenPipe: a local index may be a pipe.
func TestOpenPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := newIndex(t, 3)
	if _, err := w.Write(want.Encode()); err != nil {
		t.Fatal(err)
	}
	w.Close()
	at := locate.Path(filepath.Join("/proc/self/fd", strconv.Itoa(int(r.Fd()))))
	if x, err := release.Open(t.Context(), release.Access{}, at); err != nil || x.Digest() != want.Digest() {
		t.Errorf("Open of a pipe = %v", err)
	}
}

// TestOpenFIFOEnds: the end of the context ends the wait for the writer of a FIFO, and for its bytes.
func TestOpenFIFOEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := release.Open(ctx, release.Access{}, locate.Path(path)); !errors.Is(err, context.Canceled) {
		t.Errorf("Open without a writer = %v", err)
	}
	writer, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	if _, err := release.Open(ctx, release.Access{}, locate.Path(path)); !errors.Is(err, context.Canceled) {
		t.Errorf("Open with a silent writer = %v", err)
	}
}

// TestOpenNeedsNoCredentials: an index on this machine is read even if the credentials cannot be.
func TestOpenNeedsNoCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.caibx")
	writeFile(t, file, newIndex(t, 1).Encode())
	broken := errors.New("no such token")
	a := release.Access{Locate: func() (locate.Access, error) { return locate.Access{}, broken }}
	if _, err := release.Open(t.Context(), a, locate.Path(file)); err != nil {
		t.Errorf("Open of a local index = %v", err)
	}
	if _, err := release.Open(t.Context(), a, parse(t, "http://127.0.0.1:1/x.caibx")); !errors.Is(err, broken) {
		t.Errorf("Open of a remote index = %v, want %v", err, broken)
	}
}

// TestOpenRefuses: absent and foreign files are errors of their kind, and no error contains a secret of
// the location.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	whole := newIndex(t, 10).Encode()
	writeFile(t, filepath.Join(dir, "text"), []byte("a text, and long enough for the head of an index, which it is not at all"))
	writeFile(t, filepath.Join(dir, "half"), whole[:len(whole)-30])
	writeFile(t, filepath.Join(dir, "more"), append(bytes.Clone(whole), 0))
	writeFile(t, filepath.Join(dir, "x.catar"), archiveHead())
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	for _, c := range []struct {
		name string
		want error
	}{
		{"text", blob.ErrInvalid}, {"half", blob.ErrInvalid}, {"more", blob.ErrInvalid}, {"x.catar", blob.ErrArchive},
		{"absent", nil},
	} {
		_, here := release.Open(t.Context(), release.Access{}, locate.Path(filepath.Join(dir, c.name)))
		_, there := release.Open(t.Context(), release.Access{}, parse(t, server.URL+"/"+c.name+"?key=hush"))
		if c.want != nil && (!errors.Is(here, c.want) || !errors.Is(there, c.want)) {
			t.Errorf("Open(%s) = %v here, %v on a server, want %v", c.name, here, there, c.want)
		}
		if c.name == "absent" && (!errors.Is(here, fs.ErrNotExist) || !errors.Is(there, store.ErrNotFound)) {
			t.Errorf("Open(%s) = %v here, %v on a server", c.name, here, there)
		}
		if !strings.HasPrefix(here.Error(), "reading index "+dir) ||
			!strings.HasPrefix(there.Error(), "reading index "+server.URL) {
			t.Errorf("Open(%s) = %v here, %v on a server", c.name, here, there)
		}
		if strings.Contains(there.Error(), "hush") {
			t.Errorf("Open(%s) shows a secret: %v", c.name, there)
		}
	}
	if _, err := release.Open(t.Context(), release.Access{}, parse(t, "-")); err == nil {
		t.Error("Open of stdin succeeds where there is none")
	}
}

// archiveHead returns the beginning of a .catar archive.
func archiveHead() []byte {
	const entry = 0x1396fabcea5bbb51
	head := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 64), entry)
	return append(head, make([]byte, 100)...)
}

// TestDamagedOnItsWay: an invalid index from a server is read once more, and only once.
func TestDamagedOnItsWay(t *testing.T) {
	whole := newIndex(t, 10).Encode()
	damaged := bytes.Clone(whole)
	damaged[len(damaged)-1] ^= 1
	url, _ := serve(t, damaged, whole)
	if _, err := release.Open(t.Context(), release.Access{}, parse(t, url+"/x.caibx")); err != nil {
		t.Errorf("Open of what was damaged once = %v", err)
	}
	url, requests := serve(t, damaged)
	_, err := release.Open(t.Context(), release.Access{}, parse(t, url+"/x.caibx"))
	if !errors.Is(err, blob.ErrInvalid) || requests.Load() != 2 {
		t.Errorf("Open of what is damaged = %v after %d requests, want ErrInvalid after 2", err, requests.Load())
	}
}

// TestIndexIsDecodedWhileItComes: decoding a large index takes about its own size of memory, without
// the same again for the file.
func TestIndexIsDecodedWhileItComes(t *testing.T) {
	const chunks = 100_000
	file := newIndex(t, chunks).Encode()
	url, _ := serve(t, file)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got, err := release.Open(t.Context(), release.Access{}, parse(t, url+"/x.caibx"))
	runtime.ReadMemStats(&after)
	if err != nil || got.Len() != chunks {
		t.Fatalf("Open = %v, %v", got, err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > uint64(len(file))*3/2 {
		t.Errorf("an index of %d bytes takes %d bytes of memory on its way", len(file), took)
	}
}

// endless answers each request with zeros, until the client ends it.
func endless(w http.ResponseWriter, r *http.Request) {
	zeros := make([]byte, 1<<20)
	for r.Context().Err() == nil {
		if _, err := w.Write(zeros); err != nil {
			return
		}
	}
}

// TestForeignFilesTakeNoMemory: an endless file that is not an index or a profile is refused by its first
// bytes, from each kind of location.
func TestForeignFilesTakeNoMemory(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(endless))
	defer server.Close()
	sized := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(600<<20))
		endless(w, r)
	}))
	defer sized.Close()
	zeros, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zeros.Close()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"} {
		t.Setenv(name, "x")
	}
	a := release.Access{
		Locate: func() (locate.Access, error) { return locate.Access{}, nil },
		Stdin:  func(context.Context) io.Reader { return zeros },
	}
	for _, at := range []string{"/dev/zero", "-", server.URL + "/x.caibx", sized.URL + "/x.caibx", "s3+" + server.URL + "/bucket/x.caibx"} {
		for wanted, open := range map[error]func() error{
			blob.ErrInvalid:    func() error { _, err := release.Open(t.Context(), a, parse(t, at)); return err },
			profile.ErrInvalid: func() error { _, err := release.OpenProfile(t.Context(), a, parse(t, at)); return err },
		} {
			if wanted == profile.ErrInvalid && (at == "/dev/zero" || strings.HasPrefix(at, sized.URL)) {
				continue // a profile is a regular file of a limited size
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := open()
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; !errors.Is(err, wanted) || took > 16<<20 {
				t.Errorf("%s: %v, with %d bytes of memory, want %v", at, err, took, wanted)
			}
		}
	}
}

// TestKind: the kind depends on the name of an index, then on its feature flags, then on the start of
// its content.
func TestKind(t *testing.T) {
	image := newIndex(t, 1)
	flagged := image.Encode()
	flagged[16] |= 1 // CA_FORMAT_WITH_16BIT_UIDS
	either, err := blob.Decode(bytes.NewReader(flagged))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		x    *blob.Index
		want release.Kind
	}{
		{"x.caibx", image, release.Image}, {"x", image, release.Image}, {"-", image, release.Image},
		{"x.caidx", image, release.Tree}, {"http://h/x.caidx?y", image, release.Tree},
		{"x.caibx", either, release.Either}, {"x.caidx", either, release.Tree},
	} {
		if got := release.KindOf(parse(t, c.name), c.x); got != c.want {
			t.Errorf("KindOf(%s) = %v, want %v", c.name, got, c.want)
		}
	}
	dir := t.TempDir()
	for name, want := range map[string]bool{"x.caibx": false, "x.caidx": true} {
		writeFile(t, filepath.Join(dir, name), flagged)
		_, err := release.OpenImage(t.Context(), release.Access{}, locate.Path(filepath.Join(dir, name)))
		if _, refused := errors.AsType[release.TreeError](err); refused != want || (err != nil) != want {
			t.Errorf("OpenImage(%s) = %v", name, err)
		}
	}
	if _, refused := errors.AsType[release.TreeError](release.RefuseArchive(archiveHead())); !refused {
		t.Error("RefuseArchive takes the beginning of an archive")
	}
	if err := release.RefuseArchive(make([]byte, 100)); err != nil {
		t.Errorf("RefuseArchive of zeros = %v", err)
	}
}
