package vmtest

import (
	"bytes"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cairn/internal/test/need"
)

// start is /init: it sets up the initramfs, loads the modules in /modules, and runs the test's script.
const start = `#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /root
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(ls /modules); do
  insmod /modules/$module || { echo "insmod $module failed"; poweroff -f; }
done
. /test
poweroff -f
`

// Initramfs writes the initramfs of a VM, and returns its path. The number in a module's name makes the
// alphabetical order the order of loading.
func Initramfs(t testing.TB, c Config) string {
	t.Helper()
	k := findKernel(t)
	var a archive
	a.addFile("init", []byte(start))
	a.addFile("test", []byte(c.Init))
	a.addFile("bin/busybox", readFile(t, Busybox(t)))
	a.mkdir("modules")
	for i, module := range k.loadOrder(t, c.Modules) {
		a.addFile(fmt.Sprintf("modules/%03d-%s", i, path.Base(module)), readFile(t, module))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Files)) {
		a.addFile(strings.TrimPrefix(name, "/"), readFile(t, c.Files[name]))
	}
	file := filepath.Join(t.TempDir(), "initramfs")
	if err := os.WriteFile(file, a.finish(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Program returns an installed program, as /bin/NAME, and its libraries, for Config.Files.
func Program(t testing.TB, name string) map[string]string {
	t.Helper()
	program := need.Tool(t, name)
	files := map[string]string{"/bin/" + path.Base(program): program}
	out, err := exec.CommandContext(t.Context(), need.Tool(t, "ldd"), program).CombinedOutput()
	if err != nil {
		t.Fatalf("ldd %s: %v\n%s", program, err, out)
	}
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			files[word] = word
		}
	}
	return files
}

func readFile(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Busybox returns the path of a statically linked busybox.
func Busybox(t testing.TB) string {
	t.Helper()
	file := need.Tool(t, "busybox")
	binary, err := elf.Open(file)
	if err != nil {
		t.Fatalf("reading %s: %v", file, err)
	}
	defer binary.Close()
	if slices.ContainsFunc(binary.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		need.Missing(t, file+" is not the static one")
	}
	return file
}

// archive is a cpio archive in the "newc" format: early-userspace/buffer-format in the kernel's documentation.
type archive struct {
	buf     bytes.Buffer
	entries int
}

// Types and permissions of an archive's entries, as in stat(2).
const (
	modeDir  = 0o40755
	modeFile = 0o100755
)

// addFile adds a file at name, which is relative to the root, after its parent directories.
func (a *archive) addFile(name string, data []byte) {
	if dir := path.Dir(name); dir != "." {
		a.mkdir(dir)
	}
	a.addEntry(name, modeFile, data)
}

// mkdir adds a directory and its parents. Adding a directory twice is harmless.
func (a *archive) mkdir(name string) {
	if dir := path.Dir(name); dir != "." {
		a.mkdir(dir)
	}
	a.addEntry(name, modeDir, nil)
}

// finish completes the archive and returns it.
func (a *archive) finish() []byte {
	a.addEntry("TRAILER!!!", 0, nil)
	return a.buf.Bytes()
}

func (a *archive) addEntry(name string, mode int, data []byte) {
	const uid, gid, links, mtime, device, check = 0, 0, 1, 0, 0, 0
	a.entries++
	a.buf.WriteString("070701")
	for _, field := range []int{a.entries, mode, uid, gid, links, mtime, len(data),
		device, device, device, device, len(name) + 1, check} {
		fmt.Fprintf(&a.buf, "%08x", field)
	}
	a.buf.WriteString(name + "\x00")
	a.pad()
	a.buf.Write(data)
	a.pad()
}

// pad fills the archive up to a multiple of four bytes.
func (a *archive) pad() { a.buf.Write(make([]byte, -a.buf.Len()&3)) }
