package assemble

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/seed"
	"cairn/store"
)

// holes is a ZeroWriter that counts the zeros written through WriteZeros.
type holes struct {
	bytes.Buffer
	zeros int64
}

func (h *holes) WriteZeros(n int64) error {
	h.zeros += n
	h.Write(make([]byte, n))
	return nil
}

// stream streams a part of the plan's image twice, with and without WriteZeros, and compares the bytes.
func stream(t *testing.T, p *seed.Plan, from store.Getter, image []byte, off, n int, o Options) Stats {
	t.Helper()
	var plain bytes.Buffer
	stats, err := Stream(t.Context(), p, from, Sink{&plain, int64(off), int64(n)}, o)
	if err != nil || !bytes.Equal(plain.Bytes(), image[off:off+n]) {
		t.Errorf("Stream of %d bytes at %d gave %d bytes, %v, not the image's", n, off, plain.Len(), err)
	}
	var sparse holes
	if _, err := Stream(t.Context(), p, from, Sink{&sparse, int64(off), int64(n)}, o); err != nil || !bytes.Equal(sparse.Bytes(), image[off:off+n]) {
		t.Errorf("Stream of %d bytes at %d gave %d bytes with holes, %v, not the image's", n, off, sparse.Len(), err)
	}
	return stats
}

func TestStream(t *testing.T) {
	a, b := releases()
	x := index(t, b)
	broken := seedOf(t, a)
	broken.Data = bytes.NewReader(random(7, len(a)))
	for name, c := range map[string]struct {
		seeds []seed.Seed
		want  int // fetches
	}{
		"no seed":          {nil, distinct(index(t, nil), x)},
		"a seed":           {[]seed.Seed{seedOf(t, a)}, distinct(index(t, a), x)},
		"a seed that lies": {[]seed.Seed{broken}, distinct(index(t, nil), x)},
	} {
		for _, o := range []Options{{}, {Far: true, Memory: 4 << 20}, {Memory: 1 << 20, Segments: 1}} {
			p := seed.NewPlan(x, c.seeds...)
			from := newStore(t, b)
			stats := stream(t, p, from, b, 0, len(b), o)
			if stats.Done != int64(len(b)) || stats.Written != int64(len(b)) || stats.Fetches != int64(c.want) {
				t.Errorf("%s: %+v, want all %d bytes done and written, and %d fetches", name, stats, len(b), c.want)
			}
			o.Stream, stats.Written = true, 0
			previewed, _, err := Preview(t.Context(), p, nil, o)
			if diff := cmp.Diff(stats, previewed); diff != "" || err != nil {
				t.Errorf("%s: Preview = %v, other than Stream (-stream +preview):\n%s", name, err, diff)
			}
		}
	}
	p, from := seed.NewPlan(x, seedOf(t, a)), newStore(t, b)
	for _, c := range []struct{ off, n int }{{0, 0}, {1, 1}, {250_001, 500_000}, {len(b) - 60_000, 60_000}, {len(b), 0}} {
		stream(t, p, from, b, c.off, c.n, Options{Memory: 1 << 20, Segments: 3})
	}
	for _, n := range []int{0, 1, 511, headSize + 1} {
		image := random(6, n)
		stream(t, seed.NewPlan(index(t, image)), newStore(t, image), image, 0, n, Options{})
	}
	for _, c := range []struct{ off, n int64 }{{-1, 1}, {0, -1}, {1, int64(len(b))}, {int64(len(b)) + 1, 0}} {
		if _, err := Stream(t.Context(), seed.NewPlan(x), newStore(t, b), Sink{io.Discard, c.off, c.n}, Options{}); err == nil {
			t.Errorf("Stream of %d bytes at %d does not fail", c.n, c.off)
		}
	}
}

func TestStreamKeepsHoles(t *testing.T) {
	image := bytes.Join([][]byte{random(1, 100_000), make([]byte, 1<<20), random(2, 100_000)}, nil)
	var out holes
	_, err := Stream(t.Context(), seed.NewPlan(index(t, image)), newStore(t, image), Sink{&out, 0, int64(len(image))}, Options{})
	if err != nil || out.zeros < 1<<20-4*params.Max {
		t.Errorf("Stream = %v with %d bytes of zeros told, want almost %d", err, out.zeros, 1<<20)
	}
}

// TestStreamRepeats: a chunk that repeats soon is fetched once, and so is one that repeats later if
// there is room. The limit of the room holds.
func TestStreamRepeats(t *testing.T) {
	filler := bytes.Repeat([]byte{0xff}, 400_000)
	part := random(1, 600_000)
	image := bytes.Join([][]byte{random(2, 200_000), part, filler, random(3, 300_000), filler, part, part, filler}, nil)
	x := index(t, image)
	few := distinct(index(t, nil), x)
	for _, c := range []struct {
		memory int64
		again  bool
	}{{32 << 20, false}, {1 << 20, true}} {
		p, from := seed.NewPlan(x), newStore(t, image)
		stats, err := Stream(t.Context(), p, from, Sink{io.Discard, 0, x.Size()}, Options{Memory: c.memory})
		if err != nil || stats.Fetches > int64(few) != c.again || stats.Copied == 0 {
			t.Errorf("with %d bytes: Stream = %+v, %v; want more than %d fetches: %v", c.memory, stats, err, few, c.again)
		}
		previewed, _, err := Preview(t.Context(), p, nil, Options{Memory: c.memory, Stream: true})
		if err != nil || previewed.Fetches != stats.Fetches || previewed.Copied != stats.Copied {
			t.Errorf("with %d bytes: Preview = %+v, %v, want as Stream's %+v", c.memory, previewed, err, stats)
		}
		if n := from.gets[x.At(x.Find(900_000)).Digest]; n > 3 {
			t.Errorf("with %d bytes: the filler, which is there in three places, was fetched %d times", c.memory, n)
		}
		checkRoom(t, p, c.memory/4)
		stream(t, p, from, image, 900_000, len(image)-900_000, Options{Memory: c.memory}) // the first of two equal chunks is not in this part
	}
}

