package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestCommitReplaces(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "image")
	if err := errors.Join(os.WriteFile(name, []byte("old"), 0o600), os.Chmod(name, 0o662)); err != nil {
		t.Fatal(err)
	}
	f, err := Create(name, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(6); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("new"), 3); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "old" {
		t.Fatalf("before Commit the file holds %q, %v; want the old content", got, err)
	}
	got := names(t, dir)
	if len(got) != 2 || !strings.HasPrefix(got[0], ".image.") || !strings.HasSuffix(got[0], ".tmp") {
		t.Errorf("the directory holds %q, want image and .image.RANDOM.tmp", got)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(name); err != nil || string(got) != "\x00\x00\x00new" {
		t.Errorf("after Commit the file holds %q, %v", got, err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode() != 0o662 {
		t.Errorf("mode = %v, %v, want 0662 as before", info.Mode(), err)
	}
	if err := f.Lost(); err != nil {
		t.Errorf("Lost = %v", err)
	}
	if diff := cmp.Diff([]string{"image"}, names(t, dir)); diff != "" {
		t.Errorf("left in the directory (-want +got):\n%s", diff)
	}
	if err := f.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Commit = %v, want ErrClosed", err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close after Commit = %v", err)
	}
}

// TestExchangedDirectory: the file stays in the directory in which it was created. A link that takes the directory's
// path meanwhile leads to nothing.
func TestExchangedDirectory(t *testing.T) {
	dir := t.TempDir()
	sub, moved, outside := filepath.Join(dir, "sub"), filepath.Join(dir, "moved"), filepath.Join(dir, "outside")
	create := map[string]func(string, fs.FileMode) (*File, error){"Create": Create, "Resume": Resume}
	for what, create := range create {
		if err := errors.Join(os.Mkdir(sub, 0o700), os.Mkdir(outside, 0o700)); err != nil {
			t.Fatal(err)
		}
		f, err := create(filepath.Join(sub, "image"), 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Rename(sub, moved), os.Symlink(outside, sub)); err != nil {
			t.Fatal(err)
		}
		if err := f.Commit(); err != nil {
			t.Errorf("%s: Commit = %v", what, err)
		}
		if got, there := names(t, moved), names(t, outside); len(got) != 1 || got[0] != "image" || there != nil {
			t.Errorf("%s: the directory holds %q, and the other one %q", what, got, there)
		}
		if err := errors.Join(os.RemoveAll(moved), os.RemoveAll(outside), os.Remove(sub)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	f, err := Create(filepath.Join(dir, "image"), 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	if err := f.Commit(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Commit after Close = %v, want ErrClosed", err)
	}
	if got := names(t, dir); got != nil {
		t.Errorf("the directory holds %q, want nothing", got)
	}
}

func TestFailedCommitLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "image")
	f, err := Create(name, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(name, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); !errors.Is(err, ErrNotRegular) {
		t.Errorf("Commit over a directory = %v, want ErrNotRegular", err)
	}
	if diff := cmp.Diff([]string{"image"}, names(t, dir)); diff != "" {
		t.Errorf("left in the directory (-want +got):\n%s", diff)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo, link := filepath.Join(dir, "fifo"), filepath.Join(dir, "link")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		want error
	}{
		{dir, ErrNotRegular},
		{"/dev/null", ErrNotRegular},
		{fifo, ErrNotRegular},
		{link, ErrNotRegular},
		{filepath.Join(dir, "absent", "image"), fs.ErrNotExist},
	}
	for _, test := range tests {
		if _, err := Create(test.name, 0o644); !errors.Is(err, test.want) {
			t.Errorf("Create(%s) = %v, want %v", test.name, err, test.want)
		}
	}
	if diff := cmp.Diff([]string{"fifo", "link"}, names(t, dir)); diff != "" {
		t.Errorf("left in the directory (-want +got):\n%s", diff)
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"short", strings.Repeat("n", 255)} {
		name = filepath.Join(dir, name)
		if err := Write(name, []byte("content"), 0o646); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(name); err != nil || info.Mode() != 0o646 {
			t.Errorf("mode = %v, %v, want 0646 whatever the umask", info.Mode(), err)
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != "content" {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("the directory holds %q, want the two files", got)
	}
}

// TestCheck: Check returns the error of Create, and leaves no file.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]error{"new": nil, "absent/new": fs.ErrNotExist, ".": ErrNotRegular} {
		if err := Check(filepath.Join(dir, name)); !errors.Is(err, want) {
			t.Errorf("Check(%s) = %v, want %v", name, err, want)
		}
	}
	if got := names(t, dir); len(got) != 0 {
		t.Errorf("Check left %q", got)
	}
}

func TestSync(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := Sync(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Sync of nothing = %v, want %v", err, fs.ErrNotExist)
	}
	if err := errors.Join(os.WriteFile(name, []byte("x"), 0o600), Sync(name)); err != nil {
		t.Error(err)
	}
}
