package e2e

import (
	"encoding/xml"
	"path/filepath"
	"strings"
	"testing"
)

// libvirtDisk is the part of a disk in a domain's XML that qemu uses.
type libvirtDisk struct {
	Type   string `xml:"type,attr"`
	Driver struct {
		Type string `xml:"type,attr"`
	} `xml:"driver"`
	Source       libvirtSource `xml:"source"`
	BackingStore struct {
		Source libvirtSource `xml:"source"`
	} `xml:"backingStore"`
	ReadOnly *struct{} `xml:"readonly"`
}

type libvirtSource struct {
	Protocol string `xml:"protocol,attr"`
	Name     string `xml:"name,attr"`
	Host     struct {
		Transport string `xml:"transport,attr"`
		Socket    string `xml:"socket,attr"`
	} `xml:"host"`
	Reconnect struct {
		Delay int `xml:"delay,attr"`
	} `xml:"reconnect"`
}

// TestLibvirtRecipes: the disks in docs/vms.md have the intended content, and libvirt's own schema accepts them.
func TestLibvirtRecipes(t *testing.T) {
	t.Parallel()
	values := map[string]string{"SOCKET": "/run/images/v2.sock", "EXPORT": "v2@0123", "OVERLAY": "/var/lib/images/v2.qcow2"}
	for name, source := range map[string]func(libvirtDisk) libvirtSource{
		"libvirt":         func(d libvirtDisk) libvirtSource { return d.Source },
		"libvirt-overlay": func(d libvirtDisk) libvirtSource { return d.BackingStore.Source },
	} {
		text := strings.Join(recipe(t, name, values), "\n")
		var disk libvirtDisk
		if err := xml.Unmarshal([]byte(text), &disk); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := source(disk)
		if got.Protocol != "nbd" || got.Name != values["EXPORT"] || got.Host.Transport != "unix" ||
			got.Host.Socket != values["SOCKET"] || got.Reconnect.Delay != 60 {
			t.Errorf("%s has the source %+v", name, got)
		}
		if plain := name == "libvirt"; plain != (disk.Driver.Type == "raw") || plain != (disk.ReadOnly != nil) {
			t.Errorf("%s has the disk %+v", name, disk)
		}
		validate(t, text)
	}
}

// validate checks a domain with the disk against libvirt's schema. A schema without the delay of a
// reconnection, such as Debian 12's, checks the rest.
func validate(t testing.TB, disk string) {
	t.Helper()
	common := string(readFile(t, "/usr/share/libvirt/schemas/storagecommon.rng"))
	if !strings.Contains(common, `<attribute name="delay">`) {
		t.Log("this libvirt has no <reconnect delay=…>: the rest is checked")
		disk = strings.ReplaceAll(disk, "<reconnect delay='60'/>", "")
	}
	const domain = `<domain type='kvm'><name>v2</name><memory unit='GiB'>2</memory><os><type arch='x86_64'>hvm</type></os>
<devices>DISK</devices></domain>`
	path := writeFile(t, t.TempDir(), "domain.xml", []byte(strings.Replace(domain, "DISK", disk, 1)))
	must(t, "virt-xml-validate", path, "domain")
	broken := strings.Replace(disk, "transport='unix'", "transport='pigeon'", 1)
	path = writeFile(t, filepath.Dir(path), "broken.xml", []byte(strings.Replace(domain, "DISK", broken, 1)))
	if r := run(t, "virt-xml-validate", path, "domain"); r.status == 0 {
		t.Error("the schema takes anything")
	}
}
