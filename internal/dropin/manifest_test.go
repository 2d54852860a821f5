package dropin

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestImageSum: the manifest of RAUC gives the checksum of the image of an index.
func TestImageSum(t *testing.T) {
	one, two := strings.Repeat("1a", 32), strings.Repeat("2b", 32)
	for _, test := range []struct{ name, manifest, want string }{
		{"as rauc convert writes it", `[update]
compatible=Test Board
version=2026.11

[bundle]
format=verity

[image.appfs]
sha256=` + two + `
size=10
filename=app.img

[image.rootfs]
sha256=` + one + `
size=33554432
filename=root.img.caibx
`, one},
		{"image instead of its index", "[image.rootfs]\nfilename = root.img\nsha256 = " + strings.ToUpper(one), one},
		{"twice the same", "[image.a]\nfilename=root.img.caibx\nsha256=" + one + "\n[image.b]\nfilename=root.img.caibx\nsha256=" + one, one},
		{"variants with one file", "[image.a.x]\nfilename=root.img.caibx\nsha256=" + one + "\n[image.a.y]\nfilename=other.caibx\nsha256=" + two, one},
		{"no such image", "[image.a]\nfilename=other.caibx\nsha256=" + one, ""},
		{"no checksum", "[image.a]\nfilename=root.img.caibx", ""},
		{"other section", "[meta.x]\nfilename=root.img.caibx\nsha256=" + one, ""},
		{"empty", "", ""},
		{"hooks; and # in values", "[image.rootfs]\nfilename=root.img.caibx\nhooks=pre-install;post-install\nx=a#b\nsha256=" + one, one},
		{"two checksums", "[image.a]\nfilename=root.img.caibx\nsha256=" + one + "\n[image.b]\nfilename=root.img.caibx\nsha256=" + two, "different checksums"},
		{"no digits", "[image.a]\nfilename=root.img.caibx\nsha256=abc", "is not a checksum"},
		{"no manifest", "[image", "unclosed section"},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), manifestName)
			if err := os.WriteFile(name, []byte(test.manifest), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := imageSum(name, "root.img.caibx")
			if err != nil {
				got = err.Error()
			}
			if got != test.want && (err == nil || !strings.Contains(got, test.want)) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	if got, err := imageSum(filepath.Join(t.TempDir(), manifestName), "x"); got != "" || err != nil {
		t.Errorf("without a manifest: %q, %v", got, err)
	}
}

// TestAddImageSum: the checksum of the index itself is not that of the image.
func TestAddImageSum(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("x.caibx", []byte("index"), 0o600); err != nil {
		t.Fatal(err)
	}
	own, err := fileSum("x.caibx")
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Repeat("0a", 32)
	for sum, want := range map[string]string{other: "assemble --store=s --image-sha256=" + other + " --progress=none x.caibx y", own: "assemble --store=s --progress=none x.caibx y"} {
		if err := os.WriteFile(manifestName, []byte("[image.rootfs]\nfilename=x.caibx\nsha256="+sum), 0o600); err != nil {
			t.Fatal(err)
		}
		call, err := Translate(Casync, []string{"extract", "--store=s", "x.caibx", "y"}, "")
		if got := strings.Join(call.Args, " "); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", sum, got, err, want)
		}
	}
}

// TestReadSmall: a large file is an error, and a FIFO is not waited for.
func TestReadSmall(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]string{"small": "", "large": "has more than", "absent": "no such file"} {
		path := filepath.Join(dir, name)
		if size := map[string]int{"small": largest, "large": largest + 1}[name]; size > 0 {
			if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		text, err := readSmall(path)
		if want == "" && (err != nil || len(text) != largest) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %d bytes, %v, want %q", name, len(text), err, want)
		}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := readSmall(fifo); len(text) > 0 {
		t.Errorf("the FIFO: %q, %v", text, err)
	}
}
