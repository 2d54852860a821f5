package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/blockdev"
)

func TestResolvePaths(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, name := range []string{"plain", "with#hash", "PARTLABEL"} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"link": "plain", "early": "sub/new", "chain": "lost", "lost": "/dev/sdzz9", "dev": "/dev"} {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir("sub", 0o700); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ text, want string }{
		{"plain", "plain"},
		{"link", "plain"},
		{dir + "/link", dir + "/plain"},
		{"with#hash", "with#hash"},
		{"PARTLABEL", "PARTLABEL"},
		{"new", "new"},
		{"early", "sub/new"},
		{dir + "/early", dir + "/sub/new"},
		{"./PARTLABEL=new", "./PARTLABEL=new"},
		{"/dev/null", "/dev/null"},
	}
	for _, test := range tests {
		got, err := Resolve(test.text)
		want := Location{Path: test.want, Section: blockdev.Section{Size: -1}}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("Resolve(%q): %v (-want +got):\n%s", test.text, err, diff)
		}
	}
	for _, text := range []string{"absent.img#root-a", "/dev/sdzz9", "/dev//../dev/sdzz9", "#root-a", "lost", "chain", "dev/sdzz9", "/sys/sdzz9"} {
		if got, err := Resolve(text); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Resolve(%q) = %+v, %v, want ErrNotExist", text, got, err)
		}
	}
}

func TestResolveInImage(t *testing.T) {
	path := image(t, 512)
	hashed := filepath.Join(filepath.Dir(path), "disk#1.img")
	link := filepath.Join(filepath.Dir(path), "link")
	if err := errors.Join(os.Link(path, hashed), os.Symlink(path, link)); err != nil {
		t.Fatal(err)
	}
	rootB := slots()[2]
	for text, want := range map[string]string{
		path + "#root-b":   path,
		path + "#3":        path,
		hashed + "#root-b": hashed,
		link + "#root-b":   path,
	} {
		got, err := Resolve(text)
		if err != nil {
			t.Error(err)
			continue
		}
		section := blockdev.Section{Offset: rootB.Start, Size: rootB.Size}
		if got.Path != want || got.Section != section || got.Partition.Name != "root-b" {
			t.Errorf("Resolve(%q) = %+v, want %+v of %s", text, got, section, want)
		}
	}
	for text, want := range map[string]error{
		path + "#root-c":     ErrNotFound,
		path + "#":           ErrNotFound,
		path + "#root-b#":    ErrNotFound,
		"/dev/zero#root-b":   nil,
		t.TempDir() + "#1":   nil,
		write(t, mib) + "#1": ErrNoTable,
		"PARTLABEL=":         ErrNotFound,
		"PARTUUID=":          ErrNotFound,
	} {
		if got, err := Resolve(text); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("Resolve(%q) = %+v, %v, want error %v", text, got, err, want)
		}
	}
}

// write creates a file of n zeros.
func write(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, n), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
