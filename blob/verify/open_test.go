package verify

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestOpen: a file that is too short, or has other bytes than zeros behind the image, is refused before
// it is hashed. A stream and a file give the same result.
func TestOpen(t *testing.T) {
	image, dir := image(), t.TempDir()
	x := index(t, image)
	for _, c := range []struct {
		name string
		held []byte
		want string // why it is refused; "" if it is hashed
		bad  int
		zero bool // the image is unfinished
	}{
		{"right", image, "", 0, false},
		{"zeros behind", append(bytes.Clone(image), make([]byte, 5000)...), "", 0, false},
		{"one byte", flipped(image, 5), "", 1, false},
		{"begun", append(make([]byte, startSize), image[startSize:]...), "", 1, true},
		{"hardly begun", append(make([]byte, startSize-1), image[startSize-1:]...), "", 1, false},
		{"short", image[:len(image)-1], "has", 0, false},
		{"more behind", append(bytes.Clone(image), 0, 1), "more than zeros behind", 0, false},
	} {
		path := filepath.Join(dir, "held")
		if err := os.WriteFile(path, c.held, 0o600); err != nil {
			t.Fatal(err)
		}
		var want Report
		for _, stream := range []bool{false, true} {
			location := path
			if stream {
				location = feedFIFO(t, dir, c.held)
			}
			var got Report
			o, err := Open(t.Context(), x, location)
			if err == nil {
				got, err = o.Verify(t.Context(), Options{Workers: 2})
				o.Close()
			}
			if _, differs := errors.AsType[LengthError](err); differs != (c.want != "") || differs && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s, stream %v: %v, want an error with %q", c.name, stream, err, c.want)
			}
			if c.want == "" && (got.Bad != c.bad || got.Unfinished != c.zero) {
				t.Errorf("%s, stream %v: %d chunks are bad, unfinished %v; want %d, %v", c.name, stream, got.Bad, got.Unfinished, c.bad, c.zero)
			}
			if diff := cmp.Diff(want, got); stream && c.want == "" && diff != "" {
				t.Errorf("%s: a stream's report is not a file's (-file +stream):\n%s", c.name, diff)
			}
			want = got
		}
	}
	if _, err := Open(t.Context(), x, filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of what is not there = %v", err)
	}
}

// feedFIFO returns a FIFO into which data is written. Unread data is dropped.
func feedFIFO(t *testing.T, dir string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, "fifo")
	_ = os.Remove(path) // of an earlier case, if any
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			_, _ = f.Write(data)
			f.Close()
		}
	}()
	return path
}
