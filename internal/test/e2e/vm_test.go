package e2e

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/internal/test/vmtest"
	"cairn/testimages"
)

// guestPatience limits each step of a virtual machine. A step takes some seconds on an idle machine.
const guestPatience = 5 * time.Minute

// recipe returns the lines of a recipe in docs/vms.md with values for its variables. Continued lines are joined.
func recipe(t testing.TB, name string, values map[string]string) []string {
	t.Helper()
	pattern := regexp.MustCompile("(?s)<!-- recipe: " + regexp.QuoteMeta(name) + " -->\n```[a-z]*\n(.*?)\n```")
	found := pattern.FindStringSubmatch(string(readFile(t, "../../../docs/vms.md")))
	if found == nil {
		t.Fatalf("docs/vms.md has no recipe %q", name)
	}
	text := os.Expand(strings.ReplaceAll(found[1], "\\\n", ""), func(variable string) string {
		value, known := values[variable]
		if !known {
			t.Fatalf("the recipe %q has the variable %s, which this test does not know", name, variable)
		}
		return value
	})
	return strings.Split(text, "\n")
}

// qemuArgs returns the arguments of a recipe's qemu for the guest's devices, without those for the host.
func qemuArgs(t testing.TB, name string, values map[string]string) []string {
	t.Helper()
	return recipeArgs(t, name, values, "qemu-system-x86_64", "-accel", "kvm", "-m", "2G", "-nographic")
}

// serveArgs returns the arguments of a recipe's cairn serve.
func serveArgs(t testing.TB, name string, values map[string]string) []string {
	t.Helper()
	return recipeArgs(t, name, values, "cairn", "serve")
}

// recipeArgs returns the words of a recipe's command after the given beginning.
func recipeArgs(t testing.TB, name string, values map[string]string, begin ...string) []string {
	t.Helper()
	words := strings.Fields(strings.Join(recipe(t, name, values), " "))
	if len(words) < len(begin) || !slices.Equal(words[:len(begin)], begin) {
		t.Fatalf("the recipe %q begins with %q, want %q", name, words, begin)
	}
	return words[len(begin):]
}

// shell returns a recipe as lines of a guest's script that reports failed lines.
func shell(t testing.TB, name string, values map[string]string) string {
	t.Helper()
	var script strings.Builder
	for _, line := range recipe(t, name, values) {
		fmt.Fprintf(&script, "%s || { echo 'guest: failed: %s'; poweroff -f; }\n", line, line)
	}
	return script.String()
}

// systemParts is the number of parts in both images. The ext4 has one more.
const systemParts = 3

// guestPart returns a file that a guest reads: some MiB that are nowhere else in the image.
func guestPart(n int) []byte { return testimages.Random(uint64(70+n), 6*mib) }

// guestTree returns a small system whose /init reads it in parts, and reports each part and the whole.
func guestTree(t testing.TB) []testimages.Entry {
	t.Helper()
	busybox := readFile(t, need.Tool(t, "busybox"))
	tree := slices.Clone(testimages.Tree(1, 0))
	for _, dir := range []string{"dev", "proc", "sys", "tmp", "bin", "parts"} {
		if !slices.ContainsFunc(tree, func(e testimages.Entry) bool { return e.Path == dir }) {
			tree = append(tree, testimages.Entry{Path: dir, Mode: fs.ModeDir | 0o755})
		}
	}
	tree = append(tree, testimages.Entry{Path: "bin/busybox", Mode: 0o755, Data: busybox},
		testimages.Entry{Path: "init", Mode: 0o755, Data: []byte(guestSystem)})
	for n := range systemParts {
		tree = append(tree, testimages.Entry{Path: fmt.Sprintf("parts/%d", n), Mode: 0o644, Data: guestPart(n)})
	}
	return tree
}

// guestSystem is the script of the root file system's first process.
const guestSystem = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox mkdir /tmp/bin
/bin/busybox --install -s /tmp/bin
export PATH=/tmp/bin
echo guest: running from its root
for part in 0 1 2; do
  echo "guest: part $part $(sha256sum </parts/$part)"
