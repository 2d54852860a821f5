package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
)

// runTo runs cairn with a file as its standard output.
func runTo(t testing.TB, stdout *os.File, args ...string) ran {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), need.Tool(t, "cairn"), forgetful(args)...)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return ran{stderr: stderr.String(), status: cmd.ProcessState.ExitCode()}
}

// onto runs cairn with its standard output redirected to a path, as a shell does.
func onto(t testing.TB, path string, flags int, args ...string) ran {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return runTo(t, f, args...)
}

// wantStart checks that a device begins with an image.
func wantStart(t testing.TB, node, image string) {
	t.Helper()
	if n := fileSize(t, image); sum(t, node, 0, n) != sum(t, image, 0, n) {
		t.Errorf("%s does not begin with %s", node, image)
	}
}

// TestStdoutIsDevice: a slot as stdout is treated as a TARGET.
func TestStdoutIsDevice(t *testing.T) {
	t.Parallel()
	need.Root(t)
	r := noise(t, 3*mib+1)
	disk := looptest.File(t, 8*mib)
	node := looptest.Attach(t, disk, 512)
	for name, flags := range map[string]int{"write-only": os.O_WRONLY, "read and write": os.O_RDWR} {
		wipe(t, node)
		if got := onto(t, node, flags, "assemble", r.index("b"), "-"); got.status != 0 {
			t.Errorf("%s: %+v", name, got)
		}
		wantStart(t, node, r.b)
		got := onto(t, node, flags, "assemble", r.index("b"), "/dev/stdout")
		if got.status != 0 || !strings.Contains(got.stderr, "nothing was written") {
			t.Errorf("%s: a second time: %+v, want nothing written", name, got)
		}
	}
	f, err := os.OpenFile(node, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, index := range []string{r.index("b"), r.index("b")} { // one after the other
		if got := runTo(t, f, "assemble", index, "-"); got.status != 0 {
			t.Errorf("%+v", got)
		}
	}
	if n := fileSize(t, r.b); sum(t, node, n, n) != sum(t, r.b, 0, n) || sum(t, node, 0, n) != sum(t, r.b, 0, n) {
		t.Error("two images one behind the other are not there")
	}
	before := sum(t, node, 0, 8*mib)
	if got := runTo(t, f, "assemble", r.index("b"), "-"); got.status != refused || !strings.Contains(got.stderr, "are needed") {
		t.Errorf("where only %d bytes are left: %+v, want status %d", 2*mib-2, got, refused)
	}
	for _, args := range [][]string{{"assemble", r.index("b"), "-"}, {"cat", r.index("b")}} {
		if got := onto(t, node, os.O_WRONLY|os.O_APPEND, args...); got.status != refused {
			t.Errorf("%s, appending: %+v, want status %d", args[0], got, refused)
		}
	}
	if sum(t, node, 0, 8*mib) != before {
		t.Error("a refused device was written")
	}
	wipe(t, node)
	if got := onto(t, node, os.O_WRONLY, "cat", r.index("b")); got.status != 0 {
		t.Errorf("cat: %+v", got)
	}
	wantStart(t, node, r.b)
	must(t, "mkfs.ext4", "-q", "-F", node)
	mount(t, "-o", "ro", node)
	before = sum(t, node, 0, 8*mib)
	for _, args := range [][]string{{"assemble", r.index("b"), "-"}, {"cat", r.index("b")}} {
		if got := onto(t, node, os.O_WRONLY, args...); got.status != refused || !strings.Contains(got.stderr, "is mounted on") {
			t.Errorf("%s onto what is mounted: %+v, want status %d", args[0], got, refused)
		}
	}
	if sum(t, node, 0, 8*mib) != before {
		t.Error("a mounted device was written")
	}
}

// failing returns the URL of a store that serves a few chunks and then fails.
func failing(t testing.TB, dir string, chunks int64) string {
	t.Helper()
	var left atomic.Int64
	left.Store(chunks)
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, ".cacnk") && left.Add(-1) < 0 {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		files.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// TestStdoutStoreFails: a device then has no head, a pipe got only the beginning of the image, and the status
// reports it.
func TestStdoutStoreFails(t *testing.T) {
	t.Parallel()
	r := noise(t, 8*mib+1)
	image := readFile(t, r.b)
	url := failing(t, r.dir, 90)
	got := run(t, "cairn", "assemble", url+"/b.caibx", "-", "--patience", "100ms")
	if got.status != notFound || len(got.stdout) == len(image) || !strings.HasPrefix(string(image), got.stdout) {
		t.Errorf("exit status %d after %d bytes, want %d after the first bytes of the image\n%s", got.status, len(got.stdout), notFound, got.stderr)
	}
	need.Root(t)
	node := looptest.Attach(t, looptest.File(t, 9*mib), 512)
	if got := onto(t, node, os.O_WRONLY, "assemble", r.index("b"), "-"); got.status != 0 {
		t.Fatalf("%+v", got)
	}
	f, err := os.OpenFile(node, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, 6*mib), mib)
	if err != nil || f.Close() != nil {
		t.Fatal(err)
	}
	got = onto(t, node, os.O_WRONLY, "assemble", failing(t, r.dir, 10)+"/b.caibx", "-", "--patience", "100ms")
	if head := readStart(t, node, 4096); got.status != notFound || !bytes.Equal(head, make([]byte, 4096)) {
		t.Errorf("a device: %+v, want status %d and no head", got, notFound)
	}
}

func readStart(t testing.TB, path string, n int) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, n)
	if _, err := io.ReadFull(f, p); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestStdoutIntoPrograms: a program that reads the whole image, one that reads a part, and one that is killed.
