package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/store"
	"cairn/testimages"
)

const chunkSize = 4 << 10

// TestMain makes small images have several parts.
func TestMain(m *testing.M) {
	requestSize, partSize, maxGap, smallFile = requestSize/16, partSize/16, maxGap/16, smallFile/16
	m.Run()
}

// pair is an old image, a new one of chunks of one size, and the delta between them. Every chunk has a
// row. A payload is about as large as its chunk.
type pair struct {
	old, new []byte
	x        *blob.Index
	file     []byte
	sizes    Sizes
	table    *blob.Table
}

func newPair(t testing.TB, chunks int) *pair {
	t.Helper()
	p := &pair{old: testimages.Random(1, 256<<10), new: testimages.Random(2, chunks*chunkSize)}
	b, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: chunkSize, Avg: chunkSize, Max: chunkSize})
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	var rows []delta.Row
	var payloads []byte
	for i := range chunks {
		chunk := p.new[i*chunkSize:][:chunkSize]
		ranges := []delta.Range{{Offset: int64(i * 1000), Size: 90}, {Offset: int64(i*1000 + 5000), Size: 300}}
		var reference []byte
		for _, r := range ranges {
			reference = append(reference, p.old[r.Offset:r.End()]...)
		}
		copy(chunk[100:], reference)
		if err := z.ResetWithOptions(nil, zstd.WithEncoderDictRaw(0, reference)); err != nil {
			t.Fatal(err)
		}
		payload := z.EncodeAll(chunk, nil)
		rows = append(rows, delta.Row{Chunk: i, Size: int64(len(payload)), Stored: chunkSize + 60, Ranges: ranges})
		payloads = append(payloads, payload...)
		if _, err := b.Add(chunkSize, blob.SHA256.Sum(chunk)); err != nil {
			t.Fatal(err)
		}
	}
	p.x = b.Index()
	head, err := delta.Encode(delta.Head{Algorithm: blob.SHA256, New: p.x.Digest(), OldSize: int64(len(p.old))}, rows)
	if err != nil {
		t.Fatal(err)
	}
	p.file = append(head, payloads...)
	p.sizes = Sizes{File: int64(len(p.file)), Head: int64(len(head))}
	p.table = blob.NewTable(p.x)
	return p
}

// server is a Reader of one file.
type server struct {
	store.Reader
	file   []byte
	whole  bool                                   // sends the file as a whole
	size   int64                                  // that it tells; 0 is the real one
	breaks func(request int, off, at int64) error // may break an answer at an offset; nil for never

	mu       sync.Mutex
	requests [][2]int64
	sent     int64
}

func (s *server) StreamRange(ctx context.Context, _ string, off, n int64, use func(store.Part, io.Reader) error) error {
	s.mu.Lock()
	s.requests = append(s.requests, [2]int64{off, n})
	request := len(s.requests)
	s.mu.Unlock()
	if s.file == nil {
		return store.ErrNotFound
	}
	part := store.Part{Offset: off, Size: int64(len(s.file))}
	if s.size != 0 {
		part.Size = s.size
	}
	end := min(off+n, int64(len(s.file)))
	if s.whole {
		part, end = store.Part{Size: -1, Whole: true}, int64(len(s.file))
	}
	at := part.Offset
	return use(part, readerFunc(func(p []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if s.breaks != nil {
			if err := s.breaks(request, off, at); err != nil {
				return 0, err
			}
		}
		if at >= end {
			return 0, io.EOF
		}
		k := copy(p[:min(len(p), 3000)], s.file[at:end])
		at += int64(k)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sent += int64(k)
		return k, nil
	}))
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// open opens the delta and selects the wanted chunks; nil is all.
func (p *pair) open(t testing.TB, s *server, wanted func(int) bool) (*Selection, error) {
	t.Helper()
	f, err := Open(t.Context(), s, "x", p.x, p.sizes)
	if err != nil {
		return nil, err
	}
	t.Cleanup(f.Close)
	if wanted == nil {
		wanted = func(int) bool { return true }
	}
	return Select(f, wanted, func(r delta.Range) bool { return r.End() <= int64(len(p.old)) }), nil
}

// getAll gets chunks in groups, two groups at a time, and returns the numbers of those that failed. It
// checks the others.
func (p *pair) getAll(t testing.TB, s *Selection, old []byte, chunks []int) (failed []int) {
	t.Helper()
	source := NewSource(t.Context(), p.x, p.table.Find, s, bytes.NewReader(old))
	defer source.Close()
	const group = 10
	var mu sync.Mutex
	store.Each((len(chunks)+group-1)/group, 2, func(n int) {
		some := chunks[n*group : min(len(chunks), (n+1)*group)]
		var wants []store.Want
		for _, i := range some {
			wants = append(wants, store.Want{Digest: p.x.At(i).Digest, Dst: make([]byte, chunkSize)})
		}
		source.Get(t.Context(), wants, func(k int, err error) {
			i := some[k]
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = append(failed, i)
			} else if !bytes.Equal(wants[k].Dst, p.new[i*chunkSize:][:chunkSize]) {
				t.Errorf("chunk %d is wrong", i)
			}
		})
	})
	slices.Sort(failed)
	return failed
}

