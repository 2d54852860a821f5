package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"cairn/internal/test/need"
)

// programs is a directory with programs named rauc, casync and desync. It is first in the PATH of a RAUC.
type programs string

// peerPrograms returns a RAUC with casync and desync themselves.
func peerPrograms(t testing.TB, rauc string) programs {
	t.Helper()
	return linkPrograms(t, rauc, need.Tool(t, "casync"), need.Tool(t, "desync"))
}

// dropIns returns a RAUC with cairn under both names.
func dropIns(t testing.TB, rauc string) programs {
	t.Helper()
	return linkPrograms(t, rauc, need.Tool(t, "cairn"), need.Tool(t, "cairn"))
}

func linkPrograms(t testing.TB, rauc, casync, desync string) programs {
	t.Helper()
	dir := t.TempDir()
	for name, program := range map[string]string{"rauc": rauc, "casync": casync, "desync": desync} {
		if err := os.Symlink(program, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return programs(dir)
}

// run runs a program that finds these programs before others of the same names.
func (p programs) run(t testing.TB, name string, args ...string) ran {
	t.Helper()
	return run(t, "env", slices.Concat([]string{"PATH=" + string(p) + ":" + os.Getenv("PATH"), name}, args)...)
}

func (p programs) must(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := p.run(t, name, args...)
	if r.status != 0 {
		t.Fatalf("%s %q: exit status %d\n%s%s", name, args, r.status, r.stdout, r.stderr)
	}
	return r.stdout
}

// needRAUC ends a test that cannot run RAUC, which needs root for loop devices and mounts. It returns the RAUCs to test
// with: CAIRN_RAUC, or the installed one and Debian 13's, which may be missing on a developer's machine.
func needRAUC(t testing.TB) (raucs []string) {
	t.Helper()
	need.Root(t)
	for _, tool := range []string{"dbus-daemon", "openssl", "mksquashfs", "unsquashfs", "casync", "desync"} {
		need.Tool(t, tool)
	}
	if program := os.Getenv("CAIRN_RAUC"); program != "" {
		return []string{program}
	}
	newer, err := filepath.Abs("../../../.cache/rauc13/usr/bin/rauc")
	if err != nil {
		t.Fatal(err)
	}
	raucs = []string{need.Tool(t, "rauc"), newer}
	if _, err := os.Stat(newer); err != nil {
		if need.CI() {
			need.Missing(t, "there is no RAUC in .cache/rauc13")
		}
		raucs = raucs[:1]
	}
	return raucs
}

// version returns the version of the RAUC.
func (p programs) version(t testing.TB) string {
	t.Helper()
	return strings.TrimSpace(p.must(t, "rauc", "--version"))
}

// streams reports whether the RAUC streams a bundle from a URL, which must not be of the format plain. A RAUC without
// streaming downloads the bundle.
func (p programs) streams(t testing.TB) bool {
	t.Helper()
	return !bytes.Contains(readFile(t, filepath.Join(string(p), "rauc")), []byte("configured without --enable-streaming"))
}

// raucKey makes the key and certificate that sign all bundles.
var raucKey = sync.OnceValues(func() (dir string, err error) {
	dir = filepath.Join(scratch, "rauc-key")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	out, err := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
		"-nodes", "-keyout", filepath.Join(dir, "key.pem"), "-out", filepath.Join(dir, "cert.pem"),
		"-subj", "/CN=cairn's tests", "-days", "3650").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("openssl: %w\n%s", err, out)
	}
	return dir, nil
})

