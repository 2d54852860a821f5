package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/nbd"
	"cairn/nbd/nbdtest"
)

func data(n int64) nbd.Extent { return nbd.Extent{Length: n} }
func zero(n int64) nbd.Extent { return nbd.Extent{Length: n, Zero: true} }

func repeat(n int, extents ...nbd.Extent) (all []nbd.Extent) {
	for range n {
		all = append(all, extents...)
	}
	return all
}

// TestRead reads the same bytes from devices that have them resident and from devices that do not,
// with all kinds of requests.
func TestRead(t *testing.T) {
	extents := []nbd.Extent{data(64 * kib), zero(128 * kib), data(100), zero(100 * kib), data(mib), zero(40*kib + 7)}
	extents = append(extents, repeat(20, data(4*kib), zero(36*kib))...)
	extents = append(extents, data(33*mib), zero(1234))
	reads := []struct {
		off, n int64
		flags  uint16
		holes  int // with structured replies
	}{
		{0, 1, 0, 0},
		{0, 4 * kib, 0, 0},
		{64 * kib, 4 * kib, 0, 0},
		{64 * kib, 64 * kib, 0, 1},
		{0, 300 * kib, 0, 2},
		{0, 300 * kib, nbdtest.CmdFlagDF, 0},
		{100, 290*kib + 1, 0, 2},
		{1300 * kib, 1000 * kib, 0, 0}, // too many pieces
		{0, 32 * mib, 0, 0},
		{newLazy(extents...).Size() - 2000, 2000, 0, 0},
	}
	for _, resident := range []bool{false, true} {
		d := newLazy(extents...)
		d.isResident = func(int64) bool { return resident }
		r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d})
		for _, c := range []*nbdtest.Client{r.dialSimple(t), r.dialAndNegotiate(t)} {
			for _, tc := range reads {
				q := nbdtest.Request{Flags: tc.flags, Offset: uint64(tc.off), Length: uint32(tc.n)}
				reply, err := c.Do(t.Context(), q)
				if errorCode(t, err) == nbdtest.EINVAL && tc.flags != 0 {
					continue // DF needs structured replies
				}
				if err != nil || !bytes.Equal(reply.Data, d.data[tc.off:tc.off+tc.n]) {
					t.Errorf("read of %d at %d: %v, or other bytes", tc.n, tc.off, err)
				}
				if reply.Chunks > 0 && reply.Holes != tc.holes {
					t.Errorf("read of %d at %d has %d holes, want %d", tc.n, tc.off, reply.Holes, tc.holes)
				}
			}
		}
	}
}

// Zeros are sent as holes: a read of 32 MiB of them gets one small chunk.
func TestReadHole(t *testing.T) {
	d := newLazy(zero(40 * mib))
	d.onRead = func(context.Context, int64) error { return errors.New("a hole was read") }
	c := startServer(t, &nbd.Server{}, &nbd.Export{Device: d}).dialAndNegotiate(t)
	reply, err := c.Do(t.Context(), nbdtest.Request{Offset: 1 * mib, Length: 32 * mib})
	if err != nil || reply.Holes != 1 || reply.Chunks != 1 || len(bytes.Trim(reply.Data, "\x00")) > 0 {
		t.Errorf("%d holes of %d chunks, %v", reply.Holes, reply.Chunks, err)
	}
}

func TestPipelining(t *testing.T) {
	d := newLazy(data(4 * mib))
	d.isResident = func(off int64) bool { return off/kib%2 == 0 }
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d})
	var group sync.WaitGroup
	for range 4 {
		c := r.dialAndNegotiate(t)
		for i := range 300 {
			group.Go(func() {
				off := i * 7 * kib
				p := make([]byte, 4*kib)
				if err := c.Read(t.Context(), p, uint64(off)); err != nil || !bytes.Equal(p, d.data[off:off+len(p)]) {
					t.Errorf("read at %d: %v, or other bytes", off, err)
				}
			})
		}
	}
	group.Wait()
}