func numbers(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// TestSource makes all chunks in several orders, from servers with and without ranges. No byte is
// downloaded twice, and the requests are large.
func TestSource(t *testing.T) {
	const chunks = 200 // 800 KB of payloads
	p := newPair(t, chunks)
	reversed, shuffled := numbers(chunks), numbers(chunks)
	slices.Reverse(reversed)
	rand.New(rand.NewPCG(1, 2)).Shuffle(chunks, func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	for name, order := range map[string][]int{"ascending": numbers(chunks), "descending": reversed, "random": shuffled} {
		for _, whole := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s whole %v", name, whole), func(t *testing.T) {
				server := &server{file: p.file, whole: whole}
				s, err := p.open(t, server, nil)
				if err != nil {
					t.Fatal(err)
				}
				bytes, requests := server.sent+s.Bytes(), len(server.requests)+s.Requests()
				if whole {
					bytes = int64(len(p.file))
				}
				if failed := p.getAll(t, s, p.old, order); len(failed) > 0 {
					t.Errorf("%d chunks failed", len(failed))
				}
				if server.sent != int64(len(p.file)) || bytes != server.sent || requests != len(server.requests) {
					t.Errorf("%d bytes in %d requests, want %d of %d in %d",
						server.sent, len(server.requests), bytes, len(p.file), requests)
				}
				if want := 1 + 3; !whole && requests != want || whole && requests != 1 {
					t.Errorf("%d requests", requests)
				}
			})
		}
	}
}

// TestSelect selects some chunks: the gaps between their payloads are not downloaded.
func TestSelect(t *testing.T) {
	const chunks = 100
	p := newPair(t, chunks)
	server := &server{file: p.file}
	s, err := p.open(t, server, func(i int) bool { return i%10 < 3 })
	if err != nil {
		t.Fatal(err)
	}
	if s.Len() != 30 || !s.Has(12) || s.Has(13) || s.Requests() != 10 || s.Bytes() > 31*(chunkSize+10) {
		t.Errorf("selected %d chunks, %d requests, %d bytes", s.Len(), s.Requests(), s.Bytes())
	}
	failed := p.getAll(t, s, p.old, numbers(chunks))
	if len(failed) != 70 || slices.ContainsFunc(failed, s.Has) {
		t.Errorf("%d chunks failed", len(failed))
	}
}

// TestSelectWhole: a file that comes as a whole is not worth it for a few chunks.
func TestSelectWhole(t *testing.T) {
	p := newPair(t, 100)
	for wanted, want := range map[int]int{20: 20, 99: 0} { // the first chunks; only the last one
		s, err := p.open(t, &server{file: p.file, whole: true}, func(i int) bool { return i < wanted && wanted < 99 || i == wanted })
		if err != nil {
			t.Fatal(err)
		}
		if want > 0 {
			want++
		}
		if s.Len() != want {
			t.Errorf("selected %d chunks of those up to %d, want %d", s.Len(), wanted, want)
		}
	}
}

