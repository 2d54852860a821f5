// Package vmtest boots a virtual machine for tests that need a kernel of their own: block devices, kernel modules, a
// root file system over the network. A VM is qemu without hardware acceleration, with the kernel that .ci/install
// unpacked into .cache/kernel, and an initramfs of busybox, modules and the test's files. It boots in seconds. The
// package knows nothing of images, stores or protocols.
package vmtest

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/internal/test/need"
)

// Config describes a VM. The zero value boots and powers off.
type Config struct {
	// Init is a busybox shell script, run as process 1 when /proc, /sys and /dev are mounted and the modules
	// are loaded. Its output is the console. The VM powers off when it ends.
	Init string
	// Modules are the names of kernel modules to load. Their dependencies are loaded first.
	Modules []string
	// Files maps absolute paths in the VM to paths on the host. The copies are executable.
	Files map[string]string
	// Args are further arguments for qemu: drives, network. Otherwise the VM has only a console.
	Args []string
	// Firmware are the arguments for a VM that boots from its disks; the fields above Args are not used. Empty arguments
	// select the BIOS.
	Firmware []string
}

// KernelArgs are the arguments of a kernel in a VM. On a busy host, the check of the timer fails.
const KernelArgs = "console=ttyS0 quiet no_timer_check"

const (
	lifetime     = "15m"   // limit for a VM whose test was killed and cannot stop it
	consoleLines = 1 << 16 // buffered lines of the console; when the buffer is full the VM blocks
)

// VM is a virtual machine. Its methods must be called by the goroutine of the test that booted it.
type VM struct {
	cmd   *exec.Cmd
	input io.Writer   // the keyboard of the console
	lines chan string // of the console; closed when qemu has ended
	seen  []string    // lines received from the channel
}

// Boot starts a VM and returns while it boots. The VM is stopped when the test ends. With -short, Boot skips
// the test.
func Boot(t testing.TB, c Config) *VM {
	t.Helper()
	if testing.Short() {
		t.Skip("a virtual machine takes seconds")
	}
	qemu, timeout := need.Tool(t, "qemu-system-x86_64"), need.Tool(t, "timeout")
	args := []string{"--foreground", "--kill-after=5s", lifetime,
		qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512", "-nodefaults", "-no-reboot",
		"-display", "none", "-serial", "stdio"}
	if c.Firmware != nil {
		args = append(args, c.Firmware...)
	} else {
		args = append(args, "-kernel", Kernel(t), "-initrd", Initramfs(t, c), "-append", KernelArgs+" panic=-1")
	}
	cmd := exec.CommandContext(t.Context(), timeout, append(args, c.Args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	console, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	keyboard, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting qemu: %v", err)
	}
	vm := &VM{cmd: cmd, input: keyboard, lines: make(chan string, consoleLines)}
	go vm.follow(console)
	t.Cleanup(vm.Stop)
	return vm
}

// follow sends the console's lines to vm.lines until qemu ends. Stop waits for it.
func (vm *VM) follow(console io.Reader) {
	defer close(vm.lines)
	for s := bufio.NewScanner(console); s.Scan(); {
		vm.lines <- strings.TrimRight(s.Text(), "\r")
	}
	_ = vm.cmd.Wait() // qemu's exit status does not depend on the guest
}

// Wait returns the next line of the console that contains text. The next Wait continues after that line. The
// test fails if there is no such line in time, or the VM ends before it.
func (vm *VM) Wait(t testing.TB, text string, timeout time.Duration) string {
	t.Helper()
	late := time.After(timeout)
	for {
		line, running := vm.nextLine(t, late)
		if !running {
			t.Fatalf("the VM ended without printing %q; its console:\n%s", text, vm.Console())
		}
		if strings.Contains(line, text) {
			return line
		}
	}
}

// Type types a line on the console, for Init to read.
func (vm *VM) Type(t testing.TB, line string) {
	t.Helper()
	if _, err := io.WriteString(vm.input, line+"\n"); err != nil {
		t.Fatalf("typing %q: %v; the VM's console:\n%s", line, err, vm.Console())
	}
}

// WaitOff returns when the VM is off, by itself or by Stop. The test fails if it is not off in time.
func (vm *VM) WaitOff(t testing.TB, timeout time.Duration) {
	t.Helper()
	late := time.After(timeout)
	for running := true; running; {
		_, running = vm.nextLine(t, late)
	}
}

// nextLine receives a line of the console. running is false when the VM has ended.
func (vm *VM) nextLine(t testing.TB, late <-chan time.Time) (line string, running bool) {
	t.Helper()
	select {
	case line, running = <-vm.lines:
	case <-late:
		t.Fatalf("the VM took too long; its console:\n%s", vm.Console())
	}
	if running {
		vm.seen = append(vm.seen, line)
	}
	return line, running
}

// Console returns the output of the VM that Wait, WaitOff and Stop have received.
func (vm *VM) Console() string { return strings.Join(vm.seen, "\n") }

// Stop ends qemu, and returns when it has ended. It does nothing if the VM is off.
func (vm *VM) Stop() {
	_ = vm.cmd.Cancel() // fails if qemu has ended
	for line := range vm.lines {
		vm.seen = append(vm.seen, line)
	}
}
