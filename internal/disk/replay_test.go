package disk

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

// TestNeedReplay: a copy of a mounted file system needs a replay, and the kernel mounts it read-only with the option
// only. A file system that was never mounted, or was unmounted, needs none.
func TestNeedReplay(t *testing.T) {
	need.Root(t)
	for _, c := range []struct {
		kind, option string
		size         int64
		args         []string
	}{
		{"ext3", "noload", 16 * mib, []string{"mkfs.ext3", "-q", "IMAGE"}},
		{"ext4", "noload", 16 * mib, []string{"mkfs.ext4", "-q", "IMAGE"}},
		{"xfs", "norecovery", 320 * mib, []string{"mkfs.xfs", "-q", "IMAGE"}},
		{"xfs", "norecovery", 320 * mib, []string{"mkfs.xfs", "-q", "-b", "size=1024", "-l", "size=64m,su=64k", "IMAGE"}},
		{"btrfs", "rescue=nologreplay", 128 * mib, []string{"mkfs.btrfs", "-q", "IMAGE"}},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			t.Parallel()
			image := filesystem(t, c.size, c.args[0], c.args[1:]...)
			wantReplay(t, "new", image)
			dir := t.TempDir()
			unmount := mount(t, image, dir, "rw")
			live := c.kind + " " + c.option
			for n := range 3 { // btrfs logs the flushes of a file that an earlier transaction holds
				writeDurably(t, filepath.Join(dir, "file"), testimages.Random(uint64(n), 100_000*(n+1)))
			}
			copied := copyOf(t, image)
			wantReplay(t, "mounted", copied, live)
			unmount()
			wantReplay(t, "unmounted", image)
			wantMountable(t, copied, c.option)
			mount(t, image, dir, "rw")()
			wantReplay(t, "unmounted again", image)
		})
	}
}

// wantReplay checks the result of NeedReplay, each element as KIND OPTION.
func wantReplay(t *testing.T, when, image string, want ...string) {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range NeedReplay(f, info.Size()) {
		name := ""
		if r.Partition != nil {
			name = " in " + r.Partition.Name
		}
		got = append(got, r.Kind+" "+r.Option+name)
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		t.Errorf("%s: NeedReplay finds %q, want %q", when, got, want)
	}
}

// mount mounts an image and returns a function that unmounts it.
func mount(t *testing.T, image, dir, options string) (unmount func()) {
	t.Helper()
	out, err := exec.Command(need.Tool(t, "mount"), "-o", "loop,"+options, image, dir).CombinedOutput()
	if strings.Contains(string(out), "unknown filesystem type") {
		t.Skipf("the kernel has no such file system: %s", out)
	}
	if err != nil {
		t.Fatalf("mount -o %s: %v\n%s", options, err, out)
	}
	done := false
	unmount = func() {
		if !done {
			done = true
			looptest.Run(t, "umount", dir)
		}
	}
	t.Cleanup(unmount)
	return unmount
}

// wantMountable checks that a copy on a read-only device can be mounted with the option, and not without it.
func wantMountable(t *testing.T, image, option string) {
	t.Helper()
	node := strings.TrimSpace(looptest.Run(t, need.Tool(t, "losetup"), "--find", "--show", "--read-only", image))
	defer looptest.Run(t, "losetup", "--detach", node)
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", "ro", node, dir).CombinedOutput(); err == nil {
		t.Errorf("mount -o ro of a live copy works:\n%s", out)
		looptest.Run(t, "umount", dir)
	}
	looptest.Run(t, "mount", "-o", "ro,"+option, node, dir)
	looptest.Run(t, "umount", dir)
}

// writeDurably writes and flushes a file, which leaves an entry in the log of btrfs.
func writeDurably(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func copyOf(t *testing.T, path string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "copy")
	looptest.Run(t, "cp", "--sparse=always", path, name)
	return name
}

// liveExt4 returns an ext4 with the flag of a mounted file system.
func liveExt4(t *testing.T) []byte {
	t.Helper()
	p := read(t, filesystem(t, 0, "mkfs.ext4", "-q", "IMAGE", "2M"))
	p[1024+0x60] |= 4
	return p
}

func TestNeedReplayInPartitions(t *testing.T) {
	path := image(t, 512)
	p := read(t, path)
	ext4 := liveExt4(t)
	copy(p[slots()[2].Start:], ext4)
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	wantReplay(t, "in a disk image", path, "ext4 noload in root-b")
}

// scattered is a disk of zeros with bytes in two places.
type scattered struct {
	head, more []byte
	at         int64 // the offset of more
}

func (s scattered) ReadAt(p []byte, off int64) (int, error) {
	_, _ = padded(s.head).ReadAt(p, off)
	if from := s.at - off; from >= 0 && from < int64(len(p)) {
		copy(p[from:], s.more)
	} else if from < 0 && -from < int64(len(s.more)) {
		copy(p, s.more[-from:])
	}
	return len(p), nil
}

func FuzzNeedReplay(f *testing.F) {
	ext := make([]byte, 1152)
	copy(ext[1024+0x38:], "\x53\xef")
	ext[1024+0x60], ext[1024+4] = 4, 1
	f.Add(ext, []byte{}, uint32(0))
	f.Add([]byte{}, []byte("_BHRfS_M"), uint32(64<<10+0x40))
	xfs := make([]byte, 128)
	copy(xfs, "XFSB\x00\x00\x10\x00")
	xfs[48+7], xfs[84+3], xfs[96+3], xfs[124] = 4, 16, 8, 4
	f.Add(xfs, []byte("\xfe\xed\xba\xbe\x00\x00\x00\x01\x00\x00\x00\x02\x00\x00\x02\x00"), uint32(16<<10))
	f.Fuzz(func(t *testing.T, head, more []byte, at uint32) {
		const size = 1 << 20
		for _, r := range NeedReplay(scattered{head, more, int64(at % size)}, size) {
			if r.Kind == "" || r.Option == "" {
				t.Errorf("NeedReplay = %+v", r)
			}
		}
	})
}

// TestXFSLogWraps follows a small log for many cycles. The last record is found wherever it ends, also when it wraps
// around.
func TestXFSLogWraps(t *testing.T) {
	const blocks = 15
	ring := make([]byte, blocks*xfsBlock)
	log := xfsLog{bytes.NewReader(ring), 0, blocks}
	if clean, known := log.isClean(); !clean || !known {
		t.Errorf("a log that was never written: %v, %v", clean, known)
	}
	for n, unmounts := range []int{1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0} {
		for i := range 2 { // a header, and a block with one operation
			at := 2*n + i
			p := ring[at%blocks*xfsBlock:][:xfsBlock]
			clear(p)
			be.PutUint32(p, uint32(at/blocks+1))
			if i == 0 {
				be.PutUint32(p[4:], uint32(at/blocks+1))
				be.PutUint32(p, xfsRecord)
				be.PutUint32(p[12:], xfsBlock)
				be.PutUint32(p[40:], 1)
				be.PutUint32(p[320:], 32<<10)
			} else {
				p[9] = byte(0x20 * unmounts)
			}
		}
		if clean, known := log.isClean(); clean != (unmounts == 1) || !known {
			t.Errorf("after record %d: clean %v, known %v, want clean %v", n, clean, known, unmounts == 1)
		}
	}
}
