package gonbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/pojntfx/go-nbd/pkg/backend"
	"github.com/pojntfx/go-nbd/pkg/server"

	"cairn/internal/test/need"
	"cairn/nbd"
	"cairn/nbd/gonbd"
	"cairn/nbd/nbdtest"
)

const size = 3<<20 + 4096

func randomBytes() []byte {
	p := make([]byte, size)
	rand.NewChaCha8([32]byte{7}).Read(p)
	return p
}

// memoryDisk is an nbd.Device in memory.
type memoryDisk struct {
	mu   sync.Mutex
	data []byte
}

func (d *memoryDisk) Size() int64 { return int64(len(d.data)) }

func (d *memoryDisk) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return ctx.Err()
}

func (d *memoryDisk) WriteAt(_ context.Context, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], p)
	return nil
}

func (d *memoryDisk) Flush(context.Context) error { return nil }

// readOnly is a device that does not implement nbd.Writer.
type readOnly struct{ nbd.Device }

// startServer runs serve with a listener until the test ends.
func startServer(t *testing.T, serve func(ctx context.Context, l net.Listener)) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var served sync.WaitGroup
	served.Go(func() { serve(ctx, l) })
	t.Cleanup(func() {
		stop()
		l.Close()
		served.Wait()
		os.RemoveAll(dir)
	})
	return socket
}

// serveWithGoNBD serves a backend with the server of go-nbd.
func serveWithGoNBD(t *testing.T, b backend.Backend) (socket string) {
	return startServer(t, func(_ context.Context, l net.Listener) {
		var conns sync.WaitGroup
		defer conns.Wait()
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer conn.Close()
				server.Handle(conn, []*server.Export{{Backend: b}}, &server.Options{SupportsMultiConn: true})
			})
		}
	})
}

// serveWithNBD serves a backend with the server of package nbd.
func serveWithNBD(t *testing.T, b backend.Backend) (socket string) {
	t.Helper()
	dev, err := gonbd.Device(b)
	if err != nil {
		t.Fatal(err)
	}
	exports, err := nbd.NewStatic(&nbd.Export{Device: dev, MultiConn: true})
	if err != nil {
		t.Fatal(err)
	}
	s := &nbd.Server{Exports: exports}
	return startServer(t, func(ctx context.Context, l net.Listener) {
		if err := s.Serve(ctx, l); err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
}

func nbdcopy(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), need.Tool(t, "nbdcopy"), from, to).CombinedOutput(); err != nil {
		t.Errorf("nbdcopy: %v\n%s", err, out)
	}
}

func uri(socket string) string { return "nbd+unix:///?socket=" + socket }

func sameFile(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s differs (%d bytes, want %d): %v", path, len(got), len(want), err)
	}
}

func TestOurDeviceUnderGoNBD(t *testing.T) {
	d := &memoryDisk{data: randomBytes()}
	socket := serveWithGoNBD(t, gonbd.Backend(t.Context(), readOnly{d}))
	out := filepath.Join(t.TempDir(), "out")
	nbdcopy(t, uri(socket), out)
	sameFile(t, out, d.data)
}

func TestOurWriterUnderGoNBD(t *testing.T) {
	d := &memoryDisk{data: make([]byte, size)}
	in := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(in, randomBytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	nbdcopy(t, in, uri(serveWithGoNBD(t, gonbd.Backend(t.Context(), d))))
	d.mu.Lock()
	defer d.mu.Unlock()
	if !bytes.Equal(d.data, randomBytes()) {
		t.Error("the device differs from what was copied into it")
	}
}

func TestTheirBackendsUnderOurServer(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "backend")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	backends := map[string]backend.Backend{
		"file":   backend.NewFileBackend(f),
		"memory": backend.NewMemoryBackend(make([]byte, size)),
		"ours":   gonbd.Backend(t.Context(), &memoryDisk{data: make([]byte, size)}),
	}
	in := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(in, randomBytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, b := range backends {
		t.Run(name, func(t *testing.T) {
			socket, out := serveWithNBD(t, b), filepath.Join(t.TempDir(), "out")
			nbdcopy(t, in, uri(socket))
			nbdcopy(t, uri(socket), out)
			sameFile(t, out, randomBytes())
		})
	}
}

// Unlike go-nbd's server, package nbd answers a backend's failed read with one error.
func TestTheirFailureIsOneError(t *testing.T) {
	socket := serveWithNBD(t, broken{backend.NewMemoryBackend(make([]byte, size))})
	c, err := nbdtest.Dial(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Go(""); err != nil {
		t.Fatal(err)
	}
	err = c.Read(t.Context(), make([]byte, 512), 4096)
	if e, ok := errors.AsType[*nbdtest.Error](err); !ok || e.Code != nbdtest.EIO {
		t.Errorf("a read that fails = %v", err)
	}
	if err := c.Read(t.Context(), make([]byte, 512), 0); err != nil {
		t.Errorf("then one that does not = %v", err)
	}
}

type broken struct{ backend.Backend }

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off == 4096 {
		return 0, errors.New("broken")
	}
	return b.Backend.ReadAt(p, off)
}

func TestBackendBounds(t *testing.T) {
	d := &memoryDisk{data: randomBytes()}
	b := gonbd.Backend(t.Context(), d)
	cases := []struct {
		off, n int64
		want   int
		err    error
	}{
		{0, 100, 100, nil},
		{size - 100, 100, 100, nil},
		{size - 100, 101, 100, io.EOF},
		{size, 1, 0, io.EOF},
		{size + 1, 1, 0, io.EOF},
		{-1, 1, 0, io.EOF},
	}
	for _, tc := range cases {
		if n, err := b.ReadAt(make([]byte, tc.n), tc.off); n != tc.want || err != tc.err {
			t.Errorf("ReadAt(%d, %d) = %d, %v, want %d, %v", tc.n, tc.off, n, err, tc.want, tc.err)
		}
		if _, err := b.WriteAt(make([]byte, tc.n), tc.off); (err != nil) != (tc.err != nil) {
			t.Errorf("WriteAt(%d, %d) = %v", tc.n, tc.off, err)
		}
	}
	if _, err := gonbd.Backend(t.Context(), readOnly{d}).WriteAt(make([]byte, 1), 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("WriteAt of a read-only device = %v", err)
	}
}

func TestContexts(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	d := &memoryDisk{data: randomBytes()}
	b := gonbd.Backend(ctx, d)
	dev, err := gonbd.Device(backend.NewMemoryBackend(make([]byte, size)))
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := b.ReadAt(make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt = %v", err)
	}
	if err := dev.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt = %v", err)
	}
}
