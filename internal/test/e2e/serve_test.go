package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/internal/test/vmtest"
	"cairn/testimages"
)

// serving is a cairn serve that accepts connections.
type serving struct {
	*job
	uris []string // as printed
}

// serve starts cairn serve, which prints that many URIs. At the end of the test it is stopped, and must exit with 0.
func serve(t testing.TB, uris int, args ...string) *serving {
	t.Helper()
	s := &serving{job: start(t, nil, append([]string{"serve"}, args...)...)}
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			s.signal(t, syscall.SIGTERM)
			s.wantStopped(t)
		}
	})
	for len(s.uris) < uris {
		s.uris = strings.Fields(s.stdout.await(t, strings.Join(s.uris, "\n")+"\n"))
	}
	return s
}

// wantStopped checks that the server exits by itself with 0, and leaves no socket.
func (s *serving) wantStopped(t testing.TB) {
	t.Helper()
	if r := s.wait(t); r.status != 0 {
		t.Errorf("cairn serve: exit status %d, want 0\n%s", r.status, r.stderr)
	}
	for _, uri := range s.uris {
		if _, socket, isUnix := strings.Cut(uri, "?socket="); isUnix {
			wantNone(t, socket)
		}
	}
}

// socketDir returns a directory whose path is short enough for sockets, unlike that of t.TempDir.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestServeToTools: each tool sees the image, with index and store behind a web server and an empty cache.
func TestServeToTools(t *testing.T) {
	t.Parallel()
	for _, p := range pairs(t) {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			r := publish(t, p)
			server := newNginx(t, r.dir)
			for name, use := range map[string]func(t *testing.T, uri string, r release){
				"nbdcopy": useNBDCopy, "qemu-img convert": useConvert, "qemu-img compare": useCompare,
				"qemu-img map": useMap, "qemu-io": useQemuIO,
			} {
				t.Run(name, func(t *testing.T) {
					use(t, serve(t, 1, server.url+"/b.caibx").uris[0], r)
				})
			}
			t.Run("nbdinfo", func(t *testing.T) { useNBDInfo(t, server, r) })
		})
	}
}

func useNBDCopy(t *testing.T, uri string, r release) {
	out := filepath.Join(t.TempDir(), "out")
	must(t, "nbdcopy", uri, out)
	wantCopy(t, out, r.b)
}

func useConvert(t *testing.T, uri string, r release) {
	out := filepath.Join(t.TempDir(), "out")
	must(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, out)
	wantSame(t, out, r.b)
}

func useCompare(t *testing.T, uri string, r release) {
	must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, r.b)
	other := filepath.Join(t.TempDir(), "other")
	must(t, "cp", "--sparse=always", r.b, other)
	must(t, "dd", "if=/dev/urandom", "of="+other, "bs=4096", "seek=300", "count=1", "conv=notrunc", "status=none")
	if got := run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, other); got.status != 1 {
		t.Errorf("qemu-img compare with another image: %+v", got)
	}
}

func useMap(t *testing.T, uri string, r release) {
	var extents []struct {
		Start, Length int64
		Zero          bool
	}
	parse(t, must(t, "qemu-img", "map", "-f", "raw", "--output=json", uri), &extents)
	var end, zeros int64
	for _, e := range extents {
		if e.Start != end {
			t.Errorf("the map has an extent at %d behind %d", e.Start, end)
		}
		end = e.Start + e.Length
		if e.Zero {
			zeros += e.Length
			wantZeros(t, r.b, e.Start, e.Length)
		}
	}
	if end != fileSize(t, r.b) {
		t.Errorf("the map ends at %d, the image at %d", end, fileSize(t, r.b))
	}
	var known struct {
		Zero int64 `json:"zero_bytes"`
	}
	parse(t, cairn(t, "info", "--json", r.index("b")), &known)
	slack := 4096 * int64(len(extents)) // extents are aligned to blocks, the index's zeros are not
	if zeros < known.Zero-slack || zeros > known.Zero {
		t.Errorf("%d bytes are mapped as zero, want %d", zeros, known.Zero)
	}
}

func wantZeros(t testing.TB, path string, off, n int64) {
	t.Helper()
	p := make([]byte, n)
	if _, err := open(t, path).ReadAt(p, off); err != nil || bytes.Trim(p, "\x00") != nil {
		t.Errorf("the %d bytes at %d of %s are not zeros: %v", n, off, path, err)
	}
}

func useQemuIO(t *testing.T, uri string, r release) {
	var script strings.Builder
	for _, off := range []int64{0, 1 << 20, 1<<20 + 512, fileSize(t, r.b) - 4096} {
		fmt.Fprintf(&script, "read -v %d 4096\n", off)
	}
	served := runInput(t, script.String(), "qemu-io", "-f", "raw", "-r", uri)
	local := runInput(t, script.String(), "qemu-io", "-f", "raw", "-r", r.b)
	if got, want := hexdump(served.stdout), hexdump(local.stdout); got != want || len(got) < 4*4096 {
		t.Errorf("qemu-io reads\n%.200s\nwant\n%.200s", got, want)
	}
}

