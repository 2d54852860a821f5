package e2e

import (
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cairn/internal/netlab"
	"cairn/internal/vmtest"
)

// outages are for how long the server and the store are away.
func outages() (server, store time.Duration) {
	if long() {
		return 30 * time.Second, 60 * time.Second
	}
	return 2 * time.Second, 4 * time.Second
}

// TestVMOutages: a machine has its root from the server, as docs/vms.md says. While it boots the server is killed and
// started again, and the store is away for a while: the boot goes on, with the right bytes and no error.
func TestVMOutages(t *testing.T) {
	t.Parallel()
	g := guests(t)
	web := newNginx(t, g.dir)
	line := newFlakyLine(t, web.url)
	socket := filepath.Join(socketDir(t), "socket")
	args := []string{line.url() + "/root.caibx", "--listen", "unix:" + socket}
	values := map[string]string{"SOCKET": socket, "EXPORT": pinned(t, filepath.Join(g.dir, "root.caibx"))}
	server, store := outages()

	first := serve(t, 1, args...)
	began := time.Now()
	vm := vmtest.Boot(t, vmtest.Config{
		Modules: []string{"virtio_pci", "virtio_blk", "squashfs"},
		Init:    bootFromDisk,
		Args:    qemuArgs(t, "disk", values),
	})
	vm.Wait(t, "guest: running", guestPatience)
	t.Logf("the guest runs after %v", time.Since(began).Round(time.Second))
	first.signal(t, syscall.SIGKILL)
	first.wait(t)
	time.Sleep(server) // nobody tells that qemu waits
	web.sent(t)
	second := serve(t, 1, args...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the second server says:\n%s", second.stderr)
		}
	})
	g.wantPart(t, vm, 0)

	line.down.Store(true)
	line.Sever()
	second.stderr.await(t, "reads wait for the store")
	time.Sleep(store)
	if strings.Contains(vm.Console(), "guest: part 2") {
		t.Error("the guest has read all before the store was away")
	}
	line.down.Store(false)
	g.wantSystem(t, vm, 1)
	t.Logf("the guest is done after %v, with the server away for %v and the store for %v", time.Since(began).Round(time.Second), server, store)
	if sent := web.sent(t); sent.chunks == 0 {
		t.Error("the second server fetched nothing")
	}
}

// bootFromDisk goes on with what is on the first disk.
const bootFromDisk = `
mount -t squashfs -o ro /dev/vda /root
mount -t devtmpfs dev /root/dev
exec switch_root /root /init
`

// flakyLine is the way to a web server, which may be down: connections are refused.
type flakyLine struct {
	*netlab.Proxy
	down atomic.Bool
}

func newFlakyLine(t testing.TB, url string) *flakyLine {
	t.Helper()
	line := &flakyLine{}
	proxy, err := netlab.NewProxy(strings.TrimPrefix(url, "http://"), netlab.Link{}, func(int64) netlab.Fate {
		if line.down.Load() {
			return netlab.Refused()
		}
		return netlab.Fate{}
	})
	if err != nil {
		t.Fatal(err)
	}
	line.Proxy = proxy
	t.Cleanup(func() { _ = proxy.Close() })
	return line
}

func (l *flakyLine) url() string { return "http://" + l.Addr() }
