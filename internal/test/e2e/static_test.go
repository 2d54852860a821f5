package e2e

import (
	"debug/elf"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/internal/test/need"
)

// TestStatic: the shipped binary runs without any other file.
func TestStatic(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	file := filepath.Join(root, "cairn")
	if err := build(file, false); err != nil {
		t.Fatal(err)
	}
	binary, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer binary.Close()
	if slices.ContainsFunc(binary.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Error("the binary wants a loader")
	}
	need.Root(t)
	if out := must(t, "chroot", root, "/cairn", "version"); !strings.HasPrefix(out, "cairn ") {
		t.Errorf("cairn version prints %q", out)
	}
}