func raucFile(t testing.TB, name string) string {
	t.Helper()
	dir, err := raucKey()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// signing returns rauc's flags for signing a bundle.
func signing(t testing.TB) []string {
	t.Helper()
	return []string{"--cert", raucFile(t, "cert.pem"), "--key", raucFile(t, "key.pem")}
}

// raucBundle is a directory with a bundle of one image, as b.raucb, b.castr, and its index as rootfs.img.caibx.
type raucBundle struct {
	dir      string
	programs programs // have made it
}

func (b raucBundle) file() string  { return filepath.Join(b.dir, "b.raucb") }
func (b raucBundle) store() string { return filepath.Join(b.dir, "b.castr") }
func (b raucBundle) index() string { return filepath.Join(b.dir, "rootfs.img.caibx") }

// newBundle makes a bundle of the format plain.
func newBundle(t testing.TB, p programs, desync bool, image string, args ...string) raucBundle {
	t.Helper()
	return newFormatBundle(t, p, "plain", desync, image, args...)
}

// newFormatBundle makes a bundle of an image as a build system does: rauc bundle, and rauc convert, which calls casync or
// desync.
func newFormatBundle(t testing.TB, p programs, format string, desync bool, image string, args ...string) raucBundle {
	t.Helper()
	b := raucBundle{t.TempDir(), p}
	plain := filepath.Join(t.TempDir(), "plain.raucb")
	content := t.TempDir()
	must(t, "cp", "--sparse=always", image, filepath.Join(content, "rootfs.img"))
	writeFile(t, content, "manifest.raucm", []byte(raucManifest+"[bundle]\nformat="+format+"\n"))
	bundle := []string{"--mksquashfs-args=-comp lz4", "bundle", content, plain}
	p.must(t, "rauc", append(signing(t), bundle...)...)
	args = slices.Concat(signing(t), []string{"--keyring", raucFile(t, "cert.pem")}, args)
	if desync {
		conf := writeFile(t, t.TempDir(), "system.conf", []byte("[system]\ncompatible=test\n"+
			"bootloader=noop\n[casync]\nuse-desync=true\n"))
		args = append(args, "--conf", conf)
	}
	p.must(t, "rauc", append(args, "convert", plain, b.file())...)
	extracted := filepath.Join(t.TempDir(), "content")
	p.must(t, "rauc", "--keyring", raucFile(t, "cert.pem"), "extract", b.file(), extracted)
	must(t, "cp", filepath.Join(extracted, "rootfs.img.caibx"), b.index())
	return b
}

// encrypted returns a bundle of the format crypt with the content of a bundle of the format verity. rauc convert cannot
// make one. The checksum in its manifest is of the index.
func (b raucBundle) encrypted(t testing.TB) raucBundle {
	t.Helper()
	cert := raucFile(t, "cert.pem")
	content, plain := filepath.Join(t.TempDir(), "content"), filepath.Join(t.TempDir(), "plain.raucb")
	b.programs.must(t, "rauc", "--keyring", cert, "extract", b.file(), content)
	manifest := strings.ReplaceAll(raucManifest, "rootfs.img", "rootfs.img.caibx") + "[bundle]\nformat=crypt\n"
	writeFile(t, content, "manifest.raucm", []byte(manifest))
	b.programs.must(t, "rauc", append(signing(t), "bundle", content, plain)...)
	crypt := raucBundle{t.TempDir(), b.programs}
	b.programs.must(t, "rauc", "--keyring", cert, "encrypt", "--to", cert, plain, crypt.file())
	must(t, "cp", "-r", b.store(), crypt.store())
	return crypt
}

const raucManifest = `[update]
compatible=test
version=2

[image.rootfs]
filename=rootfs.img
`

// resign replaces the manifest of a bundle by an edited one, and signs the result.
func (b raucBundle) resign(t testing.TB, edit func(manifest string) string) raucBundle {
	t.Helper()
	content := filepath.Join(t.TempDir(), "content")
	b.programs.must(t, "rauc", "--keyring", raucFile(t, "cert.pem"), "extract", b.file(), content)
	manifest := filepath.Join(content, "manifest.raucm")
	writeFile(t, content, "manifest.raucm", []byte(edit(string(readFile(t, manifest)))))
	edited := raucBundle{t.TempDir(), b.programs}
	must(t, "mksquashfs", content, edited.file(), "-all-root", "-noappend", "-quiet", "-no-progress")
	// A plain bundle is a squashfs with its signature behind it, and the size of the signature in eight bytes.
	signature := filepath.Join(t.TempDir(), "signature")
	must(t, "openssl", "cms", "-sign", "-binary", "-in", edited.file(), "-out", signature, "-outform", "DER",
		"-signer", raucFile(t, "cert.pem"), "-inkey", raucFile(t, "key.pem"))
	sig := readFile(t, signature)
	all := slices.Concat(readFile(t, edited.file()), sig, binary.BigEndian.AppendUint64(nil, uint64(len(sig))))
	writeFile(t, edited.dir, "b.raucb", all)
	return edited
}

// raucMachine is a machine that RAUC updates: a disk with two slots, of which the first is booted, and a boot loader.
type raucMachine struct {
	slots
	dir      string // RAUC's files
	programs programs
	bus      string // address of the machine's D-Bus
}

// newRAUCMachine makes a machine whose first slot holds release a.
func newRAUCMachine(t testing.TB, p pair, programs programs) *raucMachine {
	t.Helper()
	m := &raucMachine{slots: newSlots(t, release{pair: p}, true), dir: t.TempDir(), programs: programs}
	mkdir(t, m.path("mnt"))
	mkdir(t, m.path("var-lib"))
	mkdir(t, m.path("tmp"))
	writeFile(t, m.dir, "primary", []byte("A"))
	backend := writeFile(t, m.dir, "boot.sh", fmt.Appendf(nil, raucBackend, m.dir))
	if err := os.Chmod(backend, 0o755); err != nil {
		t.Fatal(err)
	}
	m.startBus(t)
	return m
}

func (m *raucMachine) path(name string) string { return filepath.Join(m.dir, name) }

// slot returns the node of a slot's partition. newSlots puts an empty partition before the slots.
func (m *raucMachine) slot(name string) string {
	node := strings.TrimSuffix(m.slots.a, "#root-a")
	return node + map[string]string{"a": "p2", "b": "p3"}[name]
}

// raucBackend is a boot loader with its state in files.
const raucBackend = `#!/bin/sh
cd %s && echo "$@" >>boot.log
case $1 in
get-primary) cat primary ;;
set-primary) echo "$2" >primary ;;
get-state) cat "state-$2" 2>/dev/null || echo good ;;
set-state) echo "$3" >"state-$2" ;;
get-current) echo A ;;
esac
`

// primary returns the slot that the machine boots next.
func (m *raucMachine) primary(t testing.TB) string {
	t.Helper()
	return strings.TrimSpace(string(readFile(t, m.path("primary"))))
}

// startBus starts the machine's D-Bus, over which rauc install talks to the service.
func (m *raucMachine) startBus(t testing.TB) {
	t.Helper()
	m.bus = "unix:path=" + filepath.Join(socketDir(t), "bus")
	conf := writeFile(t, m.dir, "bus.conf", []byte(busConfig(m.bus)))
	startProgram(t, nil, "dbus-daemon", "--nofork", "--config-file="+conf, "--print-address").
		stdout.await(t, "unix:path=")
}

// busConfig returns the configuration of a D-Bus that lets everybody do everything.
func busConfig(address string) string {
	return fmt.Sprintf(`<busconfig><listen>%s</listen><policy context="default">
<allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>`, address)
}

// raucConfig returns the configuration of a RAUC with its files and the directory of its keys, its slots, and lines of
// the section [casync].
func raucConfig(dir, keys, slotA, slotB string, casync ...string) string {
	return fmt.Sprintf(`[system]
compatible=test
bootloader=custom
statusfile=%[1]s/status
mountprefix=%[1]s/mnt

[keyring]
path=%[2]s/cert.pem

[encryption]
key=%[2]s/key.pem
cert=%[2]s/cert.pem

[handlers]
bootloader-custom-backend=%[1]s/boot.sh

[slot.rootfs.0]
device=%[3]s
type=raw
bootname=A

[slot.rootfs.1]
device=%[4]s
type=raw
bootname=B

[casync]
%[5]s
`, dir, keys, slotA, slotB, strings.Join(casync, "\n"))
}

// raucService is a running rauc service.
type raucService struct {
	*job
	m *raucMachine
}

// serve starts the machine's RAUC service with lines of the section [casync], in namespaces of its own: with the last
// process, its mounts vanish, as at a power cut.
func (m *raucMachine) serve(t testing.TB, casync ...string) *raucService {
	t.Helper()
	keys := filepath.Dir(raucFile(t, "key.pem"))
	conf := writeFile(t, m.dir, "system.conf", []byte(raucConfig(m.dir, keys, m.slot("a"), m.slot("b"), casync...)))
	s := &raucService{startProgram(t, nil, "unshare", "--pid", "--fork", "--mount-proc", "--kill-child",
		"sh", "-c", `mount --bind "$1" /var/lib && shift && exec "$@"`, "sh", m.path("var-lib"),
		"env", "PATH="+string(m.programs)+":/usr/bin:/bin:/usr/sbin:/sbin", "DBUS_SYSTEM_BUS_ADDRESS="+m.bus,
		"G_MESSAGES_DEBUG=rauc", "rauc", "--conf", conf, "service", "--override-boot-slot=A"), m}
	s.stderr.await(t, "' acquired")
	return s
}

// stop ends the service.
func (s *raucService) stop(t testing.TB) {
	t.Helper()
	s.end(t, syscall.SIGTERM)
}

// end sends a signal to the service and waits until the last process of its namespace is gone. SIGKILL ends all of
// them.
func (s *raucService) end(t testing.TB, signal syscall.Signal) {
	t.Helper()
	pid := s.cmd.Process.Pid
	service := strings.TrimSpace(string(readFile(t, fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))))
	must(t, "kill", fmt.Sprintf("-%d", signal), service)
	s.wait(t)
}