// TestErrors sends invalid requests. After each, the connection continues.
func TestErrors(t *testing.T) {
	const size = 64 * kib
	type request = nbdtest.Request
	huge := request{Command: nbdtest.CmdWrite, Length: 64 * mib, Data: make([]byte, 64*mib)}
	readOnly := []struct {
		q    request
		want uint32
	}{
		{request{Offset: size, Length: 1}, nbdtest.EINVAL},
		{request{Offset: size - 1, Length: 2}, nbdtest.EINVAL},
		{request{Offset: 1 << 63, Length: 1}, nbdtest.EINVAL},
		{request{Offset: 1<<64 - 1, Length: 1<<32 - 1}, nbdtest.EINVAL},
		{request{Length: 1<<32 - 1}, nbdtest.EINVAL},
		{request{Length: 32*mib + 1}, nbdtest.EINVAL},
		{request{Length: 0}, nbdtest.EINVAL},
		{request{Length: 512, Flags: 1 << 15}, nbdtest.EINVAL},
		{request{Length: 512, Flags: nbdtest.CmdFlagFUA}, 0},
		{request{Length: 512, Flags: nbdtest.CmdFlagReqOne}, nbdtest.EINVAL},
		{request{Command: 8, Length: 4096}, nbdtest.EINVAL},
		{request{Command: 0xffff, Length: 1<<32 - 1}, nbdtest.EINVAL},
		{request{Command: nbdtest.CmdFlush}, 0}, // there is nothing to flush
		{request{Command: nbdtest.CmdFlush, Offset: size, Length: 1}, 0},
		{request{Command: nbdtest.CmdFlush, Flags: nbdtest.CmdFlagFUA}, 0},
		{request{Command: nbdtest.CmdTrim, Length: 4096}, nbdtest.EPERM},
		{request{Command: nbdtest.CmdWriteZeroes, Length: 4096}, nbdtest.EPERM},
		{request{Command: nbdtest.CmdWrite, Length: 3, Data: []byte("abc")}, nbdtest.EPERM},
		{huge, nbdtest.EPERM},
		{request{Command: nbdtest.CmdBlockStatus, Offset: size, Length: 512}, nbdtest.EINVAL},
		{request{Command: nbdtest.CmdCache, Offset: size, Length: 512}, nbdtest.EINVAL},
	}
	writable := []struct {
		q    request
		want uint32
	}{
		{huge, nbdtest.EINVAL},
		{request{Command: nbdtest.CmdWrite, Offset: size - 1, Length: 2, Data: []byte("ab")}, nbdtest.ENOSPC},
		{request{Command: nbdtest.CmdWrite, Offset: 1 << 63, Length: 2, Data: []byte("ab")}, nbdtest.ENOSPC},
		{request{Command: nbdtest.CmdWrite}, nbdtest.EINVAL},
		{request{Command: nbdtest.CmdWrite, Flags: 1 << 9, Length: 2, Data: []byte("ab")}, nbdtest.EINVAL},
		{request{Command: nbdtest.CmdWriteZeroes, Offset: 1, Length: size}, nbdtest.ENOSPC},
		{request{Command: nbdtest.CmdWriteZeroes, Flags: 1 << 4, Length: 512}, nbdtest.EINVAL}, // fast zero
		{request{Command: nbdtest.CmdTrim, Length: 512}, nbdtest.EINVAL},
		{request{Command: nbdtest.CmdCache, Length: 512}, 0}, // a hint
		{request{Flags: nbdtest.CmdFlagFUA, Length: 512}, 0},
	}
	ro := startServer(t, &nbd.Server{}, &nbd.Export{Device: newLazy(data(size))})
	rw := startServer(t, &nbd.Server{}, &nbd.Export{Device: &ram{data: make([]byte, size)}})
	for _, c := range []*nbdtest.Client{ro.dialSimple(t), ro.dialAndNegotiate(t)} {
		for _, tc := range readOnly {
			checkReply(t, c, tc.q, tc.want)
		}
	}
	for _, c := range []*nbdtest.Client{rw.dialSimple(t), rw.dialAndNegotiate(t)} {
		for _, tc := range writable {
			checkReply(t, c, tc.q, tc.want)
		}
	}
}

func checkReply(t *testing.T, c *nbdtest.Client, q nbdtest.Request, want uint32) {
	t.Helper()
	_, err := c.Do(t.Context(), q)
	if got := errorCode(t, err); got != want {
		t.Errorf("command %d flags %#x of %d at %d = %v, want %d", q.Command, q.Flags, q.Length, q.Offset, err, want)
	}
	if err := c.Read(t.Context(), make([]byte, 512), 0); err != nil {
		t.Errorf("then a read = %v", err)
	}
}

