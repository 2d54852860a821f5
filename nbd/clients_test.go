package nbd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/internal/test/need"
	"cairn/nbd"
)

// runClient runs a client, and returns its output and exit status.
func runClient(t *testing.T, name string, args ...string) (string, int) {
	t.Helper()
	path := need.Tool(t, name)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:"+os.Getenv("PATH")) // nbdsh needs the system's python
	out, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// mustRun runs a client that must succeed, and returns its output.
func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, status := runClient(t, name, args...)
	if status != 0 {
		t.Fatalf("%s %q: exit status %d\n%s", name, args, status, out)
	}
	return out
}

// newImage returns a device like a small image, half of it resident, and the path of a file with
// the same bytes.
func newImage(t *testing.T) (*lazy, string) {
	t.Helper()
	d := newLazy(data(3*mib), zero(4*mib), data(mib), zero(512*kib), data(2*mib+512*kib), zero(5*mib))
	d.isResident = func(off int64) bool { return off/mib%2 == 0 }
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, d.data, 0o600); err != nil {
		t.Fatal(err)
	}
	return d, path
}

func checkFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("the copy differs (%d bytes, want %d): %v", len(got), len(want), err)
	}
}

func TestNBDInfo(t *testing.T) {
	d, _ := newImage(t)
	r := startServer(t, &nbd.Server{},
		&nbd.Export{Name: "rootfs", Description: "a root file system", Device: d, MultiConn: true},
		&nbd.Export{Name: "data", Device: &ram{data: make([]byte, mib)}})
	if out := mustRun(t, "nbdinfo", "--list", r.uri("")); !strings.Contains(out, `export="rootfs"`) ||
		!strings.Contains(out, `export="data"`) || !strings.Contains(out, "a root file system") {
		t.Errorf("nbdinfo --list says:\n%s", out)
	}
	var info struct {
		Protocol string
		Exports  []map[string]any
	}
	if err := json.Unmarshal([]byte(mustRun(t, "nbdinfo", "--json", r.uri("rootfs"))), &info); err != nil {
		t.Fatal(err)
	}
	got := make(map[string]any)
	want := map[string]any{
		"export-name": "rootfs", "description": "a root file system",
		"export-size": float64(16 * mib), "is_read_only": true,
		"can_multi_conn": true, "can_cache": true, "can_df": true, "can_flush": false, "can_trim": false,
		"block_size_minimum": 1., "block_size_preferred": 4096., "block_size_maximum": float64(32 * mib),
		"contexts": []any{"base:allocation"},
	}
	for key := range want {
		got[key] = info.Exports[0][key]
	}
	if diff := cmp.Diff(want, got); diff != "" || info.Protocol != "newstyle-fixed" {
		t.Errorf("nbdinfo --json: %s\n%s", info.Protocol, diff)
	}
	if out := mustRun(t, "nbdinfo", "--map", "--totals", r.uri("rootfs")); !strings.Contains(out, "6815744") ||
		!strings.Contains(out, "9961472") {
		t.Errorf("nbdinfo --map --totals says:\n%s", out)
	}
}

func TestNBDInfoCan(t *testing.T) {
	d, _ := newImage(t)
	r := startServer(t, &nbd.Server{},
		&nbd.Export{Name: "ro", Device: d, MultiConn: true}, &nbd.Export{Name: "rw", Device: &ram{data: make([]byte, mib)}})
	const yes, no = 0, 2
	cases := []struct {
		what   []string
		ro, rw int
	}{
		{[]string{"--can", "connect"}, yes, yes},
		{[]string{"--can", "structured-reply"}, yes, yes},
		{[]string{"--can", "df"}, yes, yes},
		{[]string{"--can", "cache"}, yes, no},
		{[]string{"--can", "multi-conn"}, yes, no},
		{[]string{"--can", "write"}, no, yes},
		{[]string{"--can", "flush"}, no, yes},
		{[]string{"--can", "fua"}, no, yes},
		{[]string{"--can", "zero"}, no, yes},
		{[]string{"--can", "trim"}, no, no},
		{[]string{"--can", "fast-zero"}, no, no},
		{[]string{"--is", "read-only"}, yes, no},
	}
	for _, tc := range cases {
		_, ro := runClient(t, "nbdinfo", append(tc.what, r.uri("ro"))...)
		_, rw := runClient(t, "nbdinfo", append(tc.what, r.uri("rw"))...)
		if ro != tc.ro || rw != tc.rw {
			t.Errorf("nbdinfo %s: %d and %d, want %d and %d", strings.Join(tc.what, " "), ro, rw, tc.ro, tc.rw)
		}
	}
}

