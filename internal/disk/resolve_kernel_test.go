package disk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"cairn/internal/blockdev"
	"cairn/internal/blockdev/mountinfo"
	"cairn/internal/blockdev/sysfs"
	"cairn/internal/test/looptest"
	"cairn/internal/test/need"
	"cairn/testimages"
)

// uniqueDisk creates a disk image whose partition names and GUIDs no other disk of this machine has.
func uniqueDisk(t *testing.T, sectorSize int) (path, slot string) {
	t.Helper()
	slot = fmt.Sprintf("cairn-%d-%d", os.Getpid(), sectorSize)
	path = filepath.Join(t.TempDir(), "disk.img")
	parts := []testimages.Part{{Name: slot + "-a", Size: mib}, {Name: slot + "-b", Size: 2 * mib}}
	if err := testimages.GPTDisk(path, sectorSize, parts...); err != nil {
		t.Fatal(err)
	}
	return path, slot
}

func TestResolveOnDisk(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		path, slot := uniqueDisk(t, sector)
		node := looptest.Attach(t, path, sector)
		link := filepath.Join(t.TempDir(), "by-id")
		if err := os.Symlink(node, link); err != nil {
			t.Fatal(err)
		}
		parts, err := Partitions(node)
		if err != nil {
			t.Fatal(err)
		}
		want := Location{Path: node + "p2", Section: blockdev.Section{Size: -1}, Partition: &parts[1]}
		for _, text := range []string{
			node + "#" + slot + "-b",
			node + "#2",
			link + "#" + slot + "-b",
			"PARTLABEL=" + slot + "-b",
			"PARTUUID=" + parts[1].UUID,
			"PARTUUID=" + strings.ToUpper(parts[1].UUID),
		} {
			got, err := Resolve(text)
			if got.Partition != nil {
				got.Partition.Type = parts[1].Type // unknown to the kernel
			}
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("Resolve(%q): %v (-want +got):\n%s", text, err, diff)
			}
		}
		for _, text := range []string{node + "#" + slot, "PARTLABEL=" + slot} {
			if got, err := Resolve(text); !errors.Is(err, ErrNotFound) {
				t.Errorf("Resolve(%q) = %+v, %v, want ErrNotFound", text, got, err)
			}
		}
		target, err := blockdev.OpenTarget(t.Context(), want.Path, blockdev.Options{Section: want.Section})
		if err != nil {
			t.Fatal(err)
		}
		if target.Size() != 2*mib {
			t.Errorf("the partition has %d bytes, want 2 MiB", target.Size())
		}
		target.Close()
	}
}

func TestResolveDuplicates(t *testing.T) {
	path, slot := uniqueDisk(t, 512)
	first := looptest.Attach(t, path, 512)
	second := looptest.Attach(t, path, 512)
	if got, err := Resolve("PARTLABEL=" + slot + "-a"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("a name that two disks have = %+v, %v, want ErrAmbiguous", got, err)
	}
	for _, node := range []string{first, second} {
		if got, err := Resolve(node + "#" + slot + "-a"); err != nil || got.Path != node+"p1" {
			t.Errorf("Resolve(%s#%s-a) = %+v, %v", node, slot, got, err)
		}
	}
}

// A partition of the table that the kernel does not have must not resolve to anything, least of all to the disk.
func TestResolveWithoutNode(t *testing.T) {
	path, slot := uniqueDisk(t, 512)
	node := looptest.Attach(t, path, 512)
	exec.Command(need.Tool(t, "partx"), "--delete", "--nr", "2", node).Run()
	if got, err := Resolve(node + "#" + slot + "-b"); err == nil {
		t.Errorf("a partition without a node resolved to %+v", got)
	}
	if got, err := Resolve("PARTLABEL=" + slot + "-b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a name without a node = %+v, %v, want ErrNotFound", got, err)
	}
}

