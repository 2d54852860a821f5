package blockdev

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cairn/internal/blockdev/sysfs"
	"cairn/internal/test/looptest"
)

func identity(t *testing.T, path string, section Section) string {
	t.Helper()
	text, err := openRead(t, path, section).Identity()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestIdentityOfFiles(t *testing.T) {
	a, b := write(t, make([]byte, 100)), write(t, make([]byte, 100))
	before := identity(t, a, Section{})
	if err := os.WriteFile(a, make([]byte, 100), 0o600); err != nil { // a new modification time
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(a))
	if again := identity(t, filepath.Base(a), Section{}); again != before || !strings.Contains(before, a) {
		t.Errorf("the same file is %s, and then %s", before, again)
	}
	for name, other := range map[string]string{
		"another file":    identity(t, b, Section{}),
		"a section":       identity(t, a, Section{0, 50}),
		"another section": identity(t, a, Section{50, 50}),
	} {
		if other == before {
			t.Errorf("%s is %s too", name, other)
		}
	}
}

func TestIdentityOfDevices(t *testing.T) {
	node, file := disk(t)
	seen := map[string]string{}
	for _, path := range []string{node, node + "p1", node + "p2", looptest.Attach(t, looptest.File(t, 16<<20), 512)} {
		text := identity(t, path, Section{})
		if other, twice := seen[text]; twice {
			t.Errorf("%s and %s are both %s", path, other, text)
		}
		seen[text] = path
		if strings.HasPrefix(path, node) && !strings.Contains(text, file) {
			t.Errorf("%s is %s, want that to hold the file behind it", path, text)
		}
	}
	// The name of a loop device does not matter.
	second := looptest.Attach(t, file, 512)
	if one, same := identity(t, node+"p1", Section{}), identity(t, second+"p1", Section{}); one != same {
		t.Errorf("one partition is %s, and %s", one, same)
	}
}

func TestIdentityFromSysfs(t *testing.T) {
	k := fakeDisk(t, "")
	dir := func(name string) sysfs.Device { return sysfs.Device(filepath.Join(string(k.sys), "devices", name)) }
	tests := []struct {
		file, content string // is added to the device's directory
		want          string // of sda1
	}{
		{"sda/removable", "0\n", `device name="sda1" partition="1" start="2048"`},
		{"sda/device/wwid", "naa.5000  \n", `device device/wwid="naa.5000" partition="1" start="2048"`},
		{"sda/serial", "  \n", `device device/wwid="naa.5000" partition="1" start="2048"`},
		{
			"sda/sda1/uevent", "DEVTYPE=partition\nPARTN=1\nPARTUUID=aa-bb\nPARTNAME=x\n",
			`device partuuid="aa-bb" device/wwid="naa.5000" partition="1" start="2048"`,
		},
	}
	for _, test := range tests {
		put(t, string(dir(test.file)), test.content)
		if got := deviceIdentity(dir("sda/sda1")); got != test.want {
			t.Errorf("with %s: %s, want %s", test.file, got, test.want)
		}
	}
	if got, want := deviceIdentity(dir("dm-0")), `device dm/name="verity"`; got != want {
		t.Errorf("a mapped device is %s, want %s", got, want)
	}
}