func TestUnknownExportIsExplained(t *testing.T) {
	r := startServer(t, &nbd.Server{}, &nbd.Export{Name: "here", Device: newLazy(data(mib))})
	out, status := runClient(t, "qemu-img", "info", r.uri("there"))
	if status == 0 || !strings.Contains(out, `there is "here"`) {
		t.Errorf("qemu-img info of an unknown export: status %d\n%s", status, out)
	}
}

func TestNBDCopy(t *testing.T) {
	d, _ := newImage(t)
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d, MultiConn: true})
	for _, how := range [][]string{nil, {"--connections=1", "--requests=1"}, {"--no-extents"}} {
		out := filepath.Join(t.TempDir(), "out")
		mustRun(t, "nbdcopy", append(how, r.uri(""), out)...)
		checkFile(t, out, d.data)
	}
}

// A read error must make the copy fail (CVE-2022-0485 was a client that ignored it).
func TestNBDCopyFails(t *testing.T) {
	d, _ := newImage(t)
	d.isResident = nil
	d.onRead = func(_ context.Context, off int64) error {
		if off/mib == 2 {
			return errors.New("no such chunk")
		}
		return nil
	}
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d, MultiConn: true})
	if out, status := runClient(t, "nbdcopy", r.uri(""), filepath.Join(t.TempDir(), "out")); status == 0 {
		t.Errorf("nbdcopy of a broken device succeeds: %s", out)
	}
}

func TestNBDCopyInto(t *testing.T) {
	image, path := newImage(t)
	d := &ram{data: bytes.Repeat([]byte{0xaa}, len(image.data))}
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d, MultiConn: true})
	mustRun(t, "nbdcopy", "--flush", path, r.uri(""))
	if !d.holds(image.data) || d.flushes() == 0 {
		t.Errorf("the device differs from the file, or was not flushed (%d)", d.flushes())
	}
}

// The kernel's driver knows only simple replies. nbdsh can be limited to them.
func TestNBDShSimpleReplies(t *testing.T) {
	d, path := newImage(t)
	d.onRead = func(_ context.Context, off int64) error {
		if off == 5*mib+1 {
			return errors.New("broken")
		}
		return nil
	}
	r := startServer(t, &nbd.Server{}, &nbd.Export{Name: "x", Device: d})
	mustRun(t, "nbdsh", "-c", `
h.set_request_structured_replies(False)
h.connect_uri("`+r.uri("x")+`")
assert not h.get_structured_replies_negotiated()
want = open("`+path+`", "rb").read()
assert h.pread(len(want) - 12345, 12345) == want[12345:]
h.set_strict_mode(0)
for off in (5*1024*1024 + 1, h.get_size()):
    try:
        h.pread(512, off)
        assert False
    except nbd.Error as e:
        assert e.errnum in (5, 22), e
h.cache(512, 0)
assert h.pread(512, 0) == want[:512]
h.shutdown()
`)
}