// TestRangesNotHeld: chunks whose ranges no seed holds are not selected.
func TestRangesNotHeld(t *testing.T) {
	p := newPair(t, 100)
	f, err := Open(t.Context(), &server{file: p.file}, "x", p.x, p.sizes)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := Select(f, func(int) bool { return true }, func(r delta.Range) bool { return r.End() <= 50_000 })
	if s.Len() < 30 || s.Len() > 50 || s.Has(60) {
		t.Errorf("selected %d chunks", s.Len())
	}
}

// TestSmallFile: a small file is one request, and sizes that are wrong or unknown do no harm.
func TestSmallFile(t *testing.T) {
	p := newPair(t, 5)
	for _, c := range []struct {
		sizes    Sizes
		requests int
	}{
		{p.sizes, 1}, {Sizes{}, 2}, {Sizes{File: 1000}, 2}, {Sizes{File: 100}, 3}, {Sizes{File: 1 << 40, Head: 200}, 2},
		{Sizes{File: p.sizes.File, Head: 1 << 40}, 1}, {Sizes{File: 1 << 40, Head: p.sizes.Head - 1}, 3},
	} {
		for _, whole := range []bool{false, true} {
			q, server := *p, &server{file: p.file, whole: whole}
			q.sizes = c.sizes
			s, err := q.open(t, server, nil)
			if err != nil {
				t.Fatalf("%+v: %v", c.sizes, err)
			}
			if failed := q.getAll(t, s, p.old, numbers(5)); len(failed) > 0 {
				t.Errorf("%+v: chunks %v failed", c.sizes, failed)
			}
			if n := len(server.requests); !whole && n > c.requests || whole && n != 1 {
				t.Errorf("%+v, whole %v: requests %v", c.sizes, whole, server.requests)
			}
		}
	}
}

// TestOtherOldImage: with other bytes than those of the old image chunks fail, and after some failures
// nothing more is downloaded.
func TestOtherOldImage(t *testing.T) {
	const chunks = 200
	p := newPair(t, chunks)
	server := &server{file: p.file}
	s, err := p.open(t, server, nil)
	if err != nil {
		t.Fatal(err)
	}
	other := testimages.Random(9, len(p.old))
	if failed := p.getAll(t, s, other, numbers(chunks)); len(failed) != chunks {
		t.Errorf("%d chunks failed, want all", len(failed))
	}
	if server.sent > int64(len(p.file))*3/4 {
		t.Errorf("%d of %d bytes were downloaded", server.sent, len(p.file))
	}
	changed := bytes.Clone(p.old)
	changed[20_050] ^= 1
	if s, err = p.open(t, server, nil); err != nil {
		t.Fatal(err)
	}
	if failed := p.getAll(t, s, changed, numbers(chunks)); len(failed) < 1 || len(failed) > 5 {
		t.Errorf("chunks %v failed after one changed byte", failed)
	}
	if s, err = p.open(t, server, nil); err != nil {
		t.Fatal(err)
	}
	if failed := p.getAll(t, s, p.old[:50_000], numbers(chunks)); len(failed) < chunks-50 {
		t.Errorf("%d chunks failed with a part of the old image", len(failed))
	}
}

