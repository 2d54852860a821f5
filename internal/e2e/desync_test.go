package e2e

import (
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cairn/internal/need"
)

// desyncServer starts desync's server of chunks or of indexes, which ends with the test, and returns its URL.
func desyncServer(t *testing.T, kind, dir string, flags ...string) string {
	t.Helper()
	tool := need.Tool(t, "desync")
	for range 5 { // a port that was free may be taken
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		l.Close()
		cmd := exec.Command(tool, append([]string{kind, "-s", dir, "-l", address}, flags...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			<-ended
		})
		if answers("http://"+address, ended) {
			return "http://" + address
		}
	}
	t.Fatal("desync found no port")
	return ""
}

// answers waits until a server answers, or has ended.
func answers(url string, ended chan struct{}) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if answer, err := http.Get(url + "/"); err == nil {
			answer.Body.Close()
			return true
		}
		select {
		case <-ended:
			return false
		default:
		}
	}
	return false
}

// TestDesyncServer: desync's servers are stores to read and to write, in either form. They call a request for the other
// form a bad one, and tell no sizes.
func TestDesyncServer(t *testing.T) {
	p := small(t)
	indexes := desyncServer(t, "index-server", t.TempDir(), "-w")
	for name, flags := range map[string][]string{"compressed": {"-w"}, "plain": {"-w", "-u"}} {
		t.Run(name, func(t *testing.T) {
			dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
			url, index := desyncServer(t, "chunk-server", dir, flags...), indexes+"/"+name+".caibx"
			compression, other := "zstd", "none"
			if name == "plain" {
				compression, other = "none", "zstd"
			}
			fails(t, failed, "takes chunks in one form only: "+name, "make", index, p.a, "-s", url, "--compression", other)
			cairn(t, "make", index, p.a, "-s", url, "--compression", compression)
			again := run(t, "cairn", "make", index, p.a, "-s", url, "--compression", compression)
			if again.status != 0 || !strings.Contains(again.stderr, "none was written") {
				t.Errorf("making it again: %d, %s", again.status, again.stderr)
			}
			cairn(t, "verify", index, "-s", url)
			cairn(t, "assemble", index, out, "-s", url)
			wantSame(t, out, p.a)
			if got := cairn(t, "plan", index, out+"2", "-s", url); !strings.Contains(got, "to download") {
				t.Errorf("plan says %s", got)
			}
			fails(t, notFound, "the store lacks", "verify", publishedBeside(t, p.b), "-s", url)

			mirror := t.TempDir()
			cairn(t, "store", "copy", url, mirror, index, "--indexes-to", mirror)
			cairn(t, "verify", filepath.Join(mirror, name+".caibx"), "-s", mirror)
			back := desyncServer(t, "chunk-server", t.TempDir(), flags...)
			cairn(t, "store", "copy", mirror, back, index, "--compression", compression)
			cairn(t, "verify", index, "-s", back)

			fails(t, failed, "leave the path out", "verify", index, "-s", url+"/path")
			readOnly := desyncServer(t, "chunk-server", t.TempDir(), flags[1:]...)
			fails(t, failed, "takes no uploads", "make", index, p.a, "-s", readOnly, "--compression", compression)
		})
	}
	t.Setenv("DESYNC_ENCRYPTION_KEY", strings.Repeat("0", 64))
	encrypted := desyncServer(t, "chunk-server", t.TempDir(), "--encryption")
	fails(t, failed, "are they encrypted", "verify", indexes+"/plain.caibx", "-s", encrypted)
}

// publishedBeside is the index of an image, and its chunks are nowhere else than beside it.
func publishedBeside(t *testing.T, image string) string {
	t.Helper()
	index := filepath.Join(t.TempDir(), "other.caibx")
	cairn(t, "make", index, image)
	return index
}
