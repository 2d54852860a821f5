package local_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/local"
	"cairn/store/storetest"
)

func TestBucket(t *testing.T) {
	storetest.TestBucket(t, func(t *testing.T) store.Bucket { return create(t, t.TempDir(), local.Options{}) })
}

func create(t *testing.T, dir string, o local.Options) *local.Bucket {
	t.Helper()
	b, err := local.Create(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newBatch(t *testing.T, b *local.Bucket) store.Batch {
	t.Helper()
	batch, err := b.NewBatch()
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

func write(t *testing.T, b store.Batch, name, data string) {
	t.Helper()
	if err := b.Write(t.Context(), name, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

// files returns the paths below dir. Those of directories end in a slash.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if d.IsDir() {
			name += "/"
		}
		names = append(names, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := local.Open(filepath.Join(dir, "absent"), local.Options{}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Open of an absent directory = %v, want ErrNotFound", err)
	}
	if _, err := local.Open(file, local.Options{}); err == nil || errors.Is(err, store.ErrNotFound) {
		t.Errorf("Open of a file = %v, want another error than ErrNotFound", err)
	}
	if _, err := local.Create(filepath.Join(file, "below"), local.Options{}); err == nil {
		t.Error("Create below a file succeeded")
	}
	create(t, filepath.Join(dir, "a/b/c"), local.Options{})
	create(t, filepath.Join(dir, "a/b/c"), local.Options{})
	wantFiles(t, dir, "a/", "a/b/", "a/b/c/", "file")
}

func TestVanishedDirectoryIsEmpty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	b := create(t, dir, local.Options{})
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(t.Context(), "x", nil, 10); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Read = %v, want ErrNotFound", err)
	}
}

func TestPermissions(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o022))
	for want, o := range map[fs.FileMode]local.Options{
		0o444: {}, 0o644: {Mode: 0o664}, 0o440: {Mode: 0o440},
	} {
		dir := t.TempDir()
		b := create(t, dir, o)
		batch := newBatch(t, b)
		write(t, batch, "abcd/batch", "x")
		err := errors.Join(batch.Commit(t.Context()), batch.Close(), b.Write(t.Context(), "write", nil))
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]fs.FileMode{"abcd/batch": want, "write": want, "abcd": fs.ModeDir | 0o755} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil || info.Mode() != want {
				t.Errorf("%s has mode %v, %v; want %v", name, info.Mode(), err, want)
			}
		}
	}
}

// TestGroupStore: with a umask that lets the group write, new directories do, so that several users fill one store.
func TestGroupStore(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o002))
	dir := filepath.Join(t.TempDir(), "new", "store")
	b := create(t, dir, local.Options{})
	batch := newBatch(t, b)
	write(t, batch, "abcd/batch", "x")
	err := errors.Join(batch.Commit(t.Context()), batch.Close(), b.Write(t.Context(), "cdef/write", nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"..", ".", "abcd", "cdef"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o775 {
			t.Errorf("%s has mode %v, %v; want 0775", name, info.Mode(), err)
		}
	}
}

func TestNothingIsLeft(t *testing.T) {
	dir := t.TempDir()
	b := create(t, dir, local.Options{})
	batch := newBatch(t, b)
	write(t, batch, "abcd/x", "data")
	err := errors.Join(batch.Commit(t.Context()), batch.Close(), b.Write(t.Context(), "y", nil))
	if err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, "abcd/", "abcd/x", "y")
}

func TestUncommittedIsInvisibleAndGone(t *testing.T) {
	dir := t.TempDir()
	b := create(t, dir, local.Options{})
	batch := newBatch(t, b)
	write(t, batch, "abcd/x", "data")
	if _, err := b.Stat(t.Context(), "abcd/x"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Stat before Commit = %v, want ErrNotFound", err)
	}
	if err := batch.Close(); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir)
	if err := batch.Write(t.Context(), "y", nil); err == nil {
		t.Error("Write after Close succeeded")
	}
}