// TestDamagedPayload: a changed byte of a payload costs its chunk.
func TestDamagedPayload(t *testing.T) {
	p := newPair(t, 20)
	for at := int(p.sizes.Head); at < len(p.file); at += 4777 {
		damaged := bytes.Clone(p.file)
		damaged[at] ^= 0x10
		s, err := p.open(t, &server{file: damaged}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if failed := p.getAll(t, s, p.old, numbers(20)); len(failed) > 1 {
			t.Errorf("chunks %v failed after a change at %d", failed, at)
		}
	}
}

// TestTwice: a chunk is made once.
func TestTwice(t *testing.T) {
	p := newPair(t, 1)
	s, err := p.open(t, &server{file: p.file}, nil)
	if err != nil {
		t.Fatal(err)
	}
	source := NewSource(t.Context(), p.x, p.table.Find, s, bytes.NewReader(p.old))
	defer source.Close()
	dst := make([]byte, chunkSize)
	if err := store.GetOne(t.Context(), source, p.x.At(0).Digest, dst); err != nil {
		t.Fatal(err)
	}
	if err := store.GetOne(t.Context(), source, p.x.At(0).Digest, dst); !errors.Is(err, errFailed) {
		t.Errorf("got a chunk again: %v", err)
	}
	if err := store.GetOne(t.Context(), source, blob.Digest{}, dst); !errors.Is(err, errFailed) {
		t.Errorf("got a chunk of no image: %v", err)
	}
}

// TestBrokenAnswers: an answer that breaks is continued where it ended. Without ranges, or after too many
// failures, chunks fail.
func TestBrokenAnswers(t *testing.T) {
	const chunks = 200
	p := newPair(t, chunks)
	broken := &store.UnavailableError{Err: errors.New("connection reset")}
	for _, c := range []struct {
		name   string
		whole  bool
		breaks func(request int, off, at int64) error
		some   bool // chunks fail
	}{
		{"second request breaks", false, func(n int, off, at int64) error { return errIf(n == 2 && at > off+100_000, broken) }, false},
		{"each request breaks once", false, func(_ int, off, at int64) error { return errIf(at > off+200_000, broken) }, false},
		{"all fail", false, func(n int, _, _ int64) error { return errIf(n > 1, broken) }, true},
		{"denied", false, func(n int, _, _ int64) error { return errIf(n > 1, store.ErrDenied) }, true},
		{"whole", true, func(_ int, _, at int64) error { return errIf(at > 400_000, broken) }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := &server{file: p.file, whole: c.whole, breaks: c.breaks}
			s, err := p.open(t, server, nil)
			if err != nil {
				t.Fatal(err)
			}
			failed := p.getAll(t, s, p.old, numbers(chunks))
			if (len(failed) > 0) != c.some {
				t.Errorf("%d chunks failed", len(failed))
			}
			if server.sent > int64(len(p.file)) {
				t.Errorf("%d bytes were sent of a file of %d", server.sent, len(p.file))
			}
		})
	}
}

func errIf(when bool, err error) error {
	if when {
		return err
	}
	return nil
}

// TestGiveUp: when a server stops in the middle of a delta, no more parts are requested than those under
// way, however many chunks were made before.
func TestGiveUp(t *testing.T) {
	const chunks = 240 // 8 parts
	p := newPair(t, chunks)
	half := p.sizes.Head + (int64(len(p.file))-p.sizes.Head)/2
	broken := &store.UnavailableError{Err: errors.New("stalled")}
	server := &server{file: p.file, breaks: func(_ int, _, at int64) error { return errIf(at > half, broken) }}
	s, err := p.open(t, server, nil)
	if err != nil {
		t.Fatal(err)
	}
	source := NewSource(t.Context(), p.x, p.table.Find, s, bytes.NewReader(p.old))
	defer source.Close()
	made := 0
	for i := range chunks {
		if store.GetOne(t.Context(), source, p.x.At(i).Digest, make([]byte, chunkSize)) == nil {
			made++
		}
	}
	if made < chunks/3 {
		t.Errorf("%d of %d chunks were made", made, chunks)
	}
	most := 1 + (len(s.parts)+1)/2 + maxResident*maxAttempts
	if len(server.requests) > most {
		t.Errorf("%d requests, want at most %d", len(server.requests), most)
	}
	if err := source.Failure(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Failure is %v", err)
	}
}

