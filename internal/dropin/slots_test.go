package dropin

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestSlotSeeds: desync that RAUC calls has the other slots of the target's class as seeds, and no others.
func TestSlotSeeds(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a, b, boot := write("a", "a"), write("b", "b"), write("boot", "boot")
	link := filepath.Join(dir, "by-name")
	if err := os.Symlink(b, link); err != nil {
		t.Fatal(err)
	}
	bundled, alone := write("bundle/v2.caibx", ""), write("v2.caibx", "")
	write("bundle/"+manifestName, "[update]\ncompatible=test\n")
	config := fmt.Sprintf("[system]\ncompatible=test\n[slot.boot.0]\ndevice=%s\n[slot.rootfs.0]\ndevice=%s\ntype=raw\n"+
		"[slot.rootfs.1]\ndevice=%s\n[slot.rootfs.2]\ndevice=%s/absent\n", boot, a, b, dir)
	defer func(before []string) { raucConfigs = before }(raucConfigs)
	raucConfigs = []string{filepath.Join(dir, "none"), write("system.conf", config)}

	seedsOf := func(args ...string) (seeds []string) {
		call, err := Translate(Desync, append([]string{"extract", "--store", dir}, args...), "")
		if err != nil {
			t.Fatal(err)
		}
		for _, arg := range call.Args {
			if len(arg) > 7 && arg[:7] == "--seed=" {
				seeds = append(seeds, arg[7:])
			}
		}
		return seeds
	}
	for _, c := range []struct {
		args, want []string
	}{
		{[]string{bundled, b}, []string{a}},
		{[]string{bundled, link}, []string{a}},
		{[]string{bundled, boot}, nil},
		{[]string{bundled, filepath.Join(dir, "other")}, nil},
		{[]string{alone, b}, nil},
		{[]string{"--seed", boot, bundled, b}, []string{boot}},
	} {
		if got := seedsOf(c.args...); !slices.Equal(got, c.want) {
			t.Errorf("extract %q: the seeds are %q, want %q", c.args, got, c.want)
		}
	}
	raucConfigs[1] = write("broken.conf", "[slot.rootfs.0\n")
	if got := seedsOf(bundled, b); got != nil {
		t.Errorf("with a broken configuration the seeds are %q", got)
	}
}

func TestConfigOfParent(t *testing.T) {
	for _, c := range []struct{ cmdline, want string }{
		{"/usr/bin/rauc\x00--conf\x00/tmp/system.conf\x00service\x00", "/tmp/system.conf"},
		{"rauc\x00service\x00--conf=/tmp/system.conf\x00", "/tmp/system.conf"},
		{"rauc\x00-c\x00system.conf\x00service\x00", "PROC/cwd/system.conf"},
		{"rauc\x00service\x00", ""},
		{"rauc\x00--conf\x00", ""},
		{"sh\x00--conf\x00/tmp/system.conf\x00", ""},
		{"", ""},
	} {
		proc := t.TempDir()
		if err := os.WriteFile(filepath.Join(proc, "cmdline"), []byte(c.cmdline), 0o600); err != nil {
			t.Fatal(err)
		}
		want := c.want
		if want == "PROC/cwd/system.conf" {
			want = proc + "/cwd/system.conf"
		}
		if got := configOfParent(proc); got != want {
			t.Errorf("%q: %q, want %q", c.cmdline, got, want)
		}
	}
}
