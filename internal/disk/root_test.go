package disk

import (
	"errors"
	"io/fs"
	"strings"
	"testing"

	"cairn/internal/blockdev/mountinfo"
)

// fakeDevices maps numbers to devices, and nodes to numbers.
type fakeDevices struct {
	devices map[string]blockDevice
	nodes   map[string]string
}

func (f fakeDevices) numberOf(node string) (string, error) {
	if number, ok := f.nodes[node]; ok {
		return number, nil
	}
	return "", &fs.PathError{Op: "stat", Path: node, Err: fs.ErrNotExist}
}

func (f fakeDevices) describeDevice(number string) (blockDevice, error) {
	if device, ok := f.devices[number]; ok {
		return device, nil
	}
	return blockDevice{}, fs.ErrNotExist
}

// machine has plain disks, a verity device, an encrypted device that only has the node of its mapping, and a volume
// whose node is missing.
func machine() fakeDevices {
	return fakeDevices{
		devices: map[string]blockDevice{
			"8:1":     {node: "/dev/sda1"},
			"8:2":     {node: "/dev/sda2"},
			"259:4":   {node: "/dev/nvme0n1p4"},
			"259:5":   {node: "/dev/nvme0n1p5"},
			"253:0":   {node: "/dev/dm-0", mapped: "root", uuid: "CRYPT-VERITY-2f5d-root"},
			"253:1":   {node: "/dev/dm-1", mapped: "cryptroot", uuid: "CRYPT-LUKS2-11aa-cryptroot"},
			"253:2":   {node: "/dev/dm-2", mapped: "vg-root", uuid: "LVM-xyz"},
			"253:3":   {node: "/dev/dm-3", mapped: "live", uuid: ""},
			"253:4":   {node: "/dev/dm-4", mapped: "gone", uuid: "LVM-abc"},
			"31:5":    {node: "/dev/mtdblock5"},
			"7:0":     {node: "/dev/loop0"},
			"7:1":     {node: "/dev/loop1"},
			"179:130": {node: "/dev/mmcblk0p2"},
		},
		nodes: map[string]string{
			"/dev/sda1": "8:1", "/dev/sda2": "8:2", "/dev/nvme0n1p4": "259:4", "/dev/nvme0n1p5": "259:5",
			"/dev/dm-0": "253:0", "/dev/mapper/cryptroot": "253:1", "/dev/dm-2": "253:2", "/dev/dm-3": "253:3",
			// /dev/mmcblk0p2 has the number of another device.
			"/dev/mtdblock5": "31:5", "/dev/loop0": "7:0", "/dev/loop1": "7:1", "/dev/mmcblk0p2": "8:1",
			"/dev/hidden": "66:6",
		},
	}
}

const before = "22 27 0:21 / /proc rw,nosuid - proc proc rw\n24 27 0:6 / /dev rw - devtmpfs udev rw,size=1k\n"

