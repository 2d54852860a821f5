package e2e

import (
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cairn/internal/test/netlab"
	"cairn/internal/test/vmtest"
)

// outages returns how long the server and the store are unavailable.
func outages() (server, store time.Duration) {
	if long() {
		return 30 * time.Second, 60 * time.Second
	}
	return 2 * time.Second, 4 * time.Second
}

// TestVMOutages: a machine has its root from the server, by the recipe of docs/vms.md. During the boot the
// server is killed and restarted, and the store is unavailable for a while. The boot continues, with the right
// bytes and no error.
func TestVMOutages(t *testing.T) {
	t.Parallel()
	b := newOutageBoot(t)
	b.untilRunning(t)
	b.killServer(t)
	b.goOn(t)
}

// outageBoot is a boot during which first the server and then its store is unavailable.
type outageBoot struct {
	guestImages
	web    *webServer
	line   *flakyLine
	values map[string]string // for recipes
	args   []string          // of the server
	server *serving
	vm     *vmtest.VM
	began  time.Time
}

// newOutageBoot starts only nginx.
func newOutageBoot(t *testing.T) *outageBoot {
	t.Helper()
	b := &outageBoot{guestImages: guests(t)}
	b.values = map[string]string{"SOCKET": filepath.Join(socketDir(t), "socket"), "EXPORT": pinned(t, b.index())}
	b.connect(t)
	b.args = []string{b.values["INDEX"], "--listen", "unix:" + b.values["SOCKET"]}
	return b
}

// connect starts a proxy in front of a web server without earlier requests.
func (b *outageBoot) connect(t *testing.T) {
	t.Helper()
	b.web = newNginx(t, b.dir)
	b.line = newFlakyLine(t, b.web.url)
	b.values["STORE"], b.values["INDEX"] = b.line.url()+"/default.castr", b.line.url()+"/root.caibx"
}

// untilRunning boots until the guest runs from its root.
func (b *outageBoot) untilRunning(t *testing.T) {
	t.Helper()
	b.server = serve(t, 1, b.args...)
	b.began = time.Now()
	b.vm = bootFromDisk(t, b.values, "")
	b.vm.Wait(t, "guest: running", guestPatience)
	t.Logf("the guest runs after %v", time.Since(b.began).Round(time.Second))
}

// killServer kills the server, and waits for the length of the outage.
func (b *outageBoot) killServer(t *testing.T) {
	t.Helper()
	b.server.signal(t, syscall.SIGKILL)
	b.server.wait(t)
	away, _ := outages()
	time.Sleep(away) // qemu does not report that it waits
}

// goOn restarts the server, and makes the store unavailable in the middle of the remaining boot. It returns
// when the guest has finished.
func (b *outageBoot) goOn(t *testing.T) {
	t.Helper()
	second := serve(t, 1, b.args...)
	b.server = second
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the second server says:\n%s", second.stderr)
		}
	})
	b.wantPart(t, b.vm, 0)

	b.line.down.Store(true)
	b.line.Sever()
	second.stderr.await(t, "reads wait for the store")
	server, store := outages()
	time.Sleep(store)
	b.web.sent(t)
	b.line.down.Store(false)
	b.wantSystem(t, b.vm, 1)
	t.Logf("the guest is done after %v, with the server away for %v and the store for %v", time.Since(b.began).Round(time.Second), server, store)
	if sent := b.web.sent(t); sent.chunks == 0 {
		t.Error("the guest had read all before the store was away")
	}
}

// bootFromDisk boots a machine whose root is the disk of the recipe "disk". The lines run after the mount.
func bootFromDisk(t testing.TB, values map[string]string, lines string) *vmtest.VM {
	t.Helper()
	return vmtest.Boot(t, vmtest.Config{
		Modules: []string{"virtio_pci", "virtio_blk", "squashfs"},
		Init: `
mount -t squashfs -o ro /dev/vda /root
` + lines + `
mount -t devtmpfs dev /root/dev
exec switch_root /root /init
`,
		Args: qemuArgs(t, "disk", values),
	})
}

// flakyLine is a proxy for a web server. While it is down it refuses connections.
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
