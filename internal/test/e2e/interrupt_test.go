package e2e

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"cairn/blob"
	"cairn/internal/test/need"
	"cairn/testimages"
)

// endings are the signals that interrupt a job, and the exit statuses; -1 means killed.
var endings = []struct {
	signal syscall.Signal
	status int
}{{syscall.SIGINT, interrupted}, {syscall.SIGTERM, terminated}, {syscall.SIGKILL, -1}}

// eachEnding runs a test for each signal. end interrupts a job, and reports whether the job could clean up.
func eachEnding(t *testing.T, test func(t *testing.T, end func(*job) (orderly bool))) {
	for _, e := range endings {
		t.Run(e.signal.String(), func(t *testing.T) {
			t.Parallel()
			test(t, func(j *job) bool {
				t.Helper()
				j.signal(t, e.signal)
				r := j.wait(t)
				orderly := e.signal != syscall.SIGKILL
				if r.status != e.status || orderly && !strings.Contains(r.stderr, "cairn: error: interrupted (") {
					t.Errorf("exit status %d, want %d\n%s", r.status, e.status, r.stderr)
				}
				return orderly
			})
		})
	}
}

func TestInterruptedAssembleOntoFile(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	server := newNginx(t, r.dir)
	eachEnding(t, func(t *testing.T, end func(*job) bool) {
		dir := t.TempDir()
		replaced := writeFile(t, dir, "replaced", []byte("old"))
		for _, target := range []string{filepath.Join(dir, "new"), replaced} {
			g := newGate(t, server.url, 50)
			j := start(t, nil, "assemble", g.url+"/b.caibx", target)
			g.await(t)
			end(j)
			wantOnly(t, dir, "replaced", ".replaced.partial", ".new.partial") // the next run continues with them
			if got := readFile(t, replaced); string(got) != "old" {
				t.Errorf("the old file holds %d other bytes", len(got))
			}
		}
		for _, target := range []string{filepath.Join(dir, "new"), replaced} {
			cairn(t, "assemble", server.url+"/b.caibx", target)
			wantSame(t, target, r.b)
		}
		wantOnly(t, dir, "replaced", "new")
	})
}

// TestInterruptedAssembleInPlace: the slot is unchanged, or does not look like a whole one.
func TestInterruptedAssembleInPlace(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	server := newNginx(t, r.dir)
	for _, free := range []int64{0, 5} {
		t.Run(fmt.Sprint(free, " chunks"), func(t *testing.T) {
			t.Parallel()
			eachEnding(t, func(t *testing.T, end func(*job) bool) {
				s := newSlots(t, r, false)
				before, around := s.slotB(t), s.parts(t, r.b)
				g := newGate(t, server.url, free)
				j := start(t, nil, "assemble", g.url+"/b.caibx", s.b, "--seed", s.a+"="+r.index("a"))
				g.await(t)
				end(j)
				s.wantUnfinished(t, before)
				cairn(t, "assemble", server.url+"/b.caibx", s.b, "--seed", s.a)
				around.image = sum(t, r.b, 0, fileSize(t, r.b))
				if s.parts(t, r.b) != around {
					t.Error("the slot is not the image, or something else on the disk has changed")
				}
			})
		})
	}
}

// TestInterruptedReaders: cat and verify end at once, and leave only whole chunks in the cache.
func TestInterruptedReaders(t *testing.T) {
	t.Parallel()
	r := publish(t, small(t))
	server := newNginx(t, r.dir)
	for _, command := range []string{"cat", "verify"} {
		t.Run(command, func(t *testing.T) {
			t.Parallel()
			eachEnding(t, func(t *testing.T, end func(*job) bool) {
				cache := filepath.Join(t.TempDir(), "cache")
				g := newGate(t, server.url, 50)
				j := start(t, nil, command, "-c", cache, g.url+"/b.caibx")
				g.await(t)
				if end(j) {
					wantNoStage(t, cache)
				}
				out := cairn(t, command, "-c", cache, server.url+"/b.caibx")
				if command == "cat" && !bytes.Equal([]byte(out), readFile(t, r.b)) {
					t.Error("the next cat gives other bytes than the image's")
				}
				wantNoStage(t, cache)
			})
		})
	}
}

// wantNoStage checks that a store holds only directories of chunks, and a cache also its count.
func wantNoStage(t testing.TB, store string) {
	t.Helper()
	entries, err := os.ReadDir(store)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if len(e.Name()) != 4 && e.Name() != ".cairn-cache" {
			t.Errorf("%s holds %s", store, e.Name())
		}
	}
	if left, err := filepath.Glob(filepath.Join(store, ".cairn-cache", "*.tmp")); err != nil || len(left) > 0 {
		t.Errorf("%s holds %q, %v", store, left, err)
	}
}

// TestInterruptedMakeFromStdin: the image stalls in its middle.
func TestInterruptedMakeFromStdin(t *testing.T) {
	t.Parallel()
	image := testimages.Random(5, 24*mib)
	eachEnding(t, func(t *testing.T, end func(*job) bool) {
		stdin, feed := pipe(t)
		dir := t.TempDir()
		index := filepath.Join(dir, "x.caibx")
		j := start(t, stdin, "make", "--progress=json", index, "-")
		stdin.Close()
		if _, err := feed.Write(image); err != nil {
			t.Fatal(err)
		}
		j.stderr.await(t, `"event":"progress"`)
		wantNothingMade(t, dir, end(j))
		again := runInput(t, string(image), "cairn", "make", index, "-")
		wantMade(t, dir, again, image)
	})
}

