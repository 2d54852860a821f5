// Package vmtest boots a virtual machine for tests that need a kernel of their own: block devices, kernel
// modules, a root file system over the network. A VM is qemu without hardware acceleration, the kernel that
// .ci/install unpacked into .cache/kernel, and an initramfs of busybox, modules and the test's files; it
// boots in seconds. The package knows nothing of images, stores or protocols.
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

// Config says what a VM is made of. The zero value boots and powers off.
type Config struct {
	// Init is a busybox shell script, run as process 1 when /proc, /sys and /dev are mounted and the modules
	// are loaded. Its output is the console. The VM powers off when it ends.
	Init string
	// Modules are kernel modules to load first, by name; what they depend on comes along.
	Modules []string
	// Files are copied into the VM: absolute path there to path here. They become executable.
	Files map[string]string
	// Args are further arguments for qemu: drives, network. There is no device but the console otherwise.
	Args []string
}

const (
	lifetime     = "15m"   // of a VM whose test was killed and cannot stop it
	consoleLines = 1 << 16 // printed but not yet waited for; beyond them the VM stalls
)

// VM is a virtual machine that was started. Its methods are for the goroutine of the test that booted it.
type VM struct {
	cmd   *exec.Cmd
	input io.Writer   // what is typed on the console
	lines chan string // of the console; closed when qemu has ended
	seen  []string    // lines taken from the channel
}

// Boot starts a VM and returns while it boots. It is stopped when the test ends. A short test run skips the test.
func Boot(t testing.TB, c Config) *VM {
	t.Helper()
	if testing.Short() {
		t.Skip("a virtual machine takes seconds")
	}
	qemu, timeout := need.Tool(t, "qemu-system-x86_64"), need.Tool(t, "timeout")
	k := findKernel(t)
	args := []string{"--foreground", "--kill-after=5s", lifetime,
		qemu, "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512", "-nodefaults", "-no-reboot",
		"-display", "none", "-serial", "stdio",
		"-kernel", k.image, "-initrd", initramfs(t, k, c), "-append", "console=ttyS0 quiet panic=-1 no_timer_check"} // on a busy host the check fails
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

// follow hands the console on until qemu ends; Stop waits for it.
func (vm *VM) follow(console io.Reader) {
	defer close(vm.lines)
	for s := bufio.NewScanner(console); s.Scan(); {
		vm.lines <- strings.TrimRight(s.Text(), "\r")
	}
	_ = vm.cmd.Wait() // how qemu ended says nothing of how the guest did
}

// Wait returns the next line of the console that contains text. Each line is looked at once: the next Wait
// goes on behind it. The test fails when there is no such line in time or the VM ends before it.
func (vm *VM) Wait(t testing.TB, text string, timeout time.Duration) string {
	t.Helper()
	late := time.After(timeout)
	for {
		line, running := vm.next(t, late)
		if !running {
			t.Fatalf("the VM ended without printing %q; its console:\n%s", text, vm.Console())
		}
		if strings.Contains(line, text) {
			return line
		}
	}
}

// Type types a line on the console: what Init reads, if it does.
func (vm *VM) Type(t testing.TB, line string) {
	t.Helper()
	if _, err := io.WriteString(vm.input, line+"\n"); err != nil {
		t.Fatalf("typing %q: %v; the VM's console:\n%s", line, err, vm.Console())
	}
}

// WaitOff returns when the VM is off, of itself or by Stop. The test fails when it is not in time.
func (vm *VM) WaitOff(t testing.TB, timeout time.Duration) {
	t.Helper()
	late := time.After(timeout)
	for running := true; running; {
		_, running = vm.next(t, late)
	}
}

// next takes a line from the console; there is none when the VM is no longer running.
func (vm *VM) next(t testing.TB, late <-chan time.Time) (line string, running bool) {
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

// Console is what the VM has printed, as far as Wait, WaitOff or Stop has looked.
func (vm *VM) Console() string { return strings.Join(vm.seen, "\n") }

// Stop cuts the VM's power and returns when qemu has ended. A VM that is off stays so.
func (vm *VM) Stop() {
	_ = vm.cmd.Cancel() // an error says that it has ended already
	for line := range vm.lines {
		vm.seen = append(vm.seen, line)
	}
}