// TestGapOfStream: bytes of a whole file that are not wanted take no memory.
func TestGapOfStream(t *testing.T) {
	const chunks = 200
	p := newPair(t, chunks)
	server := &server{file: p.file, whole: true}
	wanted := func(i int) bool { return i < 50 || i >= 55 }
	s, err := p.open(t, server, wanted)
	if err != nil {
		t.Fatal(err)
	}
	gap := s.file.Row(52).Offset
	for _, part := range s.parts {
		if part.offset <= gap && gap < part.end() {
			t.Errorf("the part [%d, %d) spans the gap at %d", part.offset, part.end(), gap)
		}
	}
	failed := p.getAll(t, s, p.old, numbers(chunks))
	if len(failed) != 5 || slices.ContainsFunc(failed, wanted) {
		t.Errorf("%d chunks failed", len(failed))
	}
	if len(server.requests) != 1 || server.sent != int64(len(p.file)) {
		t.Errorf("%d bytes in %d requests", server.sent, len(server.requests))
	}
}

// TestOpenRefuses: what is not a delta for the image is refused after few bytes.
func TestOpenRefuses(t *testing.T) {
	p := newPair(t, 20)
	head := int(p.sizes.Head)
	other := newPair(t, 21)
	damaged := bytes.Clone(p.file)
	damaged[head-40] ^= 1
	for name, c := range map[string]struct {
		server *server
		want   error
	}{
		"absent":      {&server{}, store.ErrNotFound},
		"empty":       {&server{file: []byte{}}, delta.ErrInvalid},
		"a few bytes": {&server{file: p.file[:50]}, delta.ErrInvalid},
		"half a head": {&server{file: p.file[:head-10]}, delta.ErrInvalid},
		"damaged":     {&server{file: damaged}, delta.ErrInvalid},
		"other image": {&server{file: other.file}, delta.ErrInvalid},
		"other size":  {&server{file: p.file, size: 5}, delta.ErrInvalid},
		"a page":      {&server{file: bytes.Repeat([]byte("<html>"), 1<<20)}, delta.ErrInvalid},
		"denied":      {&server{file: p.file, breaks: func(int, int64, int64) error { return store.ErrDenied }}, store.ErrDenied},
	} {
		for _, whole := range []bool{false, true} {
			if c.server.size != 0 && whole {
				continue
			}
			c.server.whole, c.server.sent = whole, 0
			if _, err := p.open(t, c.server, nil); !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", name, err, c.want)
			}
			if c.server.sent > 600_000 {
				t.Errorf("%s: %d bytes were sent", name, c.server.sent)
			}
		}
	}
}

// TestReplacedFile: a file that was replaced after its table was read costs its chunks.
func TestReplacedFile(t *testing.T) {
	p := newPair(t, 100)
	server := &server{file: p.file}
	s, err := p.open(t, server, nil)
	if err != nil {
		t.Fatal(err)
	}
	server.size = 12345
	if failed := p.getAll(t, s, p.old, numbers(100)); len(failed) != 100 {
		t.Errorf("%d chunks failed", len(failed))
	}
}

// TestCancelled: the end of the context ends the waits.
func TestCancelled(t *testing.T) {
	for _, whole := range []bool{false, true} {
		p := newPair(t, 20)
		ctx, cancel := context.WithCancel(t.Context())
		server := &server{file: p.file, whole: whole, breaks: func(_ int, _, at int64) error {
			if at > 50_000 {
				cancel()
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}
		f, err := Open(ctx, server, "x", p.x, p.sizes)
		if err != nil {
			t.Fatal(err)
		}
		s := Select(f, func(int) bool { return true }, func(delta.Range) bool { return true })
		source := NewSource(ctx, p.x, p.table.Find, s, bytes.NewReader(p.old))
		if err := store.GetOne(ctx, source, p.x.At(0).Digest, make([]byte, chunkSize)); err == nil {
			t.Error("got a chunk after the end")
		}
		source.Close()
	}
}
