package e2e

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode"

	"cairn/nbd/nbdtest"
	"cairn/testimages"
)

// forged is a file name that writes a log line of its own on a terminal, clears it, colours it with a C1 character,
// and changes the direction of its text.
const forged = "x\ncairn: error: forged\x1b[2J\u009b31m\u202e\x7f"

// wantClean checks that a text for a terminal has only lines that begin as cairn's do, and printable characters.
func wantClean(t *testing.T, text string, beginnings ...string) {
	t.Helper()
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		begins := false
		for _, b := range beginnings {
			begins = begins || strings.HasPrefix(line, b)
		}
		if strings.HasPrefix(line, "cairn: error: forged") || !begins {
			t.Errorf("a line begins in a foreign way: %q", line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("a line has unprintable characters: %q", line)
		}
	}
}

// TestForeignTexts: names of files and partitions, and answers of servers, write no line of their own and no
// unprintable character.
func TestForeignTexts(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	t.Run("redirect", func(t *testing.T) {
		t.Parallel()
		for _, location := range []string{"ftp://h\u009b31m\u202e/x", "http://h\u009b31m\u202e.invalid/x"} {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", location)
				w.WriteHeader(http.StatusFound)
			}))
			defer server.Close()
			got := run(t, "cairn", "assemble", "--patience", "1ms", server.URL+"/x.caibx", filepath.Join(t.TempDir(), "out"))
			if got.status == 0 || !strings.Contains(got.stderr, "31m") {
				t.Errorf("a redirect to %q: %+v", location, got)
			}
			wantClean(t, got.stderr, "cairn: ")
		}
	})
	t.Run("seeds and arguments", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		seed := writeFile(t, dir, forged, []byte("no index"))
		writeFile(t, dir, forged+".caibx", []byte("no index"))
		got := run(t, "cairn", "assemble", r.index("b"), filepath.Join(t.TempDir(), forged), "--seed", seed, "--seed", seed+"="+seed+".caibx")
		if got.status != 0 {
			t.Errorf("%+v", got)
		}
		wantClean(t, got.stderr, "cairn: ", "scanning ", "in place", "zeros", "seed", "download", "from ", " ")
		got = run(t, "cairn", "info", filepath.Join(dir, forged+".caibx"))
		if got.status != damaged || !strings.Contains(got.stderr, "forged") {
			t.Errorf("%+v", got)
		}
		wantClean(t, got.stderr, "cairn: ")
	})
	t.Run("partitions", func(t *testing.T) {
		t.Parallel()
		disk := filepath.Join(t.TempDir(), "disk.img")
		if err := testimages.GPTDisk(disk, 512, testimages.Part{Name: "p\u009b31m\u202e\x7f", Size: mib}); err != nil {
			t.Fatal(err)
		}
		wantClean(t, cairn(t, "disk", disk), disk, "TARGET")
		text := cairn(t, "disk", disk, "--json")
		wantClean(t, text, "{", "}", " ")
		var got struct{ Partitions []struct{ Name string } }
		if parse(t, text, &got); len(got.Partitions) != 1 || got.Partitions[0].Name != "p\u009b31m\u202e\x7f" {
			t.Errorf("the JSON has the partitions %q", got.Partitions)
		}
	})
	t.Run("serve", func(t *testing.T) {
		t.Parallel()
		dir, socket := t.TempDir(), filepath.Join(socketDir(t), "s")
		writeFile(t, dir, forged+".caibx", readFile(t, r.index("b")))
		writeFile(t, dir, forged+".caprf", []byte("no profile"))
		writeFile(t, dir, forged+"2.caibx", []byte("no index"))
		s := serve(t, 1, "--watch", dir, "-s", filepath.Join(r.dir, "default.castr"), "--listen", "unix:"+socket)
		if err := namedClient(t, socket, forged).Read(t.Context(), make([]byte, 10), 0); err != nil {
			t.Error(err)
		}
		s.stderr.await(t, "without a profile")
		s.stderr.await(t, "an index is ignored")
		s.signal(t, syscall.SIGTERM)
		s.wantStopped(t)
		wantClean(t, s.stderr.String(), "cairn: ", "time=")
	})
}

// TestLogFlood: clients that cause thousands of warnings get a few lines in the log.
func TestLogFlood(t *testing.T) {
	t.Parallel()
	r := noise(t, mib)
	x := readIndex(t, r.index("b"))
	chunk := chunkFile(filepath.Join(r.dir, "default.castr"), x.At(0).Digest)
	must(t, "chmod", "u+w", chunk)
	must(t, "truncate", "-s", "-7", chunk)
	socket := filepath.Join(socketDir(t), "s")
	s := serve(t, 1, r.index("b"), "--listen", "unix:"+socket)
	c := client(t, socket)
	for range 1000 {
		if err := c.Read(t.Context(), make([]byte, 1), 0); err == nil {
			t.Fatal("a damaged chunk is read")
		}
	}
	_ = c.Close()
	for range 500 {
		sendGarbage(t, socket)
	}
	s.signal(t, syscall.SIGTERM)
	s.wantStopped(t)
	log := s.stderr.String()
	if n := strings.Count(log, "\n"); n < 40 || n > 80 {
		t.Errorf("the log has %d lines:\n%s", n, log[:min(len(log), 2000)])
	}
	for _, message := range []string{"request failed", "connection ended"} {
		if !strings.Contains(log, message) {
			t.Errorf("the log does not say %q:\n%s", message, log)
		}
	}
}

// sendGarbage connects, chooses the default export and sends a request without its magic, which the server answers by
// closing the connection.
func sendGarbage(t *testing.T, socket string) {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	options := append([]byte{0, 0, 0, 3}, nbdtest.OptionBytes(nbdtest.OptGo, nbdtest.InfoData(""))...)
	if _, err := conn.Write(append(options, bytes.Repeat([]byte{0xff}, 28)...)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, conn)
}