// roots are the mount tables of real systems, and the results for @root.
var roots = []struct {
	name, mountinfo string
	want            string // the note, or a part of the error
	ok              bool
}{
	{
		"Debian",
		"27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n30 27 8:2 / /home rw - ext4 /dev/sda2 rw\n",
		"/dev/sda1, mounted on / as ext4", true,
	},
	{
		"no initramfs",
		"1 1 0:2 / / rw - rootfs rootfs rw\n27 1 259:4 / / ro,relatime - squashfs /dev/root ro\n",
		"/dev/nvme0n1p4, mounted on / as squashfs (read-only)", true,
	},
	{
		"SteamOS: /etc and others are overlays, / is a btrfs slot",
		"27 1 0:24 / / ro,relatime shared:1 - btrfs /dev/nvme0n1p4 ro,ssd,subvolid=5,subvol=/\n" +
			"40 27 259:5 / /var rw - ext4 /dev/nvme0n1p5 rw\n" +
			"41 27 0:40 / /etc rw - overlay overlay rw,lowerdir=/sysroot/etc,upperdir=/sysroot/var/lib/overlays/etc/upper\n",
		"/dev/nvme0n1p4, mounted on / as btrfs (read-only)", true,
	},
	{
		"overlay over a slot that is still to be seen",
		"27 1 0:24 / / rw - overlay overlay rw,lowerdir=/run/extra:/run/root-ro,upperdir=/run/rw/up,workdir=/run/rw/work\n" +
			"28 27 0:25 / /run rw - tmpfs tmpfs rw\n29 28 259:4 / /run/root-ro ro - squashfs /dev/nvme0n1p4 ro\n" +
			"30 28 259:5 / /run/rw rw - ext4 /dev/nvme0n1p5 rw\n",
		"/dev/nvme0n1p4, mounted on /run/root-ro as squashfs (read-only), the lowest layer of the overlay on /", true,
	},
	{
		"overlay over a directory of a mount",
		"27 1 0:24 / / rw - overlay overlay rw,lowerdir=/media/data/base/root,upperdir=/u\n" +
			"29 27 8:2 / /media/data rw - ext4 /dev/sda2 rw\n",
		"/dev/sda2, mounted on /media/data as ext4, the lowest layer of the overlay on /", true,
	},
	{
		"initramfs and switch_root: the layers moved along",
		"1 1 0:2 / / rw - rootfs rootfs rw\n" +
			"27 1 0:24 / / rw - overlay overlay rw,lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work\n" +
			"28 27 7:0 / /mnt/lower ro - squashfs /dev/loop0 ro\n29 27 8:2 / /mnt/upper rw - ext4 /dev/sda2 rw\n",
		"/dev/loop0, mounted on /mnt/lower as squashfs (read-only), the lowest layer of the overlay on /", true,
	},
	{
		"initramfs that mounted the layers in the new root",
		"27 1 0:24 / / rw - overlay overlay rw,lowerdir=/newroot/mnt/ro\n28 27 179:130 / /mnt/ro ro - erofs /dev/mmcblk0p2 ro\n" +
			"29 27 7:0 / /mnt/ro ro - erofs /dev/loop0 ro\n",
		"may be the mount on", false,
	},
	{
		"OpenWrt: the layer was the root itself",
		"14 20 31:5 / /rom ro,relatime - squashfs /dev/root ro,errors=continue\n" +
			"19 20 31:6 / /overlay rw,noatime - jffs2 /dev/mtdblock6 rw\n" +
			"20 1 0:16 / / rw,noatime - overlay overlayfs:/overlay rw,lowerdir=/,upperdir=/overlay/upper,workdir=/overlay/work\n",
		"/dev/mtdblock5, mounted on /rom as squashfs (read-only), the lowest layer of the overlay on /", true,
	},
	{
		"live system: the directory is on tmpfs, in which something is mounted",
		"27 1 0:24 / / rw - overlay LiveOS_rootfs rw,lowerdir=/run/rootfsbase,upperdir=/run/overlayfs\n" +
			"28 27 0:25 / /run rw - tmpfs tmpfs rw\n29 28 253:3 / /run/rootfsbase ro - ext4 /dev/mapper/live ro\n",
		`/dev/dm-3 (device-mapper "live"), mounted on /run/rootfsbase as ext4 (read-only), the lowest layer of the overlay on /`, true,
	},
	{
		"overlay over an overlay",
		"27 1 0:24 / / rw - overlay o rw,lowerdir=/a\n28 27 0:25 / /a ro - overlay p ro,lowerdir=/b:/c\n29 27 7:1 / /c ro - erofs /dev/loop1 ro\n",
		"/dev/loop1, mounted on /c as erofs (read-only), the lowest layer of the overlay on /", true,
	},
	{
		"overlay that is also bound elsewhere",
		"27 1 0:24 / / rw - overlay o rw,lowerdir=/a\n28 27 0:24 /x /a/a rw - overlay o rw,lowerdir=/a\n29 27 7:1 / /y/a ro - erofs /dev/loop1 ro\n",
		"/dev/loop1, mounted on /y/a as erofs (read-only), the lowest layer of the overlay on /", true,
	},
	{
		"overlays that lie on one another",
		"27 1 0:24 / / rw - overlay o rw,lowerdir=/a\n28 27 0:25 / /a ro - overlay p ro,lowerdir=/b\n29 27 0:26 / /b ro - overlay q ro,lowerdir=/a\n",
		"the lowest layer of the overlay on /b is /a, which cannot be seen from here", false,
	},
	{
		"dm-verity",
		"27 1 253:0 / / ro,relatime - erofs /dev/mapper/root ro,user_xattr\n",
		`/dev/dm-0 (dm-verity "root"), mounted on / as erofs (read-only)`, true,
	},
	{
		"dm-crypt, whose node has its user's name only",
		"27 1 253:1 / / rw,relatime - ext4 /dev/mapper/cryptroot rw\n",
		`/dev/mapper/cryptroot (dm-crypt "cryptroot"), mounted on / as ext4`, true,
	},
	{
		"LVM",
		"27 1 253:2 / / rw,relatime - xfs /dev/mapper/vg-root rw,attr2\n",
		`/dev/dm-2 (LVM volume "vg-root"), mounted on / as xfs`, true,
	},
	{
		"btrfs subvolume",
		"27 1 0:24 /@/.snapshots/1/snapshot / rw - btrfs /dev/sda2 rw,subvol=/@/.snapshots/1/snapshot\n",
		"/dev/sda2, /@/.snapshots/1/snapshot of it mounted on / as btrfs", true,
	},
	{
		"ostree",
		"27 1 8:2 /ostree/deploy/os/deploy/1.0 / rw - xfs /dev/sda2 rw\n",
		"/dev/sda2, /ostree/deploy/os/deploy/1.0 of it mounted on / as xfs", true,
	},
	{
		"a device that sysfs does not show",
		"27 1 66:6 / / rw - ext4 /dev/hidden rw\n",
		"/dev/hidden, mounted on / as ext4", true,
	},
	{
		"container",
		"900 800 0:51 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/AB:/var/lib/docker/overlay2/l/CD,upperdir=/var/lib/docker/overlay2/x/diff\n" +
			"910 900 8:1 /var/lib/docker/containers/x/hosts /etc/hosts rw - ext4 /dev/sda1 rw\n",
		"the lowest layer of the overlay on / is /var/lib/docker/overlay2/l/CD, which cannot be seen from here; name the device instead", false,
	},
	{
		"container with its layers on tmpfs",
		"900 800 0:51 / / rw - overlay overlay rw,lowerdir=/t/l\n910 900 0:52 / /t rw - tmpfs tmpfs rw\n",
		"is /t/l, which cannot be seen", false,
	},
	{"overlay without layers", "27 1 0:24 / / rw - overlay overlay rw\n", "does not list its layers", false},
	{"chroot", "30 27 8:2 / /home rw - ext4 /dev/sda2 rw\n", "nothing is mounted on it (a chroot?)", false},
	{"tmpfs", "27 1 0:24 / / rw - tmpfs tmpfs rw\n", `/ is mounted from "tmpfs" as tmpfs, which is not a block device`, false},
	{"nfs", "27 1 0:24 / / rw - nfs4 server:/root rw\n", `/ is mounted from "server:/root" as nfs4, which is not a block device`, false},
	{"zfs", "27 1 0:24 / / rw - zfs rpool/ROOT/debian rw\n", "which is not a block device", false},
	{"initramfs", "1 1 0:2 / / rw - rootfs rootfs rw\n", "which is not a block device", false},
	{"btrfs from /dev/root", "27 1 0:24 / / ro - btrfs /dev/root ro\n", "from a source that is not a block device here: stat /dev/root", false},
	{"no node", "27 1 253:4 / / rw - ext4 /dev/mapper/gone rw\n", "/ is mounted from device 253:4, whose node /dev/dm-4 is missing", false},
	{
		"a node that stands for another device", // as in a copied /dev
		"27 1 179:130 / / rw - ext4 /dev/mmcblk0p2 rw\n",
		"whose node /dev/mmcblk0p2 is missing", false,
	},
}

