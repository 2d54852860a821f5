package nbd_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cairn/nbd"
	"cairn/nbd/nbdtest"
)

// syncBuffer is a log that is safe for concurrent use.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// resetConn closes a connection with a reset, as a crashed client or a health check does.
func resetConn(conn net.Conn) {
	if c, ok := conn.(*net.TCPConn); ok {
		c.SetLinger(0)
	}
	conn.Close()
}

func closeConn(conn net.Conn) { conn.Close() }

// TestOrdinaryEndings: clients and health checks disconnect at any point, and none of it is logged
// at level info or above.
func TestOrdinaryEndings(t *testing.T) {
	flags := []byte{0, 0, 0, 3}
	abort := append(flags[:4:4], nbdtest.OptionBytes(nbdtest.OptAbort, nil)...)
	chosen := append(flags[:4:4], nbdtest.OptionBytes(nbdtest.OptExportName, nil)...)
	read := append(chosen[:len(chosen):len(chosen)], bytes.Repeat(nbdtest.RequestBytes(1, nbdtest.Request{Length: mib}), 8)...)
	write := append(chosen[:len(chosen):len(chosen)], nbdtest.RequestBytes(1, nbdtest.Request{Command: nbdtest.CmdWrite, Length: mib})...)
	startTLS := append(flags[:4:4], nbdtest.OptionBytes(nbdtest.OptStartTLS, nil)...)
	hello := append(startTLS[:len(startTLS):len(startTLS)], 22, 3, 1, 0, 200) // the header of a record without its body
	cases := []struct {
		what string
		send []byte
		read int64 // bytes that it receives before it disconnects
	}{
		{"nothing", nil, 0}, {"the greeting", nil, 18}, {"half the flags", flags[:2], 0}, {"flags", flags, 0},
		{"half an option", abort[:9], 0}, {"abort, and does not wait", abort, 0}, {"abort", abort, 18 + 20},
		{"a chosen export", chosen, 18 + 10}, {"half a request", read[:len(chosen)+9], 0},
		{"reads, and does not wait", read, 0}, {"reads", read, 18 + 10 + 100}, {"half of a write", append(write, 1, 2, 3), 0},
		{"TLS's beginning", startTLS, 0}, {"half a hello", hello, 18 + 20},
	}
	d := newLazy(data(8 * mib))
	a := newAuthority(t, "ecdsa")
	for kind, config := range map[string]*tls.Config{"plain": nil, "TLS": a.serverConfig(t, false)} {
		var log syncBuffer
		s := &nbd.Server{TLS: config, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelInfo}))}
		r := startTCP(t, s, &nbd.Export{Device: d})
		for _, network := range []string{"tcp", "unix"} {
			address := r.address
			if network == "unix" {
				address = r.socket
			}
			for _, tc := range cases {
				if kind == "TLS" && bytes.HasPrefix(tc.send, chosen) {
					continue // without TLS this is a client's mistake
				}
				for _, end := range []func(net.Conn){closeConn, resetConn} {
					conn, err := net.Dial(network, address)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := conn.Write(tc.send); err != nil {
						t.Fatal(err)
					}
					if _, err := io.CopyN(io.Discard, conn, tc.read); err != nil {
						t.Fatal(err)
					}
					end(conn)
					next, err := net.Dial(network, address) // connections are accepted one after the other
					if err != nil {
						t.Fatal(err)
					}
					if _, err := io.CopyN(io.Discard, next, 18); err != nil {
						t.Fatal(err)
					}
					next.Close()
					awaitNoConns(t, s)
					if text := log.String(); text != "" {
						t.Fatalf("%s over %s: a client that has sent or seen %s leaves, and the log has\n%s", kind, network, tc.what, text)
					}
				}
			}
		}
	}
}

// awaitNoConns waits until the server has no connection.
func awaitNoConns(t *testing.T, s *nbd.Server) {
	t.Helper()
	for start := time.Now(); s.Usage().Connections > 0; time.Sleep(time.Millisecond) {
		if time.Since(start) > time.Minute {
			t.Fatalf("%d connections are left", s.Usage().Connections)
		}
	}
}

// dropIncoming makes the client's kernel drop all incoming packets, as if its host were dead.
func dropIncoming(t *testing.T, conn net.Conn) {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	dropAll := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &dropAll[0]})
	}); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}

// TestHostThatDies: a client with a dead host is disconnected. That holds also while the kernel
// sends a reply, when no write of the server waits for it. With TLS it is the same.
func TestHostThatDies(t *testing.T) {
	a := newAuthority(t, "ecdsa")
	for kind, config := range map[string]*tls.Config{"plain": nil, "TLS": a.serverConfig(t, false)} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d, begun, _, release := newBlockingDevice()
			var log syncBuffer
			s := &nbd.Server{TLS: config, AckTimeout: time.Second, Log: slog.New(slog.NewTextHandler(&log, nil))}
			r := startTCP(t, s, &nbd.Export{Device: d})
			conn, err := net.Dial("tcp", r.address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			c, err := nbdtest.New(conn)
			if err != nil {
				t.Fatal(err)
			}
			if config != nil {
				if err := c.StartTLS(a.clientConfig()); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := c.Go(""); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Start(nbdtest.Request{Length: 4096}); err != nil {
				t.Fatal(err)
			}
			<-begun
			dropIncoming(t, conn)
			close(release)
			awaitNoConns(t, s)
			if text := log.String(); !strings.Contains(text, "level=INFO") || strings.Contains(text, "level=WARN") {
				t.Errorf("the log has\n%s", text)
			}
		})
	}
}