// fakeSysfs returns a kernel with a disk whose uevents name its partitions, as any Linux since 6.10.
func fakeSysfs(t *testing.T, uevents ...string) kernel {
	t.Helper()
	root := t.TempDir()
	for i, uevent := range uevents {
		dir := filepath.Join(root, "block/mmcblk0", fmt.Sprintf("mmcblk0p%d", i+1))
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{
			"partition": fmt.Sprintln(i + 1),
			"start":     fmt.Sprintln(2048 * (i + 1)),
			"size":      "2048\n",
			"uevent":    uevent,
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return kernel{sysfs.FS(root)}
}

func TestTagsFromUevents(t *testing.T) {
	s := fakeSysfs(t,
		"DEVNAME=mmcblk0p1\nPARTN=1\nPARTNAME=root=a\nPARTUUID=AAAA-01\n",
		"DEVNAME=mmcblk0p2\nPARTN=2\nPARTNAME=twin\nPARTUUID=bbbb-02\n",
		"DEVNAME=mmcblk0p3\nPARTN=3\nPARTNAME=twin\nPARTUUID=cccc-03\n",
		"DEVNAME=mmcblk0p4\nPARTN=4\nPARTUUID=dddd-04\n",
	)
	tests := []struct {
		tag, value string
		want       string
		err        error
	}{
		{"PARTLABEL", "root=a", "/dev/mmcblk0p1", nil},
		{"PARTUUID", "aaaa-01", "/dev/mmcblk0p1", nil},
		{"PARTUUID", "BBBB-02", "/dev/mmcblk0p2", nil},
		{"PARTLABEL", "twin", "", ErrAmbiguous},
		{"PARTLABEL", "aaaa-01", "", ErrNotFound},
		{"PARTUUID", "root=a", "", ErrNotFound},
	}
	for _, test := range tests {
		got, err := s.findTag(test.tag, test.value)
		if got.Node != test.want || !errors.Is(err, test.err) {
			t.Errorf("%s=%s is %q, %v, want %q, %v", test.tag, test.value, got.Node, err, test.want, test.err)
		}
	}
}

// An unreadable table may hold the name, so the name is not proven absent.
func TestTagOfUnreadableDisk(t *testing.T) {
	s := fakeSysfs(t, "DEVNAME=mmcblk0p1\nPARTN=1\n") // there is no /dev/mmcblk0
	if _, err := os.Stat("/dev/mmcblk0"); err == nil {
		t.Skip("this machine has an mmcblk0")
	}
	if _, err := s.findTag("PARTLABEL", "root-a"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("with an unreadable table: %v, want an error other than ErrNotFound", err)
	}
}

func TestResolveRoot(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		t.Fatal(err)
	}
	if unix.Major(st.Dev) == 0 {
		t.Skip("/ lies on no single block device here")
	}
	got, err := Resolve("@root")
	if err != nil {
		t.Fatal(err)
	}
	id, err := liveKernel().numberOf(got.Path)
	if want := sysfs.ID(st.Dev); err != nil || id != want {
		t.Errorf("Resolve(@root) is %+v of number %s, %v, want %s", got, id, err, want)
	}
	if !strings.HasPrefix(got.Note, got.Path+", mounted on / as ") {
		t.Errorf("the note is %q", got.Note)
	}
}

// overlayRoot makes an overlay over $1 the root in a mount namespace of its own, and prints its mounts. $2 is a
// working directory, $3 is the new place of the lower layer.
const overlayRoot = `set -e
mount -t tmpfs none "$2"
cd "$2"
mkdir lower rw new
mount -t tmpfs none rw
mkdir rw/up rw/work
mount -t squashfs -o ro "$1" lower
mount -t overlay overlay -o "lowerdir=$2/lower,upperdir=$2/rw/up,workdir=$2/rw/work" new
cd new
mkdir -p old proc layers/lower
mount -t proc proc proc
[ -z "$3" ] || mount --move "$2/lower" ".$3"
pivot_root . old
exec /busybox sh -c '/busybox umount -l /old && exec /busybox cat /proc/self/mountinfo'
`

func TestResolveOverlayRoot(t *testing.T) {
	need.Root(t)
	busybox, err := os.ReadFile(need.Tool(t, "busybox"))
	if err != nil {
		t.Fatal(err)
	}
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(t.TempDir(), "image")
	looptest.Run(t, need.Tool(t, "mksquashfs"), tree, image, "-quiet", "-no-progress")
	node := looptest.Attach(t, image, 512)
	mounts := func(lower string) []mountinfo.Mount {
		text := looptest.Run(t, need.Tool(t, "unshare"), "--mount", "sh", "-c", overlayRoot, "-", node, t.TempDir(), lower)
		return mountinfo.Parse(text)
	}
	got, err := rootLocation(mounts("/layers/lower"), liveKernel())
	want := node + ", mounted on /layers/lower as squashfs (read-only), the lowest layer of the overlay on /"
	if err != nil || got.Path != node || got.Note != want {
		t.Errorf("with the lower layer moved along: %+v, %v, want %s", got, err, want)
	}
	got, err = rootLocation(mounts(""), liveKernel())
	if !errors.Is(err, ErrNoRoot) || !strings.Contains(err.Error(), "cannot be seen from here") {
		t.Errorf("with the lower layer left behind: %+v, %v, want ErrNoRoot", got, err)
	}
}
