package vmtest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestLoadOrder(t *testing.T) {
	const (
		builtin = "kernel/fs/ext4/ext4.ko\n"
		dep     = "kernel/pci.ko: kernel/modern.ko kernel/ring.ko\n" +
			"kernel/blk.ko: kernel/ring.ko\n" +
			"kernel/modern.ko: kernel/ring.ko\n" +
			"kernel/dm-flakey.ko: kernel/dm-mod.ko\n" +
			"kernel/ring.ko:\n" +
			"kernel/dm-mod.ko:\n"
	)
	for _, c := range []struct {
		name    string
		modules []string
		want    []string
	}{
		{"nothing", nil, nil},
		{"built in", []string{"ext4"}, nil},
		{"deepest first", []string{"pci"}, []string{"kernel/ring.ko", "kernel/modern.ko", "kernel/pci.ko"}},
		{"shared once", []string{"blk", "pci"},
			[]string{"kernel/ring.ko", "kernel/blk.ko", "kernel/modern.ko", "kernel/pci.ko"}},
		{"either spelling", []string{"dm_mod", "dm-flakey"}, []string{"kernel/dm-mod.ko", "kernel/dm-flakey.ko"}},
	} {
		got, err := loadOrder(dep, builtin, c.modules)
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Errorf("%s: loadOrder(%q): %v (-want +got)\n%s", c.name, c.modules, err, diff)
		}
	}
	if got, err := loadOrder(dep, builtin, []string{"flux"}); err == nil {
		t.Errorf("loadOrder of an unknown module = %q, want an error", got)
	}
}