// hexdump returns the lines of qemu-io's output with bytes; other lines contain times.
func hexdump(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if address, _, is := strings.Cut(line, ":"); is && len(address) == 8 {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// useNBDInfo: nbdinfo's output needs only the index.
func useNBDInfo(t *testing.T, server *webServer, r release) {
	s := serve(t, 1, server.url+"/b.caibx", "--listen", "unix:"+filepath.Join(socketDir(t), "socket"))
	uri := s.uris[0]
	server.sent(t)
	if list := must(t, "nbdinfo", "--list", uri); !strings.Contains(list, `export="b":`) {
		t.Errorf("nbdinfo --list says:\n%s", list)
	}
	size := fmt.Sprintln(fileSize(t, r.b))
	if got := must(t, "nbdinfo", "--size", uri); got != size {
		t.Errorf("nbdinfo --size = %s, want %s", got, size)
	}
	var info struct{ Exports []map[string]any }
	parse(t, must(t, "nbdinfo", "--json", "--no-content", uri), &info)
	for key, want := range map[string]any{"is_read_only": true, "can_multi_conn": true} {
		if got := info.Exports[0][key]; got != want {
			t.Errorf("nbdinfo --json: %s is %v, want %v", key, got, want)
		}
	}
	var extents []struct{ Offset, Length int64 }
	parse(t, must(t, "nbdinfo", "--map", "--json", uri), &extents)
	if last := extents[len(extents)-1]; fmt.Sprintln(last.Offset+last.Length) != size {
		t.Errorf("nbdinfo --map ends with %+v, the image has %s", last, size)
	}
	must(t, "qemu-img", "info", "-f", "raw", uri)
	if wire := server.sent(t); wire != (traffic{}) {
		t.Errorf("nginx has sent %+v, want nothing", wire)
	}
}

// noise publishes an image without repeats as release b; there is no a.
func noise(t testing.TB, size int) release {
	t.Helper()
	r := release{pair{b: writeFile(t, t.TempDir(), "noise", testimages.Random(4, size))}, t.TempDir()}
	cairn(t, "make", r.index("b"), r.b)
	return r
}

// TestServeBrokenChunks: a corrupt or missing chunk fails the reads that need it, and the connection stays
// open. The reads succeed as soon as the store is repaired.
func TestServeBrokenChunks(t *testing.T) {
	t.Parallel()
	r := noise(t, 2*mib)
	server := newNginx(t, r.dir)
	x := readIndex(t, r.index("b"))
	store := filepath.Join(r.dir, "default.castr")
	gone, corrupt := x.At(3), x.At(6)
	backup := t.TempDir()
	must(t, "mv", chunkFile(store, gone.Digest), filepath.Join(backup, "gone"))
	must(t, "mv", chunkFile(store, corrupt.Digest), filepath.Join(backup, "corrupt"))
	must(t, "cp", chunkFile(store, x.At(0).Digest), chunkFile(store, corrupt.Digest))

	uri := serve(t, 1, server.url+"/b.caibx").uris[0]
	script := fmt.Sprintf(`
import shutil
image = open(%q, "rb").read()
def read(what, off):
    try:
        right = bytes(h.pread(512, off)) == image[off:off+512]
        print(what, "right" if right else "WRONG")
    except nbd.Error as e:
        print(what, e.errnum)
def heal(name, off, path):
    read(name, off)
    read("before " + name, off - 512)
    shutil.move(%q + name, path)
    read(name, off)
heal("gone", %d, %q)
heal("corrupt", %d, %q)
`, r.b, backup+"/",
		gone.Offset, chunkFile(store, gone.Digest), corrupt.Offset, chunkFile(store, corrupt.Digest))
	got := must(t, "nbdsh", "-u", uri, "-c", script)
	want := "gone 5\nbefore gone right\ngone right\ncorrupt 5\nbefore corrupt right\ncorrupt right\n"
	if got != want {
		t.Errorf("nbdsh prints\n%s\nwant\n%s", got, want)
	}
}

// TestServeBrokenChunkToQemu: qemu continues, too.
func TestServeBrokenChunkToQemu(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	x := readIndex(t, r.index("b"))
	bad := x.At(4)
	if err := os.Truncate(chunkFile(filepath.Join(r.dir, "default.castr"), bad.Digest), 100); err != nil {
		t.Fatal(err)
	}
	uri := serve(t, 1, newNginx(t, r.dir).url+"/b.caibx").uris[0]
	script := fmt.Sprintf("read %d 512\nread 0 512\nread %d 512\nread 512 512\n", bad.Offset, bad.Offset)
	got := runInput(t, script, "qemu-io", "-f", "raw", "-r", uri)
	right := strings.Count(got.stdout, "read 512/512 bytes")
	if wrong := strings.Count(got.stdout, "Input/output error"); right != 2 || wrong != 2 {
		t.Errorf("qemu-io says\n%s%s", got.stdout, got.stderr)
	}
}

// TestServeOddSize: an image that does not fill its last sector has the same size for all clients. Their copy
// is the image followed by zeros, which verify and assemble accept.
func TestServeOddSize(t *testing.T) {
	t.Parallel()
	r := noise(t, 300_001)
	const want = 300_032
	cache := t.TempDir()
	s := serve(t, 1, r.index("b"), "--cache", cache, "--prefetch", "all")
	uri := s.uris[0]
	var info struct {
		Exports []struct {
			Size        int64 `json:"export-size"`
			Description string
		}
	}
	parse(t, must(t, "nbdinfo", "--json", uri), &info)
	if e := info.Exports[0]; e.Size != want || !strings.Contains(e.Description, " 300001 bytes") {
		t.Errorf("nbdinfo says %+v", e)
	}
	var image struct {
		Size int64 `json:"virtual-size"`
	}
	parse(t, must(t, "qemu-img", "info", "-f", "raw", "--output=json", uri), &image)
	if image.Size != want {
		t.Errorf("qemu-img says %d bytes", image.Size)
	}
	var extents []struct{ Offset, Length, Type int64 }
	parse(t, must(t, "nbdinfo", "--map", "--json", uri), &extents)
	if last := extents[len(extents)-1]; last.Offset+last.Length != want {
		t.Errorf("nbdinfo --map ends with %+v", last)
	}
	must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", uri, r.b)
	for tool, args := range map[string][]string{"nbdcopy": {uri}, "qemu-img": {"convert", "-f", "raw", "-O", "raw", uri}} {
		out := filepath.Join(t.TempDir(), "out")
		must(t, tool, append(args, out)...)
		wantCopy(t, out, r.b)
		cairn(t, "verify", r.index("b"), out)
		cairn(t, "assemble", "--max-download", "1B", r.index("b"), out)
		wantSame(t, out, r.b)
	}
	s.stderr.await(t, "the image is complete on disk")
	var raw []string // it gets its name after its chunks are flushed
	for begun := time.Now(); len(raw) == 0 && time.Since(begun) < patience; time.Sleep(10 * time.Millisecond) {
		var err error
		if raw, err = filepath.Glob(filepath.Join(cache, "images/*/image.raw")); err != nil {
			t.Fatal(err)
		}
	}
	if len(raw) != 1 {
		t.Fatalf("the cache has %q", raw)
	}
	wantSame(t, raw[0], r.b)
}

// TestServeNames: exports are found by name, and by name and digest; the first one also without a name. This works on
// both kinds of sockets.
func TestServeNames(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	socket := filepath.Join(socketDir(t), "a socket")
	s := serve(t, 4, r.index("b"), r.index("a"), "--listen", "unix:"+socket, "--listen", "tcp:127.0.0.1:0")
	var info struct {
		Digest string `json:"index_digest"`
	}
	parse(t, cairn(t, "info", "--json", r.index("a")), &info)
	for _, base := range []string{s.uris[0], s.uris[2]} {
		at := func(name string) string { return strings.Replace(base, "/b", "/"+name, 1) }
		for name, image := range map[string]string{"": r.b, "b": r.b, "a": r.a, "a@" + info.Digest: r.a} {
			must(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", at(name), image)
		}
		for _, name := range []string{"c", "b@" + info.Digest, "a@"} {
			got := run(t, "qemu-img", "info", at(name))
			if got.status == 0 || !strings.Contains(got.stderr, `there is "b", "a"`) {
				t.Errorf("qemu-img info of %s: %+v", at(name), got)
			}
		}
	}
}

// TestServeDefaultSocket: without --listen the socket is in a directory of its own, which is removed at the end.
func TestServeDefaultSocket(t *testing.T) {
	t.Parallel()
	r := noise(t, 100_001)
	s := serve(t, 1, r.index("b"))
	_, socket, _ := strings.Cut(s.uris[0], "?socket=")
	useNBDCopy(t, s.uris[0], r)
	s.signal(t, syscall.SIGINT)
	s.wantStopped(t)
	wantNone(t, filepath.Dir(socket))
}

// TestServeTakesOverSocket: a server replaces the socket of a killed server, and not that of a running one.
func TestServeTakesOverSocket(t *testing.T) {
	t.Parallel()
	r := noise(t, 100_001)
	socket := filepath.Join(socketDir(t), "socket")
	first := serve(t, 1, r.index("b"), "--listen", "unix:"+socket)
	fails(t, failed, "address already in use", "serve", r.index("b"), "--listen", "unix:"+socket)
	first.signal(t, syscall.SIGKILL)
	first.wait(t)
	useNBDCopy(t, serve(t, 1, r.index("b"), "--listen", "unix:"+socket).uris[0], r)
}

// TestBootServedRoot: a virtual machine gets its root file system from nginx through cairn serve.
func TestBootServedRoot(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("a virtual machine takes seconds")
	}
	need.Tool(t, "qemu-system-x86_64")
	const word = "this file came in chunks"
	dir := t.TempDir()
	cairn(t, "make", filepath.Join(dir, "root.caibx"), vmtest.RootImage(t, word))
	server := newNginx(t, dir)
	vmtest.BootRoot(t, serve(t, 1, server.url+"/root.caibx").uris[0], word)
	if server.sent(t).chunks == 0 {
		t.Error("the VM booted without a chunk")
	}
}
