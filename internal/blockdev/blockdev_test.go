package blockdev

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/testimages"
)

func TestSectionWithin(t *testing.T) {
	const total = 100
	tests := []struct {
		in   Section
		want Section
		ok   bool
	}{
		{Section{}, Section{0, 100}, true},
		{Section{0, -1}, Section{0, 100}, true},
		{Section{40, 0}, Section{40, 60}, true},
		{Section{40, 60}, Section{40, 60}, true},
		{Section{100, 0}, Section{100, 0}, true},
		{Section{40, 61}, Section{}, false},
		{Section{101, 0}, Section{}, false},
		{Section{-1, 5}, Section{}, false},
		{Section{5, 1<<63 - 1}, Section{}, false},
		{Section{1<<63 - 1, 1<<63 - 1}, Section{}, false},
	}
	for _, test := range tests {
		got, err := test.in.resolveSize(total)
		if (err == nil) != test.ok || test.ok && got != test.want {
			t.Errorf("%+v.resolveSize(%d) = %+v, %v, want %+v, ok %v", test.in, total, got, err, test.want, test.ok)
		}
	}
}

// write creates a file with the data and returns its path.
func write(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openRead(t *testing.T, path string, section Section) *File {
	t.Helper()
	f, err := OpenRead(path, section)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func openTarget(t *testing.T, path string, section Section) *Target {
	t.Helper()
	target, err := OpenTarget(t.Context(), path, Options{Section: section})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	return target
}

func TestReadSection(t *testing.T) {
	data := testimages.Random(1, 10_000)
	f := openRead(t, write(t, data), Section{1000, 2000})
	if f.Size() != 2000 || f.IsDevice() {
		t.Errorf("Size = %d, IsDevice = %v, want 2000, false", f.Size(), f.IsDevice())
	}
	got := make([]byte, 2000)
	if n, err := f.ReadAt(got, 0); n != 2000 || err != nil {
		t.Fatalf("ReadAt = %d, %v", n, err)
	}
	if !bytes.Equal(got, data[1000:3000]) {
		t.Error("ReadAt gave other bytes than the section's")
	}
	if n, err := f.ReadAt(got, 1900); n != 100 || err != io.EOF {
		t.Errorf("ReadAt beyond the section = %d, %v, want 100, EOF", n, err)
	}
}

func TestOpenReadRefuses(t *testing.T) {
	if _, err := OpenRead(t.TempDir(), Section{}); err == nil {
		t.Error("OpenRead of a directory succeeded")
	}
	if _, err := OpenRead("/dev/null", Section{}); err == nil {
		t.Error("OpenRead of a character device succeeded")
	}
	if _, err := OpenRead(filepath.Join(t.TempDir(), "absent"), Section{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenRead of nothing = %v, want ErrNotExist", err)
	}
	if _, err := OpenRead(write(t, make([]byte, 10)), Section{5, 6}); err == nil {
		t.Error("OpenRead of a section beyond the end succeeded")
	}
}

// model applies the same changes to a target and to a byte slice, and compares them.
type model struct {
	t      *testing.T
	target *Target
	want   []byte
}

func (m *model) write(off int, p []byte) {
	m.t.Helper()
	if n, err := m.target.WriteAt(p, int64(off)); n != len(p) || err != nil {
		m.t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
	}
	copy(m.want[off:], p)
}

func (m *model) zeroRange(off, n int) {
	m.t.Helper()
	if err := m.target.Zero(int64(off), int64(n)); err != nil {
		m.t.Fatalf("Zero(%d, %d) = %v", off, n, err)
	}
	clear(m.want[off : off+n])
}

func (m *model) check(when string) {
	m.t.Helper()
	got := make([]byte, m.target.Size())
	if _, err := m.target.ReadAt(got, 0); err != nil && err != io.EOF {
		m.t.Fatal(err)
	}
	if !bytes.Equal(got, m.want) {
		m.t.Errorf("%s: the target's bytes differ from the model's", when)
	}
}

// exercise calls every operation of a target within and across block boundaries.
func exercise(t *testing.T, target *Target) {
	t.Helper()
	size := int(target.Size())
	m := &model{t, target, make([]byte, size)}
	m.write(0, testimages.Random(7, size))
	for _, r := range []struct{ off, n int }{
		{0, 512}, {4096, 8192}, {20_001, 30_003}, {70_000, 1}, {70_003, 100}, {81_920, 0}, {size - 5000, 5000},
	} {
		m.zeroRange(r.off, r.n)
		m.check("after Zero, warm")
	}
	m.write(30_000, testimages.Random(8, 10_001))
	if err := target.StartWriteback(0, int64(size)); err != nil {
		t.Error(err)
	}
	if err := target.Sync(); err != nil {
		t.Error(err)
	}
	if err := target.DropCache(0, int64(size)); err != nil {
		t.Error(err)
	}
	m.check("after Sync and DropCache")
	for _, r := range [][2]int64{{-1, 1}, {int64(size), 1}, {int64(size) - 1, 2}, {1, 1<<63 - 1}} {
		if err := target.Zero(r[0], r[1]); err == nil {
			t.Errorf("Zero(%d, %d) outside the target succeeded", r[0], r[1])
		}
	}
	if n, err := target.WriteAt(make([]byte, 10), int64(size)-9); n != 0 || err == nil {
		t.Errorf("WriteAt across the end = %d, %v, want 0 and an error", n, err)
	}
	m.check("after what must not work")
}

func TestTargetFile(t *testing.T) {
	path := write(t, testimages.Random(2, 200_000))
	exercise(t, openTarget(t, path, Section{}))
}

func TestTargetSectionLeavesTheRest(t *testing.T) {
	before := testimages.Random(3, 300_000)
	path := write(t, before)
	exercise(t, openTarget(t, path, Section{50_001, 200_000}))
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(after[:50_001], before[:50_001]) || !bytes.Equal(after[250_001:], before[250_001:]) {
		t.Error("bytes outside the section changed")
	}
}

func TestReserveAndTruncate(t *testing.T) {
	path := write(t, []byte("0123456789"))
	whole := openTarget(t, path, Section{})
	if err := whole.Reserve(20); err != nil || whole.Size() != 20 {
		t.Errorf("Reserve(20) of a whole file = %v, size %d", err, whole.Size())
	}
	if err := whole.Reserve(5); err != nil || whole.Size() != 20 {
		t.Errorf("Reserve(5) = %v, size %d, want no change", err, whole.Size())
	}
	if err := whole.Truncate(30); err != nil || whole.Size() != 20 {
		t.Errorf("Truncate(30) = %v, size %d, want no change", err, whole.Size())
	}
	if err := whole.Truncate(4); err != nil || whole.Size() != 4 {
		t.Errorf("Truncate(4) = %v, size %d", err, whole.Size())
	}
	if err := whole.Close(); err != nil {
		t.Fatal(err)
	}
	section := openTarget(t, path, Section{1, 2})
	if e, ok := errors.AsType[*RefusedError](section.Reserve(3)); !ok || e.Check != CheckTooSmall {
		t.Errorf("Reserve beyond a section = %v, want refusal as too small", e)
	}
	if err := section.Truncate(1); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "0123" {
		t.Errorf("the file holds %q, %v, want 0123", got, err)
	}
	toEnd := openTarget(t, write(t, make([]byte, 10)), Section{Size: -1})
	if err := errors.Join(toEnd.Reserve(20), toEnd.Truncate(5)); err != nil || toEnd.Size() != 5 {
		t.Errorf("all of a file, up to its end, cannot be resized: %v, size %d", err, toEnd.Size())
	}
}

func TestTargetOfLeavesTheFileOpen(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	target, err := TargetOf(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := target.Reserve(200_000); err != nil {
		t.Fatal(err)
	}
	exercise(t, target)
	if err := target.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Sync(); err != nil {
		t.Errorf("the file is not open after the target's Close: %v", err)
	}
}

func TestForceUnknown(t *testing.T) {
	path := write(t, make([]byte, 10))
	for _, name := range []string{
		CheckNotTarget, CheckRoot, CheckMounted, CheckHolder, CheckSwap, CheckReadOnly, CheckClaimed, CheckTooSmall,
		CheckOverlap, "", "all", "Loop-backing",
	} {
		_, err := OpenTarget(t.Context(), path, Options{Force: []string{CheckLoop, name}})
		want := fmt.Sprintf("the check %q cannot be lifted, only in-dev, loop-backing", name)
		if !errors.Is(err, ErrNotLiftable) || err.Error() != want {
			t.Errorf("OpenTarget with force %q = %v, want %q", name, err, want)
		}
	}
	target, err := OpenTarget(t.Context(), path, Options{Force: Liftable()})
	if err != nil {
		t.Fatal(err)
	}
	target.Close()
}

func TestRefusedErrorText(t *testing.T) {
	err := &RefusedError{"/dev/sda2", CheckMounted, "it is mounted on /", "choose the other slot"}
	if diff := cmp.Diff("refusing to write to /dev/sda2: it is mounted on /", err.Error()); diff != "" {
		t.Error(diff)
	}
}