func TestRootLocation(t *testing.T) {
	for _, test := range roots {
		got, err := rootLocation(mountinfo.Parse(before+test.mountinfo), machine())
		if test.ok {
			node, _, _ := strings.Cut(strings.ReplaceAll(got.Note, ",", " "), " ")
			if err != nil || got.Note != test.want || got.Path != node || got.Size != -1 || got.Offset != 0 {
				t.Errorf("%s: %+v, %v, want %s", test.name, got, err, test.want)
			}
			continue
		}
		if !errors.Is(err, ErrNoRoot) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %+v, %v, want an ErrNoRoot with %q", test.name, got, err, test.want)
		}
	}
}

func FuzzRootLocation(f *testing.F) {
	for _, test := range roots {
		f.Add(test.mountinfo)
	}
	f.Add("1 1 0:2 / / rw - overlay o rw,lowerdir=::\n")
	f.Add("1 1 0:2 / / rw - overlay o rw,lowerdir=../..:.\n1 1 7:0 / /.. rw - ext4 /dev/loop0 ro\n")
	f.Fuzz(func(t *testing.T, text string) {
		d := machine()
		got, err := rootLocation(mountinfo.Parse(text), d)
		if (err == nil) == (got.Note == "") || err != nil && !errors.Is(err, ErrNoRoot) {
			t.Errorf("%+v, %v", got, err)
		}
		if _, known := d.nodes[got.Path]; err == nil && !known {
			t.Errorf("%s is no node", got.Path)
		}
	})
}