// install installs a bundle with a service of its own.
func (m *raucMachine) install(t testing.TB, bundle string, casync ...string) ran {
	t.Helper()
	s := m.serve(t, casync...)
	got := m.programs.run(t, "env", "DBUS_SYSTEM_BUS_ADDRESS="+m.bus, "rauc", "install", bundle)
	s.stop(t)
	got.stderr += s.stderr.String()
	return got
}

// wantInstalled installs a bundle. Afterwards the second slot holds the image, is the one to boot, and the rest of the
// disk is as before.
func (m *raucMachine) wantInstalled(t testing.TB, bundle, image string, casync ...string) {
	t.Helper()
	want := m.parts(t, image)
	want.image = sum(t, image, 0, fileSize(t, image))
	if got := m.install(t, bundle, casync...); got.status != 0 {
		t.Fatalf("rauc install: exit status %d\n%s%s", got.status, got.stdout, got.stderr)
	}
	if m.parts(t, image) != want {
		t.Error("the slot is not the image, or something else on the disk has changed")
	}
	if got := m.primary(t); got != "B" {
		t.Errorf("after the installation the machine boots %s", got)
	}
}

// wantRefused installs a bundle, which fails with words in the log. The machine goes on booting the first slot.
func (m *raucMachine) wantRefused(t testing.TB, words, bundle string, casync ...string) {
	t.Helper()
	got := m.install(t, bundle, casync...)
	if got.status != 1 || !strings.Contains(got.stderr, words) {
		t.Errorf("rauc install: exit status %d, want 1 with %q\n%s%s", got.status, words, got.stdout, got.stderr)
	}
	if got := m.primary(t); got != "A" {
		t.Errorf("after a failed installation the machine boots %s", got)
	}
}
