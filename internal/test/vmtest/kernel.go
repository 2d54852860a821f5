package vmtest

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/internal/test/need"
)

// kernel is an unpacked kernel package.
type kernel struct {
	image   string // of the kernel
	modules string // the directory with modules.dep
}

// Kernel returns the path of the VMs' kernel.
func Kernel(t testing.TB) string {
	t.Helper()
	return findKernel(t).image
}

// findKernel looks for a kernel below .cache beside the go.mod of the package under test.
func findKernel(t testing.TB) kernel {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	images, err := filepath.Glob(filepath.Join(root, ".cache/kernel/boot/vmlinuz-*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(images) != 1 {
		need.Missing(t, "there is no kernel in .cache/kernel")
	}
	version := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	return kernel{images[0], filepath.Join(root, ".cache/kernel/lib/modules", version)}
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

// loadOrder returns the files of the named modules and their dependencies, dependencies first.
func (k kernel) loadOrder(t testing.TB, names []string) []string {
	t.Helper()
	dep := string(readFile(t, filepath.Join(k.modules, "modules.dep")))
	builtin := string(readFile(t, filepath.Join(k.modules, "modules.builtin")))
	order, err := loadOrder(dep, builtin, names)
	if err != nil {
		t.Fatal(err)
	}
	for i := range order {
		order[i] = filepath.Join(k.modules, order[i])
	}
	return order
}

// loadOrder parses modules.dep. A line lists a module and its dependencies, which are loaded from the end of
// the line. A module in modules.builtin needs no loading.
func loadOrder(dep, builtin string, names []string) ([]string, error) {
	lines := map[string][]string{}
	for line := range strings.Lines(builtin) {
		lines[moduleName(strings.TrimSpace(line))] = nil
	}
	for line := range strings.Lines(dep) {
		files := strings.Fields(strings.Replace(line, ":", " ", 1))
		lines[moduleName(files[0])] = files
	}
	var order []string
	for _, name := range names {
		files, known := lines[moduleName(name)]
		if !known {
			return nil, fmt.Errorf("the kernel has no module %q", name)
		}
		for _, file := range slices.Backward(files) {
			if !slices.Contains(order, file) {
				order = append(order, file)
			}
		}
	}
	return order, nil
}

// moduleName returns the kernel's name of a module: a file's name may have - in place of _.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}
