package local_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cairn/blob"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/local"
	"cairn/store/storetest"
)

// TestCallsForAChunk limits the system calls for each chunk. It runs this program under strace with
// few and with many chunks, once to store them and once to read them. A call costs about as much as
// compressing a kilobyte, and on a slow file system much more. The Go runtime's own calls do not
// count.
func TestCallsForAChunk(t *testing.T) {
	const few, many = 20, 220
	for what, most := range map[string]float64{
		"store": 10, // two stats, create, write, close; look for its directory, make, open and close it, rename
		"read":  4,  // open, size, read, close
	} {
		before, after := fileCalls(t, what, few), fileCalls(t, what, many)
		perChunk := float64(after-before) / (many - few)
		if perChunk > most+0.1 {
			t.Errorf("%s: %.2f system calls for a chunk, want at most %v", what, perChunk, most)
		}
		if perChunk < 3 {
			t.Errorf("%s: %.2f system calls for a chunk: they are not counted", what, perChunk)
		}
	}
}

// TestFoundIsFlushed: Commit also flushes the chunks that Has found, since their writer may not
// have.
func TestFoundIsFlushed(t *testing.T) {
	if text := calls(t, "syncfs", "find", 5); !bytes.Contains(text, []byte("syncfs(")) {
		t.Error("a batch that wrote nothing flushes nothing")
	}
}

// fileCalls returns the number of TestHelperChunks's system calls on files.
func fileCalls(t *testing.T, what string, chunks int) (n int) {
	t.Helper()
	for lines := bufio.NewScanner(bytes.NewReader(calls(t, "file,desc", what, chunks))); lines.Scan(); {
		if isFileCall(lines.Text()) {
			n++
		}
	}
	return n
}

// calls returns strace's log of the system calls of these kinds in TestHelperChunks.
func calls(t *testing.T, kinds, what string, chunks int) []byte {
	t.Helper()
	strace := need.Tool(t, "strace")
	out := filepath.Join(t.TempDir(), "calls")
	dir := filepath.Join(t.TempDir(), "store")
	if what != "store" {
		storeChunks(t, dir, chunks)
	}
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-qq", "-o", out, "-e", "trace="+kinds,
		os.Args[0], "-test.run=^TestHelperChunks$")
	cmd.Env = append(os.Environ(), "CAIRN_TEST_CHUNKS="+strconv.Itoa(chunks), "CAIRN_TEST_WHAT="+what, "CAIRN_TEST_DIR="+dir)
	if text, err := cmd.CombinedOutput(); err != nil {
		if bytes.Contains(text, []byte("ptrace")) || bytes.Contains(text, []byte("PTRACE")) {
			need.Missing(t, "this process may not trace another: "+string(text))
		}
		t.Fatalf("%v: %s", err, text)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// isFileCall reports whether a line of strace begins a call other than the runtime's own.
func isFileCall(line string) bool {
	_, call, _ := strings.Cut(strings.TrimLeft(line, " "), " ") // after the thread's number
	name, _, begins := strings.Cut(strings.TrimLeft(call, " "), "(")
	own := []string{"epoll_pwait", "epoll_create1", "eventfd2", "mmap", "madvise", "pipe2"}
	return begins && !strings.ContainsAny(name, " <+-") && !slices.Contains(own, name)
}

// TestHelperChunks stores, finds or reads chunks under strace.
func TestHelperChunks(t *testing.T) {
	dir := os.Getenv("CAIRN_TEST_DIR")
	if dir == "" {
		t.Skip("other tests run it")
	}
	n, err := strconv.Atoi(os.Getenv("CAIRN_TEST_CHUNKS"))
	if err != nil {
		t.Fatal(err)
	}
	switch os.Getenv("CAIRN_TEST_WHAT") {
	case "store":
		storeChunks(t, dir, n)
		return
	case "find":
		findChunks(t, dir, n)
		return
	}
	chunks := store.NewChunks(create(t, dir, local.Options{}), blob.SHA512_256)
	for i := range n {
		data := storetest.Bytes(uint64(i), 5000)
		if err := store.GetOne(t.Context(), chunks, blob.SHA512_256.Sum(data), make([]byte, len(data))); err != nil {
			t.Fatal(err)
		}
	}
}

// storeChunks stores n chunks as make does: it checks first whether the store has them.
func storeChunks(t *testing.T, dir string, n int) {
	t.Helper()
	makeOf(t, dir, n, func(w *store.Writer, d blob.Digest, data []byte) {
		if has, err := w.Has(t.Context(), d); has || err != nil {
			t.Fatalf("Has = %v, %v", has, err)
		}
		if _, err := w.Put(t.Context(), d, data); err != nil {
			t.Fatal(err)
		}
	})
}

// findChunks checks for n chunks as make does when the store has all of them.
func findChunks(t *testing.T, dir string, n int) {
	t.Helper()
	makeOf(t, dir, n, func(w *store.Writer, d blob.Digest, _ []byte) {
		if has, err := w.Has(t.Context(), d); !has || err != nil {
			t.Fatalf("Has = %v, %v", has, err)
		}
	})
}

// makeOf calls do for each of n chunks with a writer, and commits.
func makeOf(t *testing.T, dir string, n int, do func(w *store.Writer, d blob.Digest, data []byte)) {
	t.Helper()
	w, err := store.NewWriter(create(t, dir, local.Options{}), store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for i := range n {
		data := storetest.Bytes(uint64(i), 5000)
		do(w, blob.SHA512_256.Sum(data), data)
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}
