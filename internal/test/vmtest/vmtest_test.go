package vmtest_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"cairn/internal/test/need"
	"cairn/internal/test/vmtest"
)

const patience = 5 * time.Minute

func TestBoot(t *testing.T) {
	t.Parallel()
	note := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(note, []byte("brought along\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	vm := vmtest.Boot(t, vmtest.Config{
		Modules: []string{"nbd", "dm-flakey", "ext4"},
		Files:   map[string]string{"/etc/test/note": note},
		Init: `
cat /etc/test/note
test -b /dev/nbd0 && echo there is an nbd0
grep -q dm_flakey /proc/modules && echo there is a dm-flakey
echo ready
echo ready again
read word
echo "read $word"
`,
	})
	want := []string{"brought along", "there is an nbd0", "there is a dm-flakey", "ready", "ready again"}
	for _, text := range want {
		if got := vm.Wait(t, text, patience); got != text {
			t.Errorf("Wait(%q) = %q", text, got)
		}
	}
	vm.Type(t, "what was typed")
	vm.Wait(t, "read what was typed", patience)
	vm.WaitOff(t, patience)
}

func TestStop(t *testing.T) {
	t.Parallel()
	vm := vmtest.Boot(t, vmtest.Config{Init: "echo started; while true; do sleep 1; done"})
	vm.Wait(t, "started", patience)
	vm.Stop()
	vm.Stop()
	vm.WaitOff(t, patience)
}

func TestBootRoot(t *testing.T) {
	t.Parallel()
	const word = "hello from the network"
	image := vmtest.RootImage(t, word)
	socket := serve(t, image)
	vmtest.BootRoot(t, "nbd+unix:///?socket="+socket, word)
}

// serve exports the image with qemu-nbd until the test ends, and returns the socket's path. The test opens the socket
// and passes it on as systemd does, so that it accepts connections at once.
func serve(t *testing.T, image string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "nbd")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"`, "sh",
		need.Tool(t, "qemu-nbd"), "--read-only", "--format=raw", "--persistent", image)
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // the end of the test's context has ended it
	return socket
}