// A failed read gets one error, with a text in a structured reply. The next read of the same bytes
// may succeed.
func TestFailedRead(t *testing.T) {
	d := newLazy(data(64*kib), zero(64*kib), data(64*kib))
	var broken atomic.Bool
	broken.Store(true)
	d.onRead = func(_ context.Context, off int64) error {
		if off >= 64*kib && broken.Load() {
			return errors.New("chunk 1234 is gone")
		}
		return nil
	}
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d})
	for _, c := range []*nbdtest.Client{r.dialSimple(t), r.dialAndNegotiate(t)} {
		broken.Store(true)
		_, err := c.Do(t.Context(), nbdtest.Request{Length: 192 * kib})
		_, small := c.Do(t.Context(), nbdtest.Request{Offset: 130 * kib, Length: 512})
		e, _ := errors.AsType[*nbdtest.Error](err)
		if errorCode(t, small) != nbdtest.EIO {
			t.Errorf("read of a broken place = %v", small)
		}
		// Without structured replies the device reads all at once, and fails only beyond 64 KiB.
		if e != nil && (e.Code != nbdtest.EIO || e.Offset != 128*kib || e.Text != "chunk 1234 is gone") {
			t.Errorf("read of a broken place = %+v", e)
		}
		broken.Store(false)
		if err := c.Read(t.Context(), make([]byte, 512), 130*kib); err != nil {
			t.Errorf("the place is mended, and a read = %v", err)
		}
	}
}

func TestBlockStatus(t *testing.T) {
	const hole = 3
	extents := []nbd.Extent{
		data(5000), data(3192), zero(8 * kib), zero(4 * kib), data(100), zero(10000), data(50), zero(5 * kib),
	}
	c := startServer(t, &nbd.Server{}, &nbd.Export{Device: newLazy(extents...)}).dialAndNegotiate(t)
	type extent = [2]uint32 // length and state
	// Zeros: 8192–20480; 20580–30580, of which whole blocks are 24576–28672; 30630–35750, the end,
	// from 32768.
	cases := []struct {
		off   uint64
		n     uint32
		flags uint16
		want  []extent
	}{
		{0, 35750, 0, []extent{{8192, 0}, {12288, hole}, {4096, 0}, {4096, hole}, {4096, 0}, {2982, hole}}},
		{0, 35750, nbdtest.CmdFlagReqOne, []extent{{8192, 0}}},
		{0, 512, 0, []extent{{512, 0}}},
		{8192, 4096, 0, []extent{{4096, hole}}},
		{8192, 4096, nbdtest.CmdFlagReqOne, []extent{{4096, hole}}},
		{9000, 12000, 0, []extent{{20480 - 9000, hole}, {21000 - 20480, 0}}},
		{10000, 5000, 0, []extent{{5000, hole}}},
		{20000, 5000, 0, []extent{{480, hole}, {4096, 0}, {424, hole}}},
		{32767, 2, 0, []extent{{1, 0}, {1, hole}}},
		{35749, 1, 0, []extent{{1, hole}}},
	}
	for _, tc := range cases {
		all, err := c.BlockStatus(t.Context(), tc.off, tc.n, tc.flags)
		var got []extent
		for _, e := range all {
			got = append(got, extent{e.Length, e.State})
		}
		if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
			t.Errorf("BlockStatus(%d, %d, %#x): %v\n%s", tc.off, tc.n, tc.flags, err, diff)
		}
	}
}

