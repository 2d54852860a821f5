package boottrace

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"cairn/internal/test/vmtest"
	"cairn/nbd"
)

// watched is a file as an NBD device that records its reads.
type watched struct {
	file *os.File
	size int64

	mu   sync.Mutex // guards seen
	seen []Observed
}

func (w *watched) Size() int64 { return w.size }

func (w *watched) ReadAt(_ context.Context, p []byte, off int64) error {
	asked := time.Now()
	_, err := w.file.ReadAt(p, off)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, Observed{off, int64(len(p)), asked, time.Now()})
	return err
}

// TestRecord records the boot of a root file system, ext4 with systemd and a serial console, up to its login.
// It made the traces in testdata:
//
//	CAIRN_TRACE_ROOT=root.ext4 CAIRN_TRACE_OUT=boot.trace.gz go test -run TestRecord ./internal/test/boottrace
func TestRecord(t *testing.T) {
	root, out := os.Getenv("CAIRN_TRACE_ROOT"), os.Getenv("CAIRN_TRACE_OUT")
	if root == "" || out == "" {
		t.Skip("CAIRN_TRACE_ROOT and CAIRN_TRACE_OUT name no image and trace")
	}
	w := watch(t, root)
	socket := serveWatched(t, w)
	vm := vmtest.Boot(t, vmtest.Config{
		Modules: []string{"virtio_pci", "virtio_blk", "ext4"},
		Init: `
mount -t ext4 -o rw /dev/vda /root
mount --move /dev /root/dev
umount /sys /proc
exec switch_root /root /sbin/init
`,
		Args: []string{"-m", "1024", "-drive", "file=nbd+unix:///root?socket=" + socket + ",format=raw,if=virtio,snapshot=on"},
	})
	vm.Wait(t, " ttyS0", 5*time.Minute) // getty prints it before it asks for a login
	vm.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	trace := FromObserved(w.seen)
	t.Logf("%d reads of %d bytes, %v of thinking", len(trace.Reads), trace.Bytes(), trace.Think())
	if err := os.WriteFile(out, trace.Encode(), 0o600); err != nil {
		t.Fatal(err)
	}
}

func watch(t *testing.T, path string) *watched {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return &watched{file: f, size: info.Size()}
}

// serveWatched serves the device until the test ends, and returns the socket.
func serveWatched(t *testing.T, w *watched) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "trace-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "nbd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	exports, err := nbd.NewStatic(&nbd.Export{Name: "root", Device: w, ReadOnly: true, MultiConn: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { _ = (&nbd.Server{Exports: exports}).Serve(ctx, l) })
	t.Cleanup(func() { cancel(); served.Wait() })
	return socket
}
