package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// blockingDevice is a device whose reads and writes block until release is closed or their context
// ends.
type blockingDevice struct {
	size    int64
	started atomic.Int64
	release chan struct{}
}

func (d *blockingDevice) Size() int64 { return d.size }

func (d *blockingDevice) ReadAt(ctx context.Context, _ []byte, _ int64) error {
	return d.waitForRelease(ctx)
}

func (d *blockingDevice) WriteAt(ctx context.Context, _ []byte, _ int64) error {
	return d.waitForRelease(ctx)
}

func (d *blockingDevice) Flush(context.Context) error { return nil }

func (d *blockingDevice) waitForRelease(ctx context.Context) error {
	d.started.Add(1)
	select {
	case <-d.release:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// serveOverPipe runs a transmission over a pipe within a synctest bubble. ended receives its error.
func serveOverPipe(ctx context.Context, s *Server, d *blockingDevice) (client net.Conn, ended chan error) {
	client, ours := net.Pipe()
	agreed := &session{export: &Export{Device: d}, size: uint64(d.size)}
	ended = make(chan error, 1)
	go func() {
		defer ours.Close()
		ended <- newTransmission(ctx, s, ours, agreed, slog.New(slog.DiscardHandler)).run()
	}()
	return client, ended
}

// The requests and bytes in flight of a connection are limited. Further requests wait and are
// served.
func TestInFlightIsBounded(t *testing.T) {
	cases := []struct {
		length      uint32
		sent, begun int64
	}{{512, 300, maxRequests}, {maxPayload, 5, 2}, {9 << 20, 9, 4}} // buffers have powers of two as sizes
	for _, tc := range cases {
		t.Run(fmt.Sprint(tc.length), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &blockingDevice{size: maxPayload, release: make(chan struct{})}
				client, ended := serveOverPipe(t.Context(), new(Server), d)
				go func() {
					for range tc.sent {
						client.Write(wireRequest(0, CmdRead, 0, tc.length))
					}
				}()
				synctest.Wait()
				if got := d.started.Load(); got != tc.begun {
					t.Errorf("%d reads of %d bytes are in flight, want %d", got, tc.length, tc.begun)
				}
				close(d.release)
				if _, err := io.CopyN(io.Discard, client, tc.sent*(simpleSize+int64(tc.length))); err != nil {
					t.Error(err)
				}
				client.Close()
				<-ended
			})
		})
	}
}

// A client has the write timeout for each MiB, not for all replies. A client that receives nothing
// is disconnected.
func TestWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &blockingDevice{size: maxPayload, release: make(chan struct{})}
		close(d.release)
		client, ended := serveOverPipe(t.Context(), new(Server), d)
		client.Write(wireRequest(0, CmdRead, 0, maxPayload))
		for range 8 { // slow: 16 MiB in more than three minutes
			time.Sleep(25 * time.Second)
			if _, err := io.CopyN(io.Discard, client, 2<<20); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		<-ended
		if waited := time.Since(start); waited > 30*time.Second {
			t.Errorf("a client that reads no more was let go after %v", waited)
		}
	})
}

// The loss of a client cancels its reads but not its writes.
func TestLostClientDoesNotEndWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &blockingDevice{size: 4096, release: make(chan struct{})}
		client, ended := serveOverPipe(t.Context(), new(Server), d)
		client.Write(append(wireRequest(0, CmdWrite, 0, 1), 'x'))
		client.Write(wireRequest(0, CmdRead, 0, 1))
		synctest.Wait()
		client.Close()
		synctest.Wait()
		select {
		case <-ended:
			t.Error("the connection ended before the write")
		default:
		}
		close(d.release)
		<-ended
	})
}

// When the server stops, requests in flight have the drain timeout, to the second.
func TestDrainTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		d := &blockingDevice{size: 4096, release: make(chan struct{})}
		client, ended := serveOverPipe(ctx, &Server{DrainTimeout: time.Minute}, d)
		client.Write(wireRequest(0, CmdRead, 0, 1))
		synctest.Wait()
		stop()
		start := time.Now()
		reply := make([]byte, simpleSize)
		if _, err := io.ReadFull(client, reply); err != nil || reply[7] != byte(errSHUTDOWN) {
			t.Errorf("reply % x, %v", reply, err)
		}
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("ended after %v with %v", time.Since(start), err)
		}
	})
}

// shortOfFiles is a listener that fails at first for lack of files.
type shortOfFiles struct {
	net.Listener
	tries int
}

func (l *shortOfFiles) Accept() (net.Conn, error) {
	if l.tries++; l.tries <= 3 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return nil, net.ErrClosed
}

func TestAcceptWaitsForFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := acceptConn(t.Context(), &shortOfFiles{})
		if !errors.Is(err, net.ErrClosed) || time.Since(start) != 150*time.Millisecond {
			t.Errorf("accept = %v after %v", err, time.Since(start))
		}
	})
}