// Extents that do not fit in a reply are requested again.
func TestBlockStatusOfMany(t *testing.T) {
	d := &lazy{extents: repeat(40000, data(4*kib), zero(4*kib)), plain: plain{size: 40000 * 8 * kib}}
	c := startServer(t, &nbd.Server{}, &nbd.Export{Device: d}).dialAndNegotiate(t)
	var all []nbdtest.Extent
	for at := uint64(0); at < uint64(d.Size()); {
		got, err := c.BlockStatus(t.Context(), at, uint32(uint64(d.Size())-at), 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range got {
			at += uint64(e.Length)
		}
		all = append(all, got...)
	}
	if len(all) != 80000 {
		t.Errorf("%d extents, want 80000", len(all))
	}
}

func TestBlockStatusWithoutExtents(t *testing.T) {
	c := startServer(t, &nbd.Server{}, &nbd.Export{Device: &plain{data: make([]byte, 9000)}}).dialAndNegotiate(t)
	got, err := c.BlockStatus(t.Context(), 0, 9000, 0)
	if diff := cmp.Diff([]nbdtest.Extent{{Length: 9000}}, got); diff != "" || err != nil {
		t.Errorf("BlockStatus: %v\n%s", err, diff)
	}
}

func TestCache(t *testing.T) {
	d := newLazy(data(mib))
	c := startServer(t, &nbd.Server{}, &nbd.Export{Device: d}).dialAndNegotiate(t)
	if err := c.Cache(t.Context(), 4096, 100000); err != nil || d.prefetched.Load() != 100000 {
		t.Errorf("Cache = %v, prefetched %d", err, d.prefetched.Load())
	}
}

func TestWrite(t *testing.T) {
	d := &ram{data: bytes.Repeat([]byte{0xff}, 4*mib)}
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d})
	for _, c := range []*nbdtest.Client{r.dialSimple(t), r.dialAndNegotiate(t)} {
		before := d.flushes()
		text := bytes.Repeat([]byte("cairn"), 100000)
		zeroes := nbdtest.Request{Command: nbdtest.CmdWriteZeroes, Offset: mib, Length: 2*mib + 1}
		zeroes.Flags = nbdtest.CmdFlagNoHole
		_, err := c.Do(t.Context(), zeroes)
		err = errors.Join(err, c.Write(t.Context(), text, 4096, 0), c.Flush(t.Context()),
			c.Write(t.Context(), text, 4096, nbdtest.CmdFlagFUA))
		if flushed := d.flushes() - before; err != nil || flushed != 2 {
			t.Errorf("write: %v, flushed %d times", err, flushed)
		}
		p := make([]byte, 4*mib)
		if err := c.Read(t.Context(), p, 0); err != nil || !bytes.Equal(p[4096:][:len(text)], text) {
			t.Errorf("read: %v, or other bytes", err)
		}
		if len(bytes.Trim(p[mib:3*mib+1], "\x00")) > 0 || p[mib-1] != 0xff || p[3*mib+1] != 0xff {
			t.Error("zeros are not where they should be")
		}
	}
	full := fmt.Errorf("full: %w", syscall.ENOSPC)
	for err, want := range map[error]uint32{errors.New("no"): nbdtest.EIO, full: nbdtest.ENOSPC} {
		d.failWith(err)
		if got := errorCode(t, r.dialAndNegotiate(t).Write(t.Context(), []byte("x"), 0, 0)); got != want {
			t.Errorf("a write that fails with %q = %d, want %d", err, got, want)
		}
	}
}

// A read that blocks must not delay others, whether their data is resident or not.
func TestNoHeadOfLineBlocking(t *testing.T) {
	release := make(chan struct{})
	d := newLazy(data(mib))
	d.isResident = func(off int64) bool { return off >= 512*kib }
	d.onRead = func(ctx context.Context, off int64) error {
		if off == 0 {
			<-release
		}
		return nil
	}
	c := startServer(t, &nbd.Server{}, &nbd.Export{Device: d}).dialAndNegotiate(t)
	slow, err := c.Start(nbdtest.Request{Length: 512})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint64(1000) {
		if err := c.Read(t.Context(), make([]byte, 512), (i%2+1)*500*kib); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	if _, err := slow(t.Context()); err != nil {
		t.Error(err)
	}
}

// newBlockingDevice returns a device whose reads block until their context ends or release is
// closed.
func newBlockingDevice() (d *plain, begun chan struct{}, ended chan error, release chan struct{}) {
	begun, ended, release = make(chan struct{}, 1000), make(chan error, 1000), make(chan struct{})
	d = &plain{data: make([]byte, mib)}
	d.onRead = func(ctx context.Context, _ int64) (err error) {
		begun <- struct{}{}
		defer func() { ended <- err }()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-release:
			return nil
		}
	}
	return d, begun, ended, release
}

func TestLostClientEndsItsReads(t *testing.T) {
	d, begun, ended, _ := newBlockingDevice()
	r := startServer(t, &nbd.Server{}, &nbd.Export{Device: d})
	for _, leave := range []func(*nbdtest.Client) error{(*nbdtest.Client).Close, sayGoodbyeAndClose} {
		c := r.dialAndNegotiate(t)
		if _, err := c.Start(nbdtest.Request{Length: 512}); err != nil {
			t.Fatal(err)
		}
		<-begun
		if err := leave(c); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the read ended with %v", err)
		}
	}
}

func sayGoodbyeAndClose(c *nbdtest.Client) error {
	if _, err := c.Start(nbdtest.Request{Command: nbdtest.CmdDisc}); err != nil {
		return err
	}
	return c.Close()
}

// Requests before a disconnect request are answered.
func TestGoodbyeWaitsForReplies(t *testing.T) {
	d, begun, _, release := newBlockingDevice()
	c := startServer(t, &nbd.Server{}, &nbd.Export{Device: d}).dialAndNegotiate(t)
	reply, err := c.Start(nbdtest.Request{Length: 512})
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	said := make(chan error, 1)
	go func() { said <- c.Disconnect() }()
	close(release)
	if _, err := reply(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-said; err != nil {
		t.Error(err)
	}
}
