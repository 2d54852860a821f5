package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/nbd"
	"cairn/nbd/nbdtest"
)

const kib, mib = 1 << 10, 1 << 20

// plain is a device that implements only nbd.Device.
type plain struct {
	data   []byte
	size   int64                                      // if data is nil
	onRead func(ctx context.Context, off int64) error // nil: succeed
}

func (d *plain) Size() int64 { return max(d.size, int64(len(d.data))) }

func (d *plain) ReadAt(ctx context.Context, p []byte, off int64) error {
	if d.onRead != nil {
		if err := d.onRead(ctx, off); err != nil {
			return err
		}
	}
	copy(p, d.data[off:])
	return nil
}

// lazy is a device like an image: it knows its zeros, and some of it is resident.
type lazy struct {
	plain
	isResident func(off int64) bool
	extents    []nbd.Extent
	prefetched atomic.Int64
}

func (d *lazy) ReadResident(p []byte, off int64) bool {
	if d.isResident == nil || !d.isResident(off) {
		return false
	}
	copy(p, d.data[off:])
	return true
}

func (d *lazy) Prefetch(_ context.Context, _, n int64) error {
	d.prefetched.Add(n)
	return nil
}

func (d *lazy) Extents(off, n int64) iter.Seq[nbd.Extent] {
	return func(yield func(nbd.Extent) bool) {
		at := int64(0)
		for _, e := range d.extents {
			from, to := max(at, off), min(at+e.Length, off+n)
			if from < to && !yield(nbd.Extent{Length: to - from, Zero: e.Zero}) {
				return
			}
			at += e.Length
		}
	}
}

// newLazy returns a device of random bytes, with zeros where the extents say so.
func newLazy(extents ...nbd.Extent) *lazy {
	d := &lazy{extents: extents}
	random := rand.NewChaCha8([32]byte{1})
	for _, e := range extents {
		p := make([]byte, e.Length)
		if !e.Zero {
			random.Read(p)
		}
		d.data = append(d.data, p...)
	}
	return d
}

// ram is a writable device.
type ram struct {
	mu      sync.Mutex
	data    []byte
	flushed int   // number of flushes
	fail    error // of writes
}

func (d *ram) Size() int64 { return int64(len(d.data)) }

func (d *ram) ReadAt(_ context.Context, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return nil
}

func (d *ram) WriteAt(_ context.Context, p []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], p)
	return d.fail
}

func (d *ram) Flush(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushed++
	return nil
}

func (d *ram) flushes() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.flushed
}

func (d *ram) holds(want []byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Equal(d.data, want)
}

func (d *ram) failWith(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

// rig is a running server.
type rig struct {
	socket string
	stop   context.CancelFunc // tells the server to stop
	wait   func()             // blocks until the server has stopped
}

var running atomic.Int64 // servers

// startServer runs a server until the end of the test. Then it checks that no goroutine of the
// server is left.
func startServer(t testing.TB, s *nbd.Server, exports ...*nbd.Export) *rig {
	t.Helper()
	if s.Exports == nil {
		list, err := nbd.NewStatic(exports...)
		if err != nil {
			t.Fatal(err)
		}
		s.Exports = list
	}
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	running.Add(1)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	wait := sync.OnceFunc(func() {
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("Serve = %v, want nil", err)
			}
		case <-time.After(20 * time.Second):
			t.Errorf("Serve does not end:\n%s", stacks())
		}
		if running.Add(-1) == 0 && !goroutinesEnded() {
			t.Errorf("goroutines are left:\n%s", stacks())
		}
	})
	t.Cleanup(func() { stop(); wait() })
	return &rig{socket, stop, wait}
}

// goroutinesEnded reports whether all goroutines of connections have ended. It allows some time for
// the ones on their last line.
func goroutinesEnded() bool {
	for start := time.Now(); time.Since(start) < 5*time.Second; runtime.Gosched() {
		if !strings.Contains(stacks(), "nbd.(*transmission)") {
			return true
		}
	}
	return false
}

func stacks() string {
	p := make([]byte, mib)
	return string(p[:runtime.Stack(p, true)])
}

func (r *rig) uri(name string) string { return "nbd+unix:///" + name + "?socket=" + r.socket }

func (r *rig) dialClient(t testing.TB) *nbdtest.Client {
	t.Helper()
	c, err := nbdtest.Dial(t.Context(), "unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dialRaw returns a connection without a client.
func (r *rig) dialRaw(t testing.TB) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", r.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// dialAndNegotiate returns a client with structured replies, base:allocation and the default
// export.
func (r *rig) dialAndNegotiate(t testing.TB) *nbdtest.Client {
	t.Helper()
	c := r.dialClient(t)
	if err := c.StructuredReplies(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.SetMetaContexts("", "base:allocation"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Go(""); err != nil {
		t.Fatal(err)
	}
	return c
}

// dialSimple returns a client with simple replies and the default export.
func (r *rig) dialSimple(t testing.TB) *nbdtest.Client {
	t.Helper()
	c := r.dialClient(t)
	if _, err := c.Go(""); err != nil {
		t.Fatal(err)
	}
	return c
}

// errorCode returns the number of an error reply, 0 for success.
func errorCode(t testing.TB, err error) uint32 {
	t.Helper()
	if err == nil {
		return 0
	}
	e, ok := errors.AsType[*nbdtest.Error](err)
	if !ok {
		t.Fatalf("the connection failed: %v", err)
	}
	return e.Code
}

// optionErrorType returns the type of the reply that refuses an option, 0 for success.
func optionErrorType(t testing.TB, err error) uint32 {
	t.Helper()
	if err == nil {
		return 0
	}
	e, ok := errors.AsType[*nbdtest.OptionError](err)
	if !ok {
		t.Fatalf("the handshake failed: %v", err)
	}
	return e.Type
}
