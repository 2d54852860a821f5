package apply

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob/delta"
	"cairn/store"
	"cairn/testimages"
)

// newMaker returns a Maker of all chunks, whose requests go to the server.
func (p *pair) newMaker(t testing.TB, s *server, old []byte, o MakerOptions) *Maker {
	t.Helper()
	f, err := Open(t.Context(), s, "x", p.x, p.sizes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	d := NewDecoders()
	t.Cleanup(d.Close)
	return NewMaker(p.x, f, func(r delta.Range) bool { return r.End() <= int64(len(old)) }, bytes.NewReader(old), d, o)
}

// make makes a chunk, and checks it. It reports whether the chunk was made.
func (p *pair) make(t testing.TB, m *Maker, i int) bool {
	t.Helper()
	dst := make([]byte, chunkSize)
	if !m.Make(t.Context(), p.x.At(i).Digest, dst) {
		return false
	}
	if !bytes.Equal(dst, p.new[i*chunkSize:][:chunkSize]) {
		t.Errorf("chunk %d is wrong", i)
	}
	return true
}

// TestMaker makes some chunks at random, one after the other: each costs one request of its payload, and no other byte is
// downloaded.
func TestMaker(t *testing.T) {
	const chunks = 100
	p := newPair(t, chunks)
	server := &server{file: p.file}
	m := p.newMaker(t, server, p.old, MakerOptions{})
	if m.Len() != chunks || m.Memory() < chunks {
		t.Errorf("%d chunks, %d bytes of memory", m.Len(), m.Memory())
	}
	head := server.sent
	var payloads int64
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(chunks)[:30] {
		if d := p.x.At(i).Digest; !m.MayMake(d, chunkSize) || m.MayMake(d, chunkSize-1) || !p.make(t, m, i) {
			t.Errorf("chunk %d is not made", i)
		}
		payloads += m.file.Row(i).Size
	}
	if got := server.sent - head; got != payloads || len(server.requests) != 1+30 {
		t.Errorf("%d bytes in %d requests, want %d in 31", got, len(server.requests), payloads)
	}
	if m.MayMake(p.x.Digest(), chunkSize) || m.Make(t.Context(), p.x.Digest(), make([]byte, chunkSize)) {
		t.Error("a chunk of no image is made")
	}
}

// TestMakerOfSmallFile: the payloads of a small file came with its table, also from a server without ranges.
func TestMakerOfSmallFile(t *testing.T) {
	p := newPair(t, 5)
	for _, whole := range []bool{false, true} {
		server := &server{file: p.file, whole: whole}
		m := p.newMaker(t, server, p.old, MakerOptions{})
		for i := range 5 {
			if !p.make(t, m, i) {
				t.Errorf("chunk %d is not made", i)
			}
		}
		if len(server.requests) != 1 || m.file.IsStream() {
			t.Errorf("whole %v: %d requests, a stream: %v", whole, len(server.requests), m.file.IsStream())
		}
	}
}

// TestMakerJoins: payloads that wait for admission together and lie together are one request.
func TestMakerJoins(t *testing.T) {
	const chunks, far = 60, 55
	p := newPair(t, chunks)
	synctest.Test(t, func(t *testing.T) {
		server := &server{file: p.file}
		admitted := make(chan struct{})
		m := p.newMaker(t, server, p.old, MakerOptions{Admit: func(ctx context.Context, send func() (int, error)) error {
			select {
			case <-admitted:
			case <-ctx.Done():
				return ctx.Err()
			}
			n, err := send()
			if n%chunkSize != 0 {
				t.Errorf("a request brings %d bytes", n)
			}
			return err
		}})
		opened := len(server.requests)
		var group sync.WaitGroup
		for _, i := range []int{3, 5, 4, 3, 7, 6, far} {
			group.Go(func() {
				if !p.make(t, m, i) {
					t.Errorf("chunk %d is not made", i)
				}
			})
		}
		synctest.Wait() // all wait for admission
		admitted <- struct{}{}
		synctest.Wait()
		close(admitted)
		group.Wait()
		if n := len(server.requests) - opened; n != 2 {
			t.Errorf("%d requests, want 2: %v", n, server.requests[opened:])
		}
		if len(m.queue) != 0 {
			t.Errorf("the queue has %d payloads", len(m.queue))
		}
	})
}

// TestMakerJoinsLittle: a request has at most maxJoined bytes.
func TestMakerJoinsLittle(t *testing.T) {
	const chunks = 3 * maxJoined / chunkSize
	p := newPair(t, chunks)
	p.sizes.File = 0 // its payloads do not come with the table
	m := p.newMaker(t, &server{file: p.file}, p.old, MakerOptions{})
	for n := range chunks {
		m.enqueue(n, m.file.Row(n), func() {})
	}
	batch := m.takeBatch(chunks / 2)
	last := batch[len(batch)-1].row
	if size := last.Offset + last.Size - batch[0].row.Offset; size > maxJoined || size < maxJoined-2*chunkSize {
		t.Errorf("a request of %d bytes", size)
	}
	if len(batch)+len(m.queue) != chunks {
		t.Errorf("%d payloads are taken and %d left of %d", len(batch), len(m.queue), chunks)
	}
}

// TestMakerCancelled: the end of the context ends the wait for admission, and the chunk is made later.
func TestMakerCancelled(t *testing.T) {
	p := newPair(t, 50)
	admit := func(ctx context.Context, send func() (int, error)) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		_, err := send()
		return err
	}
	m := p.newMaker(t, &server{file: p.file}, p.old, MakerOptions{Admit: admit})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if m.Make(ctx, p.x.At(40).Digest, make([]byte, chunkSize)) {
		t.Error("a chunk is made after the end")
	}
	if !p.make(t, m, 40) || m.outcomes.failed > 0 || m.failures > 0 {
		t.Errorf("the cancelled chunk is not made: %d failed, %d failed requests", m.outcomes.failed, m.failures)
	}
}