// TestDeadWriters: the first writer after the death of a stage's owner removes the stage, and no
// other.
func TestDeadWriters(t *testing.T) {
	dir := t.TempDir()
	live := newBatch(t, create(t, dir, local.Options{}))
	write(t, live, "live", "data")
	for _, dead := range []string{".cairn-stage-1/lock", ".cairn-stage-1/ready-x", ".cairn-stage-1/7.tmp"} {
		plant(t, filepath.Join(dir, dead))
	}
	for _, newborn := range []string{".cairn-stage-2", ".cairn-other"} {
		if err := os.Mkdir(filepath.Join(dir, newborn), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := t.TempDir()
	plant(t, filepath.Join(elsewhere, "lock"))
	if err := os.Symlink(elsewhere, filepath.Join(dir, ".cairn-stage-link")); err != nil {
		t.Fatal(err)
	}
	if err := create(t, dir, local.Options{}).Write(t.Context(), "other", nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(live.Commit(t.Context()), live.Close()); err != nil {
		t.Fatal(err)
	}
	wantFiles(t, dir, ".cairn-other/", ".cairn-stage-link", "live", "other")
	wantFiles(t, elsewhere, "lock")
}

func plant(t *testing.T, path string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestKilledWriters: processes that are killed at any moment leave only complete objects, and the
// next writer removes all other files.
func TestKilledWriters(t *testing.T) {
	if os.Getenv("STORE_LOCAL_WRITER") != "" {
		writeForEver(t, os.Getenv("STORE_LOCAL_WRITER"))
	}
	dir := t.TempDir()
	for range 3 {
		var writers []*exec.Cmd
		for range 3 {
			writers = append(writers, startWriter(t, dir))
		}
		for _, w := range writers {
			w.Process.Kill()
			w.Wait() // the error is that it was killed
		}
	}
	b := create(t, dir, local.Options{})
	if err := b.Write(t.Context(), "last", []byte("whole")); err != nil {
		t.Fatal(err)
	}
	for _, name := range files(t, dir) {
		if strings.HasPrefix(name, ".") {
			t.Errorf("%s was left", name)
		}
		if strings.HasSuffix(name, "/") {
			continue
		}
		if got, err := b.Read(t.Context(), name, nil, 100); err != nil || string(got) != "whole" {
			t.Errorf("Read(%s) = %q, %v", name, got, err)
		}
	}
}

// startWriter starts a process that writes, and returns after its first commit.
func startWriter(t *testing.T, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWriters$")
	cmd.Env = append(os.Environ(), "STORE_LOCAL_WRITER="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Errorf("the writer says nothing: %v", err)
	}
	return cmd
}

func writeForEver(t *testing.T, dir string) {
	b := create(t, dir, local.Options{})
	for {
		batch := newBatch(t, b)
		for i := range 20 {
			write(t, batch, string(rune('a'+i))+"/x", "whole")
		}
		if err := errors.Join(batch.Commit(t.Context()), batch.Close()); err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString(".")
	}
}

func TestPrefixDirectoryRemovedMeanwhile(t *testing.T) {
	dir := t.TempDir()
	batch := newBatch(t, create(t, dir, local.Options{}))
	defer batch.Close()
	for range 2 {
		write(t, batch, "abcd/x", "data")
		if err := batch.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		wantFile(t, filepath.Join(dir, "abcd/x"), "data")
		if err := os.RemoveAll(filepath.Join(dir, "abcd")); err != nil {
			t.Fatal(err)
		}
	}
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s = %q, %v; want %q", path, got, err, want)
	}
}

func TestNotAFile(t *testing.T) {
	dir := t.TempDir()
	b := create(t, dir, local.Options{})
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", filepath.Join(dir, "null")); err != nil { // as casync marks absence
		t.Fatal(err)
	}
	for _, name := range []string{"pipe", "null"} {
		if _, err := b.Read(t.Context(), name, nil, 10); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Read(%s) = %v, want a plain error", name, err)
		}
		if _, err := b.Stat(t.Context(), name); err == nil || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Stat(%s) = %v, want a plain error", name, err)
		}
	}
}

func TestDenied(t *testing.T) {
	dir := t.TempDir()
	b := create(t, dir, local.Options{})
	if err := b.Write(t.Context(), "below/x", []byte("data")); err != nil {
		t.Fatal(err)
	}
	for _, shut := range []string{filepath.Join(dir, "below"), dir} {
		if err := os.Chmod(shut, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(shut, 0o755) })
	}
	asNobody(t, func() {
		_, err := b.Read(t.Context(), "below/x", nil, 10)
		wantDenied(t, "Read", err)
		_, err = b.Stat(t.Context(), "below/absent")
		wantDenied(t, "Stat", err)
		wantDenied(t, "Write", b.Write(t.Context(), "new", nil))
		_, err = b.NewBatch()
		wantDenied(t, "NewBatch", err)
		_, err = local.Create(filepath.Join(dir, "new"), local.Options{})
		wantDenied(t, "Create", err)
	})
}

func wantDenied(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, store.ErrDenied) || errors.Is(err, store.ErrNotFound) {
		t.Errorf("%s = %v, want ErrDenied", what, err)
	}
}

// asNobody calls do without root's right to open every file. It costs a thread, which keeps the
// other user.
func asNobody(t *testing.T, do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if os.Geteuid() == 0 {
			if err := unix.Setfsuid(65534); err != nil {
				t.Error(err)
			}
		}
		do()
	}()
	<-done
}

// TestFullDisk: the error names the object, and the old object stays.
func TestFullDisk(t *testing.T) {
	need.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		need.Missing(t, "mounting a tmpfs: "+err.Error())
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	b := create(t, dir, local.Options{})
	if err := b.Write(t.Context(), "small", []byte("old")); err != nil {
		t.Fatal(err)
	}
	batch := newBatch(t, b)
	for what, write := range map[string]func(context.Context, string, []byte) error{
		"bucket": b.Write, "batch": batch.Write,
	} {
		err := write(t.Context(), "small", make([]byte, 2<<20))
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), filepath.Join(dir, "small")) {
			t.Errorf("Write of the %s = %v, want ENOSPC with the path", what, err)
		}
	}
	if err := errors.Join(batch.Commit(t.Context()), batch.Close()); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(dir, "small"), "old")
	wantFiles(t, dir, "small")
}
