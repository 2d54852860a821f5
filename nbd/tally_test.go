package nbd_test

import (
	"context"
	"errors"
	"testing"

	"cairn/nbd"
	"cairn/nbd/nbdtest"
)

// TestTally: the counts include connected and disconnected clients, and requests in progress are
// visible.
func TestTally(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	d := newLazy(data(mib))
	d.isResident = func(off int64) bool { return off < 512*kib }
	d.onRead = func(_ context.Context, off int64) error {
		if off == 600*kib {
			close(entered)
			<-release
		}
		if off == 700*kib {
			return errors.New("broken")
		}
		return nil
	}
	server := &nbd.Server{}
	r := startServer(t, server, &nbd.Export{Name: "a", Device: d})
	c := connectStructured(t, r)
	for range 3 {
		mustRead(t, c, 0, 4096)
	}
	if _, err := c.Do(t.Context(), nbdtest.Request{Command: nbdtest.CmdRead, Offset: 700 * kib, Length: 512}); err == nil {
		t.Error("a broken device is read")
	}
	if _, err := c.Do(t.Context(), nbdtest.Request{Command: nbdtest.CmdTrim, Length: 512}); err == nil {
		t.Error("trim is taken by a read-only export")
	}
	done := make(chan struct{})
	go func() { defer close(done); mustRead(t, c, 600*kib, 1000) }()
	<-entered
	clients := server.Clients()
	if len(clients) != 1 || clients[0].Export.Name != "a" || clients[0].Secure || len(clients[0].Pending) != 1 {
		t.Fatalf("the clients are %+v", clients)
	}
	if p := clients[0].Pending[0]; p.Command != nbd.CmdRead || p.Offset != 600*kib || p.Length != 1000 || p.Since.IsZero() {
		t.Errorf("pending is %+v", p)
	}
	if u := server.Usage(); u.Connections != 1 || u.Accepted != 1 || u.Bytes < 1000 || u.MaxConnections != 128 {
		t.Errorf("usage is %+v", u)
	}
	close(release)
	<-done
	check := func(when string) {
		t.Helper()
		total := server.Totals()["a"]
		if ok, refused, failed := total.Requests(nbd.OK), total.Requests(nbd.Refused), total.Requests(nbd.Failed); ok != 4 || refused != 1 || failed != 1 {
			t.Errorf("%s: %d ok, %d refused, %d failed, want 4, 1, 1", when, ok, refused, failed)
		}
		if total.BytesRead != 3*4096+1000 {
			t.Errorf("%s: %d bytes read", when, total.BytesRead)
		}
	}
	check("while the client is there")
	if err := c.Disconnect(); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r.wait()
	check("after it has gone")
	if clients := server.Clients(); clients != nil {
		t.Errorf("clients are left: %+v", clients)
	}
}

func connectStructured(t *testing.T, r *rig) *nbdtest.Client {
	t.Helper()
	c, err := nbdtest.Dial(t.Context(), "unix", r.socket)
	if err == nil {
		err = c.StructuredReplies()
	}
	if err == nil {
		_, err = c.Go("")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func mustRead(t *testing.T, c *nbdtest.Client, off, n int) {
	t.Helper()
	q := nbdtest.Request{Command: nbdtest.CmdRead, Offset: uint64(off), Length: uint32(n)}
	if reply, err := c.Do(t.Context(), q); err != nil || len(reply.Data) != n {
		t.Errorf("reading %d at %d: %d bytes, %v", n, off, len(reply.Data), err)
	}
}