// TestMakerOfOtherBytes: chunks whose old bytes have changed fail, each once. If most fail, nothing more is downloaded.
func TestMakerOfOtherBytes(t *testing.T) {
	const chunks = 100
	p := newPair(t, chunks)
	changed := bytes.Clone(p.old)
	changed[20_050] ^= 1
	server := &server{file: p.file}
	m := p.newMaker(t, server, changed, MakerOptions{GaveUp: func(err error) { t.Errorf("gave up: %v", err) }})
	failed := 0
	for i := range chunks {
		if !p.make(t, m, i) {
			failed++
			before := len(server.requests)
			if m.MayMake(p.x.At(i).Digest, chunkSize) || p.make(t, m, i) || len(server.requests) != before {
				t.Errorf("chunk %d is made again", i)
			}
		}
	}
	if failed < 1 || failed > 5 {
		t.Errorf("%d chunks failed after one changed byte", failed)
	}

	server.sent, server.requests = 0, nil
	var reason error
	m = p.newMaker(t, server, testimages.Random(9, len(p.old)), MakerOptions{GaveUp: func(err error) { reason = errors.Join(reason, err) }})
	opened := len(server.requests)
	for i := range chunks {
		if p.make(t, m, i) {
			t.Errorf("chunk %d is made", i)
		}
	}
	if n := len(server.requests) - opened; n > leastFailures || reason == nil {
		t.Errorf("%d requests, and it gave up because of %v", n, reason)
	}
}

