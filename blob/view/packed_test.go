package view

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/blob/view/fetch"
	"cairn/internal/test/mem"
	"cairn/store"
	"cairn/store/chunkfile"
	"cairn/store/pack"
	"cairn/store/supply"
)

// packedBoot is a boot of which the chunks of a profile are in packs. Their bytes take as much when compressed as those
// of the recorded image.
type packedBoot struct {
	*boot
	packs mem.Bucket
	m     *pack.Map
	plain map[blob.Digest][]byte // of the chunks in packs
}

// newPackedBoot packs the chunks of a profile.
func newPackedBoot(t *testing.T, b *boot, p *profile.Profile) *packedBoot {
	t.Helper()
	encoder, err := chunkfile.NewEncoder(1)
	if err != nil {
		t.Fatal(err)
	}
	packed := &packedBoot{boot: &boot{trace: b.trace, store: b.store}, plain: map[blob.Digest][]byte{}}
	w, err := pack.NewWriter(&packed.packs, b.index.Algorithm(), pack.DefaultSize)
	if err != nil {
		t.Fatal(err)
	}
	real := map[blob.Digest]blob.Digest{} // digests by those of the boot
	for _, i := range p.Plan(b.index).Chunks {
		c := b.index.At(i)
		if _, done := real[c.Digest]; done || b.index.IsZero(i) {
			continue
		}
		data := make([]byte, c.Size)
		rng := rand.NewChaCha8(c.Digest)
		_, _ = rng.Read(data[:min(c.Size, int64(b.store.stored[c.Digest]))])
		d := b.index.Algorithm().Sum(data)
		file, err := encoder.Encode(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		real[c.Digest], packed.plain[d] = d, data
		if err := w.Add(t.Context(), d, file); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	builder, err := blob.NewBuilder(b.index.Algorithm(), b.index.Params())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range b.index.All() {
		d, ok := real[c.Digest]
		if !ok {
			d = c.Digest
		}
		if _, err := builder.Add(c.Size, d); err != nil {
			t.Fatal(err)
		}
	}
	packed.index = builder.Index()
	if packed.m, err = pack.NewMap(packed.index, w.Place); err != nil {
		t.Fatal(err)
	}
	return packed
}

// checkBytes checks the bytes of a read at off.
func (b *packedBoot) checkBytes(t testing.TB, p []byte, off int64) {
	for i := b.index.Find(off); len(p) > 0; i++ {
		c := b.index.At(i)
		n := min(c.End()-off, int64(len(p)))
		if data, ok := b.plain[c.Digest]; !ok {
			b.boot.checkBytes(t, p[:n], off)
		} else if !bytes.Equal(p[:n], data[off-c.Offset:][:n]) {
			t.Errorf("the read of %d bytes at %d has wrong bytes in chunk %d", n, off, i)
		}
		p, off = p[n:], off+n
	}
}

// linkedPacks are packs at the other end of a link.
type linkedPacks struct {
	*mem.Bucket
	link   *link
	ranges bool
}

// StreamRange implements store.RangeStreamer.
func (l linkedPacks) StreamRange(ctx context.Context, name string, off, n int64, use func(store.Part, io.Reader) error) error {
	if err := sleep(ctx, l.link.latency); err != nil {
		return err
	}
	l.link.send(500)
	slow := func(in io.Reader) io.Reader {
		return readFunc(func(p []byte) (int, error) {
			n, err := in.Read(p[:min(len(p), 16<<10)])
			l.link.sendMore(n)
			if ended := sleep(ctx, time.Until(l.link.freeTime())); ended != nil {
				return 0, ended
			}
			return n, err
		})
	}
	if !l.ranges {
		off, n = 0, 1<<40
	}
	return l.Bucket.StreamRange(ctx, name, off, n, func(part store.Part, in io.Reader) error {
		part.Whole = !l.ranges
		return use(part, slow(in))
	})
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// sendMore is send for more bytes of an answer.
func (l *link) sendMore(n int) {
	l.send(n)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gets--
}

func (l *link) freeTime() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.free
}

// packedStore gets chunks from packs, and others from the store.
type packedStore struct {
	*packedBoot
	dir   *pack.Dir
	loose store.Getter
}

func (s packedStore) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	var group sync.WaitGroup
	defer group.Wait()
	for i, w := range wants {
		if !s.IsPacked(w.Digest) {
			group.Go(func() { done(i, store.GetOne(ctx, s.loose, w.Digest, w.Dst)) })
		}
	}
	s.dir.Get(ctx, s.m.Find, wants, func(i int, err error) {
		if s.IsPacked(wants[i].Digest) {
			done(i, err)
		}
	})
}

func (s packedStore) IsPacked(d blob.Digest) bool {
	_, ok := s.m.Find(d)
	return ok
}

func (s packedStore) Near(a, b blob.Digest) bool {
	p, _ := s.m.Find(a)
	q, ok := s.m.Find(b)
	return ok && p.Near(q)
}

// replay boots one machine from packs, in virtual time.
func (b *packedBoot) replay(t *testing.T, ranges bool, chunks []int) (out outcome) {
	synctest.Test(t, func(t *testing.T) {
		l := b.newLink()
		cache := fetch.New(t.Context(), fetch.Options{Bytes: 256 << 20})
		defer cache.Close()
		loose := supply.New(store.Policy{Patience: 100 * time.Millisecond}, supply.Options{}, l)
		dir := pack.NewDir(linkedPacks{&b.packs, l, ranges}, b.index.Algorithm(), pack.Options{Admit: loose.Link().Admit})
		from := packedStore{b, dir, loose}
		v := New(b.index, cache.NewSource(from, fetch.SourceOptions{Fetches: loose.Requests(), Link: loose.Link(), Packs: from}), Options{Around: true})
		v.Follow(chunks)
		var err error
		out.Waited, err = b.trace.Replay(t.Context(), func(ctx context.Context, p []byte, off int64) error {
			if !v.ReadResident(p, off) {
				if err := v.ReadAt(ctx, p, off); err != nil {
					return err
				}
			}
			b.checkBytes(t, p, off)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		cache.Close()
		out.gets, out.sent, out.stats = l.gets, l.sent, v.Stats()
	})
	return out
}

// TestBootFromPacks replays a boot whose profile's chunks are in packs of their own. It takes few requests, and reads
// block no longer than with chunks.
func TestBootFromPacks(t *testing.T) {
	b := loadBoot(t, "debian-b")
	chunks := b.profile().Plan(b.index).Chunks
	loose := b.replay(t, Options{Around: true}, func(v *Image) { v.Follow(chunks) })
	t.Logf("chunks:               %v", loose)
	packed := newPackedBoot(t, b, b.profile())
	for ranges, most := range map[bool]int{true: 130, false: len(packed.m.Packs())} {
		got := packed.replay(t, ranges, chunks)
		t.Logf("packs, ranges %-5v:   %v", ranges, got)
		if got.gets > most || got.sent > loose.sent*102/100 {
			t.Errorf("ranges %v: %d requests for %d bytes, want at most %d and %d", ranges, got.gets, got.sent, most, loose.sent*102/100)
		}
		if limit := loose.Stalled*11/10 + 20*time.Millisecond; got.Stalled > limit {
			t.Errorf("ranges %v: stalled for %v, want at most %v", ranges, got.Stalled, limit)
		}
	}
}
