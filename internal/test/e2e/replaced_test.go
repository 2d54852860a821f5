package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/test/need"
)

// marked gives a file an owner, a mode and an attribute. It skips the test where there are no attributes.
func marked(t testing.TB, path string) {
	t.Helper()
	err := errors.Join(os.Chown(path, 1234, 2345), os.Chmod(path, 0o640))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(path, "user.mark", []byte("kept"), 0); err != nil {
		t.Skip(err)
	}
}

func wantMarked(t testing.TB, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 1234 || st.Gid != 2345 || info.Mode() != 0o640 {
		t.Errorf("%s is %d:%d %v", path, st.Uid, st.Gid, info.Mode())
	}
	value := make([]byte, 10)
	n, err := unix.Getxattr(path, "user.mark", value)
	if err != nil || string(value[:n]) != "kept" {
		t.Errorf("the attribute of %s is %q, %v", path, value[:max(n, 0)], err)
	}
}

// TestReplacedFilesKeepAttributes: every replaced file keeps its owner.
func TestReplacedFilesKeepAttributes(t *testing.T) {
	t.Parallel()
	need.Root(t)
	r := noise(t, 300_000)
	dir := t.TempDir()
	files := map[string][]string{}
	old := func(name string) string {
		return writeFile(t, dir, name, []byte("old"))
	}
	target, page := old("image"), old("page.html")
	index, copied := old("new.caibx"), old("b.caibx")
	files[target] = []string{"assemble", r.index("b"), target}
	files[page] = []string{"plan", r.index("b"), filepath.Join(dir, "absent"), "--html", page}
	files[index] = []string{"make", index, r.b}
	files[copied] = []string{"store", "copy", filepath.Join(r.dir, "default.castr"), filepath.Join(dir, "c.castr"), r.index("b"), "--indexes-to", dir}
	for path, args := range files {
		marked(t, path)
		if got := run(t, "cairn", args...); got.status != 0 || strings.Contains(got.stderr, "warning") {
			t.Errorf("cairn %q: %+v", args, got)
		}
		wantMarked(t, path)
		if data := readFile(t, path); string(data) == "old" {
			t.Errorf("%s was not replaced", path)
		}
	}
	wantSame(t, target, r.b)
}