func TestStdoutIntoPrograms(t *testing.T) {
	t.Parallel()
	r := noise(t, 8*mib+1)
	out := filepath.Join(t.TempDir(), "out")
	pipeline := func(consumer *exec.Cmd, taken func()) ran {
		t.Helper()
		from, to, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		consumer.Stdin = from
		if err := consumer.Start(); err != nil {
			t.Fatal(err)
		}
		from.Close()
		done := make(chan ran, 1)
		go func() { done <- runTo(t, to, "assemble", r.index("b"), "-") }()
		taken()
		got := <-done
		to.Close()
		_ = consumer.Wait()
		return got
	}
	if got := pipeline(exec.Command("dd", "of="+out, "bs=64K", "conv=fsync", "status=none"), func() {}); got.status != 0 {
		t.Errorf("into dd: %+v", got)
	}
	wantSame(t, out, r.b)
	if got := pipeline(exec.Command("head", "-c", "1000"), func() {}); got.status != failed || !strings.Contains(got.stderr, "onto stdout: write /dev/stdout: broken pipe") {
		t.Errorf("into a program that has enough: %+v, want status %d", got, failed)
	}
	// A program that reads a part, and blocks until it is killed.
	stuck := exec.Command("sh", "-c", "head -c 100000 >/dev/null; echo taken; exec sleep 1000")
	said, err := stuck.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	got := pipeline(stuck, func() {
		if _, err := io.ReadFull(said, make([]byte, len("taken\n"))); err != nil {
			t.Error(err)
		}
		if err := stuck.Process.Signal(syscall.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	if got.status != failed || !strings.Contains(got.stderr, "broken pipe") {
		t.Errorf("into a program that is killed: %+v, want status %d", got, failed)
	}
}

// TestRecordToStdout: only the recording is written to stdout, at the end.
func TestRecordToStdout(t *testing.T) {
	t.Parallel()
	nbdcopy := need.Tool(t, "nbdcopy")
	r, dir := noise(t, 2*mib), t.TempDir()
	socket, pid := filepath.Join(dir, "nbd.sock"), filepath.Join(dir, "pid")
	j := start(t, nil, "serve", r.index("b"), "--record", "-", "--print-uri=false", "--listen", "unix:"+socket, "--pidfile", pid)
	awaitFile(t, pid)
	must(t, nbdcopy, "nbd+unix:///?socket="+socket, "null:")
	j.signal(t, syscall.SIGTERM)
	got := j.wait(t)
	if got.status != 0 {
		t.Fatalf("%+v", got)
	}
	shown := runInput(t, got.stdout, "cairn", "profile", "show", "-", "--index", r.index("b"))
	if shown.status != 0 || !strings.Contains(shown.stdout, "0 guessed") {
		t.Errorf("the recording: %+v", shown)
	}
	merged := runInput(t, got.stdout, "cairn", "profile", "merge", "-", "-")
	if merged.status != 0 || merged.stdout != got.stdout {
		t.Errorf("merging one recording: %d bytes, exit status %d, want the same %d bytes", len(merged.stdout), merged.status, len(got.stdout))
	}
}