func TestQEMUImg(t *testing.T) {
	d, path := newImage(t)
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d})
	if out := mustRun(t, "qemu-img", "info", "-f", "raw", r.uri("")); !strings.Contains(out, "16 MiB") {
		t.Errorf("qemu-img info says:\n%s", out)
	}
	mustRun(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", path, r.uri(""))
	out := filepath.Join(t.TempDir(), "out")
	mustRun(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", r.uri(""), out)
	checkFile(t, out, d.data)
	var extents []struct {
		Start, Length int64
		Zero          bool
	}
	said := mustRun(t, "qemu-img", "map", "-f", "raw", "--output=json", r.uri(""))
	if err := json.Unmarshal([]byte(said), &extents); err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for i, e := range d.extents {
		if i >= len(extents) || extents[i].Start != at || extents[i].Length != e.Length || extents[i].Zero != e.Zero {
			t.Fatalf("qemu-img map says %+v, want %+v", extents, d.extents)
		}
		at += e.Length
	}
}

// TestMapOfLargeHole: clients request a few GiB at a time, up to an offset within a block. A hole
// is still one extent.
func TestMapOfLargeHole(t *testing.T) {
	const hole = 9<<30 + 512
	d := &lazy{extents: []nbd.Extent{data(5 * kib), zero(hole - kib), data(4 * kib)}, plain: plain{size: hole + 8*kib}}
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d})
	type extent struct{ Offset, Length, Type int64 }
	var got []extent
	if err := json.Unmarshal([]byte(mustRun(t, "nbdinfo", "--map", "--json", r.uri(""))), &got); err != nil {
		t.Fatal(err)
	}
	want := []extent{{0, 8 * kib, 0}, {8 * kib, hole - 512 - 4*kib, 3}, {hole - 512 + 4*kib, 4*kib + 512, 0}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("nbdinfo --map (-want +got):\n%s", diff)
	}
	var mapped []struct {
		Start, Length int64
		Zero          bool
	}
	if err := json.Unmarshal([]byte(mustRun(t, "qemu-img", "map", "-f", "raw", "--output=json", r.uri(""))), &mapped); err != nil {
		t.Fatal(err)
	}
	if len(mapped) != len(want) {
		t.Fatalf("qemu-img map says %+v, want %+v", mapped, want)
	}
	for i, e := range mapped {
		if e.Start != want[i].Offset || e.Length != want[i].Length || e.Zero != (want[i].Type != 0) {
			t.Errorf("qemu-img map says %+v, want %+v", e, want[i])
		}
	}
}

// A client rounds extents to its sectors. It must not lose data where zeros begin or end within
// one.
func TestQEMUImgConvertRaggedZeros(t *testing.T) {
	d := newLazy(repeat(30, data(10000), zero(50001), data(333), zero(9999))...)
	d.data = append(d.data, make([]byte, -len(d.data)&511)...)
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d})
	out := filepath.Join(t.TempDir(), "out")
	mustRun(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", "-S", "0", r.uri(""), out)
	checkFile(t, out, d.data)
}

func TestQEMUIO(t *testing.T) {
	d := newLazy(data(mib))
	copy(d.data, bytes.Repeat([]byte{0x44}, 4096))
	d.onRead = func(_ context.Context, off int64) error {
		if off >= 128*kib && off < 132*kib {
			return errors.New("chunk 1234 is gone")
		}
		return nil
	}
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d})
	out, _ := runClient(t, "qemu-io", "-r", "-f", "raw", "-c", "read 128k 4k", "-c", "read -P 0x44 0 4k", r.uri(""))
	if !strings.Contains(out, "Input/output error") || !strings.Contains(out, "read 4096/4096 bytes at offset 0") {
		t.Errorf("qemu-io says:\n%s", out)
	}
	if out, status := runClient(t, "qemu-io", "-f", "raw", "-c", "write 0 512", r.uri("")); status == 0 {
		t.Errorf("qemu-io opened a read-only export for writing:\n%s", out)
	}
}

func TestQEMUIOWrites(t *testing.T) {
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: &ram{data: bytes.Repeat([]byte{9}, mib)}})
	out := mustRun(t, "qemu-io", "-f", "raw",
		"-c", "write -P 1 0 4k", "-c", "write -z 64k 64k", "-c", "write -f -P 2 8k 4k", "-c", "flush",
		"-c", "read -P 1 0 4k", "-c", "read -P 0 64k 64k", "-c", "read -P 2 8k 4k", "-c", "read -P 9 128k 4k",
		r.uri(""))
	if strings.Contains(out, "failed") {
		t.Errorf("qemu-io says:\n%s", out)
	}
}