// TestMakerOfNotHeld: chunks whose ranges are not held are not made, and neither are payloads larger than their chunks.
func TestMakerOfNotHeld(t *testing.T) {
	p := newPair(t, 60)
	m := p.newMaker(t, &server{file: p.file}, p.old[:50_000], MakerOptions{})
	if m.Len() < 30 || m.Len() > 50 || m.MayMake(p.x.At(55).Digest, chunkSize) || p.make(t, m, 55) || !p.make(t, m, 20) {
		t.Errorf("%d chunks can be made", m.Len())
	}
	head, err := delta.Encode(delta.Head{Algorithm: p.x.Algorithm(), New: p.x.Digest(), OldSize: 10},
		[]delta.Row{{Chunk: 0, Size: chunkSize + 1, Stored: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	p.file = append(head, make([]byte, chunkSize+1)...)
	if m := p.newMaker(t, &server{file: p.file}, p.old, MakerOptions{}); m.Len() != 0 {
		t.Error("a payload is larger than its chunk")
	}
}

// TestMakerOfDamagedFile: a changed byte costs its chunk.
func TestMakerOfDamagedFile(t *testing.T) {
	p := newPair(t, 20)
	p.sizes.File = 0
	for at := int(p.sizes.Head); at < len(p.file); at += 4777 {
		damaged := bytes.Clone(p.file)
		damaged[at] ^= 0x10
		m := p.newMaker(t, &server{file: damaged}, p.old, MakerOptions{})
		failed := 0
		for i := range 20 {
			if !p.make(t, m, i) {
				failed++
			}
		}
		if failed > 1 {
			t.Errorf("%d chunks failed after a change at %d", failed, at)
		}
	}
}

// TestMakerOfOtherFile: a Maker gives up if the file was replaced or cut, or the server sends it as a whole from now on.
func TestMakerOfOtherFile(t *testing.T) {
	p := newPair(t, 100)
	for name, change := range map[string]func(s *server){
		"replaced": func(s *server) { s.size = 12345 },
		"removed":  func(s *server) { s.file = nil },
		"cut":      func(s *server) { s.size, s.file = int64(len(p.file)), p.file[:len(p.file)/2] },
		"whole":    func(s *server) { s.whole = true },
		"denied":   func(s *server) { s.breaks = func(int, int64, int64) error { return store.ErrDenied } },
	} {
		server := &server{file: p.file}
		var reason error
		m := p.newMaker(t, server, p.old, MakerOptions{GaveUp: func(err error) { reason = err }})
		server.requests = nil
		change(server)
		for i := 60; i < 90; i++ {
			if p.make(t, m, i) {
				t.Errorf("%s: chunk %d is made", name, i)
			}
		}
		if len(server.requests) != 1 || reason == nil || m.MayMake(p.x.At(95).Digest, chunkSize) {
			t.Errorf("%s: %d requests, and it gave up because of %v", name, len(server.requests), reason)
		}
	}
}

// TestMakerPauses: after a failed request, or one without an answer, nothing is requested for some seconds. Then chunks
// are made again.
func TestMakerPauses(t *testing.T) {
	p := newPair(t, 100)
	synctest.Test(t, func(t *testing.T) {
		for name, fault := range map[string]func(ctx context.Context) error{
			"unavailable": func(context.Context) error { return store.ErrUnavailable },
			"silent":      func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		} {
			server := &faultyServer{server: server{file: p.file}}
			f, err := Open(t.Context(), server, "x", p.x, p.sizes)
			if err != nil {
				t.Fatal(err)
			}
			d := NewDecoders()
			m := NewMaker(p.x, f, func(delta.Range) bool { return true }, bytes.NewReader(p.old), d,
				MakerOptions{Silence: time.Second, GaveUp: func(err error) { t.Errorf("gave up: %v", err) }})
			server.fault = fault
			began := time.Now()
			for _, i := range []int{50, 50, 51} {
				if p.make(t, m, i) {
					t.Errorf("%s: chunk %d is made", name, i)
				}
			}
			if n := len(server.requests); n != 2 || time.Since(began) > time.Second || m.MayMake(p.x.At(50).Digest, chunkSize) {
				t.Errorf("%s: %d requests in %v", name, n, time.Since(began))
			}
			server.fault = nil
			time.Sleep(makerBackoff.First)
			if !p.make(t, m, 50) || m.failures != 0 {
				t.Errorf("%s: no chunk is made after the fault", name)
			}
			d.Close()
			f.Close()
		}
	})
}

// faultyServer is a server whose requests fail.
type faultyServer struct {
	server
	fault func(ctx context.Context) error // nil for none
}

func (s *faultyServer) StreamRange(ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error) error {
	if s.fault != nil {
		s.requests = append(s.requests, [2]int64{off, n})
		return s.fault(ctx)
	}
	return s.server.StreamRange(ctx, name, off, n, use)
}

// TestMakerTogether: many goroutines make all chunks.
func TestMakerTogether(t *testing.T) {
	const chunks = 100
	p := newPair(t, chunks)
	m := p.newMaker(t, &server{file: p.file}, p.old, MakerOptions{})
	store.Each(2*chunks, 8, func(n int) {
		if !p.make(t, m, n/2) {
			t.Errorf("chunk %d is not made", n/2)
		}
	})
}
