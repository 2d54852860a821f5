package mountinfo

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	text := strings.Join([]string{
		`22 27 0:21 / /proc rw,relatime - proc proc rw`,
		`27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda ro,discard`,
		`40 27 8:1 /sub\040dir /with\040blank\134and\011tab rw - btrfs /dev/with\040blank rw,subvol=/a\054b`,
		`broken line`,
		`41 27 8:x / /broken rw - ext4 /dev/sda rw`,
		`42 27 8:1 / relative rw - ext4 /dev/sda rw`,
		`43 27 8:1 / /cut rw - ext4 /dev/sda`,
		`44 27 8:1 / /cut - ext4 /dev/sda rw`,
		``,
	}, "\n")
	want := []Mount{
		{"0:21", "/", "/proc", "proc", "proc", []string{"rw"}},
		{"254:0", "/", "/", "ext4", "/dev/vda", []string{"ro", "discard"}},
		{"8:1", "/sub dir", "/with blank\\and\ttab", "btrfs", "/dev/with blank", []string{"rw", "subvol=/a,b"}},
	}
	got := Parse(text)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("Parse (-want +got):\n%s", diff)
	}
	if !got[0].Anonymous() || got[1].Anonymous() || !got[1].ReadOnly() || got[2].ReadOnly() {
		t.Error("Anonymous or ReadOnly is wrong")
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain": "plain", `a\040b`: "a b", `\134`: `\`, `\0400`: " 0",
		`\`: `\`, `\9`: `\9`, `\999`: `\999`, `\777`: `\777`,
	} {
		if got := Unescape(in); got != want {
			t.Errorf("Unescape(%q) = %q, want %q", in, got, want)
		}
	}
}

// The options are those that Linux 6.18 shows.
func TestLayers(t *testing.T) {
	tests := []struct {
		options string
		want    Layers
	}{
		{`rw`, Layers{}},
		{`ro,lowerdir=/one`, Layers{Lower: []string{"/one"}}},
		{
			`rw,lowerdir=/a\040b:/e\134:f:/g\134\134h,upperdir=/up,workdir=/work,uuid=on`,
			Layers{Lower: []string{"/a b", "/e:f", `/g\h`}, Upper: "/up"},
		},
		{`ro,lowerdir=/c\134\054d:/a`, Layers{Lower: []string{"/c,d", "/a"}}},
		{`ro,lowerdir=/a:/b::/data::/more`, Layers{Lower: []string{"/a", "/b"}, Data: []string{"/data", "/more"}}},
		{`ro,lowerdir+=/a:1,lowerdir+=/b,datadir+=/d`, Layers{Lower: []string{"/a:1", "/b"}, Data: []string{"/d"}}},
		{`ro,lowerdir=/end\134`, Layers{Lower: []string{`/end\`}}},
	}
	for _, test := range tests {
		mounts := Parse("1 2 0:3 / / rw - overlay overlay " + test.options)
		if len(mounts) != 1 {
			t.Fatalf("%q is no line", test.options)
		}
		if diff := cmp.Diff(test.want, mounts[0].Layers()); diff != "" {
			t.Errorf("Layers of %q (-want +got):\n%s", test.options, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard\n")
	f.Add(`27 1 0:9 / / rw - overlay overlay rw,lowerdir=/a\134:b:/c::/d,upperdir=/e` + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, m := range Parse(text) {
			if !strings.HasPrefix(m.Point, "/") || !isDevice(m.Device) {
				t.Errorf("Parse accepted %+v", m)
			}
			if l := m.Layers(); len(l.Lower)+len(l.Data) > len(text) {
				t.Errorf("%+v has %d lower layers", m, len(l.Lower)+len(l.Data))
			}
		}
	})
}
