package lanes

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"cairn/internal/test/need"
)

// TestGenerated checks that the committed kernels are the output of the generators.
func TestGenerated(t *testing.T) {
	if testing.Short() {
		t.Skip("the generators take seconds to build")
	}
	const gen = "gen"
	if out, err := run(t, gen, "mod", "download"); err != nil {
		need.Missing(t, "downloading the generators' modules failed: "+string(out))
	}
	tree := t.TempDir()
	kernels := []string{"lanes/sha2_amd64.s", "lanes/sha2_amd64.go", "buzscan/scan_amd64.s", "buzscan/scan_amd64.go"}
	for _, p := range []string{"lanes", "buzscan"} {
		if err := os.CopyFS(filepath.Join(tree, p), os.DirFS(filepath.Join("..", p))); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range kernels {
		os.Remove(filepath.Join(tree, k))
	}
	for _, p := range []string{"lanes/lanes.go", "buzscan/buzscan.go"} {
		if out, err := run(t, tree, "generate", p); err != nil {
			t.Fatalf("go generate %s: %v\n%s", p, err, out)
		}
	}
	for _, k := range kernels {
		want, err := os.ReadFile(filepath.Join("..", k))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(tree, k)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs from the output of go generate (%v)", k, err)
		}
	}
}

func run(t *testing.T, dir string, args ...string) ([]byte, error) {
	c := exec.CommandContext(t.Context(), "go", args...)
	c.Dir = dir
	return c.CombinedOutput()
}