// checkRoom checks that the chunks kept at once never take more than limit bytes.
func checkRoom(t *testing.T, p *seed.Plan, limit int64) {
	t.Helper()
	r := planRepeats(p, 0, p.Index.Len(), limit)
	held, ids := int64(0), map[int]bool{}
	for i, c := range p.Index.All() {
		id := p.First(i)
		if r.copies.Has(i) != ids[id] {
			t.Errorf("chunk %d is copied: %v, though its like stays: %v", i, r.copies.Has(i), ids[id])
		}
		if ids[id] {
			held -= c.Size
		}
		if ids[id] = r.keeps.Has(i); ids[id] {
			held += c.Size
		}
		if held > limit {
			t.Fatalf("at chunk %d %d bytes stay, want at most %d", i, held, limit)
		}
	}
	if held != 0 {
		t.Errorf("%d bytes stay in the end", held)
	}
}

// TestStreamFails: a failed stream has written a prefix of the image and nothing else.
func TestStreamFails(t *testing.T) {
	a, b := releases()
	x := index(t, b)
	p := seed.NewPlan(x, seedOf(t, a))
	lacking := distinct(index(t, a), x)
	for _, n := range []int{0, 1, 2, lacking / 2, lacking - 1, lacking} {
		var out bytes.Buffer
		from := &failing{memStore: newStore(t, b), left: int64(n)}
		_, err := Stream(t.Context(), p, from, Sink{&out, 0, x.Size()}, Options{Memory: 1 << 20})
		whole := n == lacking
		if whole != (err == nil) || err != nil && !errors.Is(err, store.ErrUnavailable) {
			t.Fatalf("a store that fails after %d chunks: Stream = %v", n, err)
		}
		if !bytes.HasPrefix(b, out.Bytes()) || whole != (out.Len() == len(b)) {
			t.Fatalf("a store that fails after %d chunks: %d bytes were written, want the image's first ones", n, out.Len())
		}
	}
	// All bytes before a damaged chunk are written, however early the damage was found.
	bad := x.Find(500_000)
	for bad < x.Len() && p.At(bad).Kind != seed.Fetch {
		bad++
	}
	from := newStore(t, b)
	delete(from.data, x.At(bad).Digest)
	var out bytes.Buffer
	_, err := Stream(t.Context(), seed.NewPlan(x), from, Sink{&out, 0, x.Size()}, Options{Memory: 1 << 20})
	if !errors.Is(err, store.ErrNotFound) || int64(out.Len()) > x.At(bad).Offset || int64(out.Len()) < x.At(bad).Offset-64<<10 {
		t.Errorf("Stream = %v with %d bytes, want %v with almost %d", err, out.Len(), store.ErrNotFound, x.At(bad).Offset)
	}
	broken := writerFunc(func([]byte) (int, error) { return 0, errDevice })
	if _, err := Stream(t.Context(), p, newStore(t, b), Sink{broken, 0, x.Size()}, Options{}); !errors.Is(err, errDevice) {
		t.Errorf("Stream to a broken writer = %v, want %v", err, errDevice)
	}
}

// TestStreamCancelled: a cancelled stream ends after the write in progress, in data and in zeros.
func TestStreamCancelled(t *testing.T) {
	image := append(random(1, 1<<20), make([]byte, 1<<20)...)
	x := index(t, image)
	for _, off := range []int64{0, 1 << 20, x.Size() - 1} {
		ctx, cancel := context.WithCancel(t.Context())
		writes := 0
		out := writerFunc(func(p []byte) (int, error) { cancel(); writes++; return len(p), nil })
		_, err := Stream(ctx, seed.NewPlan(x), newStore(t, image), Sink{out, off, x.Size() - off}, Options{Memory: 1 << 20})
		if !errors.Is(err, context.Canceled) || writes != 1 {
			t.Errorf("Stream from %d, cancelled by its first write = %v after %d writes", off, err, writes)
		}
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestStreamIsAhead: while the reader is slow, the stream fetches ahead as far as its memory allows.
func TestStreamIsAhead(t *testing.T) {
	image := random(1, 4<<20)
	x := index(t, image)
	const memory = 1 << 20
	synctest.Test(t, func(t *testing.T) {
		from, release := newStore(t, image), make(chan struct{})
		done := make(chan error, 1)
		out := writerFunc(func(p []byte) (int, error) { <-release; return len(p), nil })
		go func() {
			_, err := Stream(t.Context(), seed.NewPlan(x), from, Sink{out, 0, x.Size()}, Options{Memory: memory})
			done <- err
		}()
		synctest.Wait()
		if got := from.requestedBytes(x); got < 512<<10 || got > memory {
			t.Errorf("%d bytes were fetched while nothing was read, want some and at most %d", got, memory)
		}
		close(release)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// requestedBytes returns how many bytes of x's chunks were requested.
func (c *memStore) requestedBytes(x *blob.Index) (n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, chunk := range x.All() {
		n += int64(c.gets[chunk.Digest]) * chunk.Size
	}
	return n
}