done
echo "guest: all $(cd / && ` + digestAll + `)"
dmesg | grep -c -E 'I/O error|SQUASHFS error' | sed 's/^/guest: errors /'
echo guest: done
poweroff -f
`

// digestAll prints one digest of all files of a file system in the working directory.
const digestAll = `find . -xdev -type f | sort | xargs sha256sum | sha256sum`

// treeDigest returns the output of digestAll for the tree.
func treeDigest(tree []testimages.Entry) string {
	files := map[string][]byte{}
	var names []string
	for _, e := range tree {
		if e.Mode.IsRegular() {
			names = append(names, "./"+e.Path)
			files["./"+e.Path] = e.Data
		}
	}
	slices.Sort(names)
	sums := sha256.New()
	for _, name := range names {
		fmt.Fprintf(sums, "%x  %s\n", sha256.Sum256(files[name]), name)
	}
	return fmt.Sprintf("%x", sums.Sum(nil))
}

// guestImages are the images of guestTree, published in a directory as root.caibx and data.caibx.
type guestImages struct {
	dir, squashfs, ext4 string
	digest, dataDigest  string // of root.caibx and data.caibx
}

// index returns the path of the system's index.
func (g guestImages) index() string { return filepath.Join(g.dir, "root.caibx") }

// guests makes guestImages once for all tests, which must not change them.
func guests(t testing.TB) guestImages {
	t.Helper()
	need.Tool(t, "qemu-system-x86_64")
	guestOnce.once.Do(func() { guestOnce.images = newGuestImages(t) })
	if guestOnce.images.digest == "" {
		t.Fatal("the images of the virtual machines could not be made")
	}
	return guestOnce.images
}

var guestOnce struct {
	once   sync.Once
	images guestImages
}

func newGuestImages(t testing.TB) (g guestImages) {
	t.Helper()
	tree := guestTree(t)
	dir := mkdir(t, filepath.Join(scratch, "guests"))
	g = guestImages{dir, filepath.Join(scratch, "guest.squashfs"), filepath.Join(scratch, "guest.ext4"), "", ""}
	makeSquashfs(t, g.squashfs, tree)
	more := append(slices.Clone(tree), testimages.Entry{Path: fmt.Sprintf("parts/%d", systemParts), Mode: 0o644, Data: guestPart(systemParts)})
	if err := testimages.Ext4(g.ext4, more, 80*mib); err != nil {
		t.Fatal(err)
	}
	cairn(t, "make", g.index(), g.squashfs)
	cairn(t, "make", filepath.Join(dir, "data.caibx"), g.ext4)
	g.digest, g.dataDigest = treeDigest(tree), treeDigest(more)
	return g
}

// wantLines checks the next lines of a guest that begin with "guest: ". A line may continue after the wanted text.
func wantLines(t testing.TB, vm *vmtest.VM, lines ...string) {
	t.Helper()
	for _, want := range lines {
		if line := vm.Wait(t, "guest: ", guestPatience); !strings.HasPrefix(line, want) {
			t.Fatalf("the guest says %q, want %q; its console:\n%s", line, want, vm.Console())
		}
	}
}

// makeSquashfs writes a tree with mksquashfs, because the kernel cannot read every squashfs of testimages.Squashfs.
func makeSquashfs(t testing.TB, path string, tree []testimages.Entry) {
	t.Helper()
	dir := t.TempDir()
	for _, e := range tree {
		name := filepath.Join(dir, e.Path)
		if e.Mode.IsDir() {
			mkdir(t, name)
			continue
		}
		if err := os.WriteFile(name, e.Data, e.Mode.Perm()); err != nil {
			t.Fatal(err)
		}
	}
	must(t, "mksquashfs", dir, path, "-all-root", "-noappend", "-quiet", "-no-progress")
}

// wantSystem follows a guest with guestSystem to its end. The guest reads all parts correctly, and reports no error.
func (g guestImages) wantSystem(t testing.TB, vm *vmtest.VM, from int) {
	t.Helper()
	for n := from; n < systemParts; n++ {
		g.wantPart(t, vm, n)
	}
	wantLines(t, vm, "guest: all "+g.digest, "guest: errors 0")
	vm.WaitOff(t, guestPatience)
}

func (g guestImages) wantPart(t testing.TB, vm *vmtest.VM, n int) {
	t.Helper()
	wantLines(t, vm, fmt.Sprintf("guest: part %d %x", n, sha256.Sum256(guestPart(n))))
}

// pinned returns the name of an export that never refers to another image.
func pinned(t testing.TB, index string) string {
	t.Helper()
	name := strings.TrimSuffix(filepath.Base(index), ".caibx")
	return name + "@" + strings.TrimSpace(must(t, "sh", "-c", "cairn info --json '"+index+"' | jq -r .index_digest"))
}

// long reports whether CAIRN_LONG is set.
func long() bool { return os.Getenv("CAIRN_LONG") == "1" }