// TestInterruptedMake: strong compression of compressible data makes the job slow.
func TestInterruptedMake(t *testing.T) {
	t.Parallel()
	data := hex.AppendEncode(nil, testimages.Random(6, 16*mib))
	image := writeFile(t, t.TempDir(), "image", data)
	eachEnding(t, func(t *testing.T, end func(*job) bool) {
		dir := t.TempDir()
		index := filepath.Join(dir, "x.caibx")
		j := start(t, nil, "make", "-j1", "--compression-level=22", "--progress=json", index, image)
		j.stderr.await(t, `"event":"progress"`)
		wantNothingMade(t, dir, end(j))
		wantMade(t, dir, run(t, "cairn", "make", index, image), data)
	})
}

// wantNothingMade checks that an interrupted make has published neither an index nor a chunk.
func wantNothingMade(t testing.TB, dir string, orderly bool) {
	t.Helper()
	wantOnly(t, dir, "default.caroots", "default.castr")
	if orderly {
		wantOnly(t, filepath.Join(dir, "default.castr"))
	}
}

// wantMade checks that make has succeeded, and made x.caibx of image.
func wantMade(t testing.TB, dir string, made ran, image []byte) {
	t.Helper()
	if made.status != 0 {
		t.Fatalf("make: exit status %d\n%s", made.status, made.stderr)
	}
	wantOnly(t, dir, "default.caroots", "default.castr", "x.caibx")
	wantNoStage(t, filepath.Join(dir, "default.castr"))
	if got := cairn(t, "cat", filepath.Join(dir, "x.caibx")); got != string(image) {
		t.Errorf("cat gives %d other bytes than the image's", len(got))
	}
}

// pipe returns a pipe that is closed at the end of the test.
func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// longIndex returns an index with more bytes than a pipe holds. No store has its chunks.
func longIndex(t testing.TB) []byte {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 1, Avg: 1, Max: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for n := range byte(200) {
		for m := range byte(20) {
			if _, err := b.Add(1<<20, blob.Digest{n, m}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return b.Index().Encode()
}

// TestInterruptedReadingIndex: an index on stdin that does not end.
func TestInterruptedReadingIndex(t *testing.T) {
	t.Parallel()
	eachEnding(t, func(t *testing.T, end func(*job) bool) {
		stdin, feed := pipe(t)
		dir := t.TempDir()
		j := start(t, stdin, "assemble", "-", filepath.Join(dir, "out"))
		stdin.Close()
		index := longIndex(t)
		if _, err := feed.Write(index[:len(index)-1]); err != nil { // returns when cairn reads
			t.Fatal(err)
		}
		end(j)
		wantOnly(t, dir)
	})
}

// TestServeEndsWithReadUnderWay: the server answers the read, and then exits with 0.
func TestServeEndsWithReadUnderWay(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	server := newNginx(t, r.dir)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			g := newGate(t, server.url, 0)
			pidfile := filepath.Join(t.TempDir(), "pid")
			serving := serve(t, 1, g.url+"/b.caibx", "--pidfile", pidfile)
			read := readUnderWay(t, g, serving)
			stopping := untilStopping(t, serving)
			serving.signal(t, s)
			stopping()
			serving.signal(t, syscall.SIGHUP) // the end of a session sends it twice
			g.open()
			if out, err := read(); err != nil || !bytes.Equal(out, readFile(t, r.b)[:4096]) {
				t.Errorf("the read under way gave %d bytes, %v", len(out), err)
			}
			serving.wantStopped(t)
			wantNone(t, pidfile)
		})
	}
}

// TestServeEndsWithoutStore: a store that never answers delays the server's exit only a little, and a second
// signal ends it at once.
func TestServeEndsWithoutStore(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("the server waits for ten seconds")
	}
	r := noise(t, mib)
	server := newNginx(t, r.dir)
	for _, twice := range []bool{false, true} {
		t.Run(fmt.Sprint("second signal ", twice), func(t *testing.T) {
			t.Parallel()
			g := newGate(t, server.url, 0)
			serving := serve(t, 1, g.url+"/b.caibx")
			read := readUnderWay(t, g, serving)
			stopping := untilStopping(t, serving)
			serving.signal(t, syscall.SIGTERM)
			stopping()
			if twice {
				serving.signal(t, syscall.SIGTERM)
				if r := serving.wait(t); r.status != -1 {
					t.Errorf("exit status %d, want death by the signal", r.status)
				}
			} else {
				serving.wantStopped(t)
			}
			if out, err := read(); err == nil {
				t.Errorf("the read under way gave %d bytes", len(out))
			}
		})
	}
}

// readUnderWay starts a read of the first bytes of an export, and returns when the gate holds the chunk. The returned
// function waits for the result.
func readUnderWay(t testing.TB, g *gate, s *serving) func() ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), need.Tool(t, "nbdsh"), "-u", s.uris[0],
		"-c", "import sys; sys.stdout.buffer.write(h.pread(4096, 0))")
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g.await(t)
	return func() ([]byte, error) {
		err := cmd.Wait()
		return stdout.Bytes(), err
	}
}

// untilStopping opens an idle connection. The returned function waits until the server closes it, which it does
// when it begins to stop.
func untilStopping(t testing.TB, s *serving) func() {
	t.Helper()
	_, socket, _ := strings.Cut(s.uris[0], "?socket=")
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return func() { _, _ = io.Copy(io.Discard, conn) } // a reset may end it
}
