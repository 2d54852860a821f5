package store_test

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/storetest"
)

// sample is a chunk for tests, with its digest.
type sample struct {
	data   []byte
	digest blob.Digest
}

func newSample(seed uint64, size int) sample {
	data := append(storetest.Bytes(seed, size/2), make([]byte, size-size/2)...)
	return sample{data, blob.SHA512_256.Sum(data)}
}

func (s sample) plain() string  { return s.digest.String()[:4] + "/" + s.digest.String() }
func (s sample) packed() string { return s.plain() + ".cacnk" }

// wantFrom checks that g supplies the chunk.
func (s sample) wantFrom(t *testing.T, g store.Getter) {
	t.Helper()
	dst := make([]byte, len(s.data))
	if err := store.GetOne(t.Context(), g, s.digest, dst); err != nil || !bytes.Equal(dst, s.data) {
		t.Errorf("Get = %v, want the chunk", err)
	}
}

func (s sample) get(t *testing.T, g store.Getter) error {
	t.Helper()
	return store.GetOne(t.Context(), g, s.digest, make([]byte, len(s.data)))
}

// bucketOf returns a bucket with these chunks, compressed.
func bucketOf(t testing.TB, samples ...sample) *mem.Bucket {
	t.Helper()
	b := new(mem.Bucket)
	w := newWriter(t, b, store.WriterOptions{})
	for _, s := range samples {
		if _, err := w.Put(t.Context(), s.digest, s.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

func newWriter(t testing.TB, b store.Bucket, o store.WriterOptions) *store.Writer {
	t.Helper()
	w, err := store.NewWriter(b, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func chunksOf(r store.Reader) *store.Chunks { return store.NewChunks(r, blob.SHA512_256) }

func mustWrite(t *testing.T, b store.Bucket, name string, data []byte) {
	t.Helper()
	if err := b.Write(t.Context(), name, data); err != nil {
		t.Fatal(err)
	}
}

func TestWriterAndChunks(t *testing.T) {
	for name, o := range map[string]store.WriterOptions{
		"zstd": {}, "zstd 19": {Level: 19}, "none": {Compression: store.None},
	} {
		t.Run(name, func(t *testing.T) {
			b := new(mem.Bucket)
			w, c := newWriter(t, b, o), chunksOf(b)
			for i, size := range []int{1, 2, 1000, 70_000, 256 << 10, 1 << 20} {
				s := newSample(uint64(i), size)
				if has, err := w.Has(t.Context(), s.digest); has || err != nil {
					t.Errorf("Has before Put = %v, %v", has, err)
				}
				stored, err := w.Put(t.Context(), s.digest, s.data)
				if err := errors.Join(err, w.Commit(t.Context())); err != nil {
					t.Fatal(err)
				}
				s.wantFrom(t, c)
				if got, err := c.Stat(t.Context(), s.digest); got != stored || err != nil {
					t.Errorf("Stat = %d, %v; want %d", got, err, stored)
				}
				if has, err := w.Has(t.Context(), s.digest); !has || err != nil {
					t.Errorf("Has = %v, %v", has, err)
				}
			}
		})
	}
}

func TestSHA256Chunks(t *testing.T) {
	s := newSample(1, 1000)
	s.digest = blob.SHA256.Sum(s.data)
	b := bucketOf(t, s)
	s.wantFrom(t, store.NewChunks(b, blob.SHA256))
	if _, ok := errors.AsType[*store.CorruptError](s.get(t, chunksOf(b))); !ok {
		t.Error("the other algorithm's digest was accepted")
	}
}

func TestWriterRefuses(t *testing.T) {
	if _, err := store.NewWriter(new(mem.Bucket), store.WriterOptions{Level: 99}); err == nil {
		t.Error("NewWriter with level 99 succeeded")
	}
	w := newWriter(t, new(mem.Bucket), store.WriterOptions{})
	if _, err := w.Put(t.Context(), blob.SHA512_256.Sum(nil), nil); err == nil {
		t.Error("Put of an empty chunk succeeded")
	}
}

// TestEmptyObjectIsAbsent: casync never flushes, and a power cut leaves empty files under final names.
func TestEmptyObjectIsAbsent(t *testing.T) {
	s := newSample(1, 1000)
	b := new(mem.Bucket)
	mustWrite(t, b, s.packed(), nil)
	w, c := newWriter(t, b, store.WriterOptions{}), chunksOf(b)
	if has, err := w.Has(t.Context(), s.digest); has || err != nil {
		t.Errorf("Has = %v, %v; want false", has, err)
	}
	if _, err := c.Stat(t.Context(), s.digest); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Stat = %v, want ErrNotFound", err)
	}
	if _, ok := errors.AsType[*store.CorruptError](s.get(t, c)); !ok {
		t.Error("Get of an empty object is no CorruptError")
	}
	if _, err := w.Put(t.Context(), s.digest, s.data); err != nil {
		t.Fatal(err)
	}
	s.wantFrom(t, c)
}

// TestPlainBesideEmpty: a chunk that Has and Stat find beside an empty object can be read.
func TestPlainBesideEmpty(t *testing.T) {
	s := newSample(1, 1000)
	b := new(mem.Bucket)
	mustWrite(t, b, s.packed(), nil)
	mustWrite(t, b, s.plain(), s.data)
	w, c := newWriter(t, b, store.WriterOptions{}), chunksOf(b)
	if has, err := w.Has(t.Context(), s.digest); !has || err != nil {
		t.Fatalf("Has = %v, %v; want true", has, err)
	}
	s.wantFrom(t, c)
	dst := make([]byte, len(s.data))
	wants := []store.Want{{Digest: s.digest, Dst: dst}, {Digest: s.digest, Dst: bytes.Clone(dst)}}
	if err := store.GetAll(t.Context(), c, wants, nil); err != nil || !bytes.Equal(dst, s.data) {
		t.Errorf("GetAll = %v", err)
	}
	mustWrite(t, b, s.plain(), nil)
	checkCorrupt(t, "both empty", s, b)
}

func TestPlainIsTriedOnProvenAbsenceOnly(t *testing.T) {
	s := newSample(1, 1000)
	b := new(mem.Bucket)
	mustWrite(t, b, s.plain(), s.data)
	s.wantFrom(t, chunksOf(b))
	for _, failure := range []error{store.ErrDenied, store.ErrUnavailable} {
		err := s.get(t, chunksOf(storetest.Faulty(b, storetest.First(1), storetest.Fails(failure))))
		if !errors.Is(err, failure) || errors.Is(err, store.ErrNotFound) {
			t.Errorf("Get = %v, want %v", err, failure)
		}
	}
}

// TestCorruptChunks: an object is served only if its bytes are the chunk.
func TestCorruptChunks(t *testing.T) {
	s, other := newSample(1, 70_000), newSample(2, 70_000)
	b := bucketOf(t, s, other)
	good, err := b.Read(t.Context(), s.packed(), nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := b.Read(t.Context(), other.packed(), nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	packedFaults := map[string]storetest.Fault{
		"truncated":   storetest.Truncates(1),
		"halved":      storetest.Truncates(len(good) / 2),
		"empty":       storetest.Answers(nil),
		"flipped bit": storetest.FlipsBit,
		"other chunk": storetest.Answers(foreign),
		"not packed":  storetest.Answers(s.data),
		"web page":    storetest.Answers([]byte("<html>")),
		"too large":   storetest.Fails(store.ErrTooLarge),
	}
	for name, fault := range packedFaults {
		checkCorrupt(t, name, s, storetest.Faulty(b, storetest.Always, fault))
		s.wantFrom(t, chunksOf(storetest.Faulty(b, storetest.Nth(1), fault))) // the second read succeeds
	}
	plain := new(mem.Bucket)
	for name, data := range map[string][]byte{
		"plain truncated": s.data[:len(s.data)-1], "plain empty": nil, "plain other": other.data,
		"plain too long": append(bytes.Clone(s.data), 0),
	} {
		mustWrite(t, plain, s.plain(), data)
		checkCorrupt(t, name, s, plain)
	}
}

func checkCorrupt(t *testing.T, name string, s sample, r store.Reader) {
	t.Helper()
	err := s.get(t, chunksOf(r))
	corrupt, ok := errors.AsType[*store.CorruptError](err)
	if !ok || errors.Is(err, store.ErrNotFound) {
		t.Errorf("%s: Get = %v, want a CorruptError", name, err)
		return
	}
	if !strings.Contains(corrupt.Name, s.digest.String()) || !strings.Contains(corrupt.Name, r.String()) {
		t.Errorf("%s: the error names %q, want the chunk and the store", name, corrupt.Name)
	}
}

// TestLyingIndex: a size that differs from the chunk's is an error, and takes no more memory than
// that size.
func TestLyingIndex(t *testing.T) {
	s := newSample(1, 70_000)
	c := chunksOf(bucketOf(t, s))
	for _, size := range []int{0, 1, len(s.data) - 1, len(s.data) + 1, 1 << 20} {
		err := store.GetOne(t.Context(), c, s.digest, make([]byte, size))
		if _, ok := errors.AsType[*store.CorruptError](err); !ok {
			t.Errorf("Get of %d bytes = %v, want a CorruptError", size, err)
		}
	}
}

func TestUnsupportedCodecIsNotCorrupt(t *testing.T) {
	s := newSample(1, 1000)
	b := new(mem.Bucket)
	cmd := exec.CommandContext(t.Context(), need.Tool(t, "xz"), "--delta", "--lzma2", "-c")
	cmd.Stdin = bytes.NewReader(s.data)
	packed, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, b, s.packed(), packed)
	err = s.get(t, chunksOf(b))
	if _, ok := errors.AsType[*store.CorruptError](err); ok || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Get = %v, want errors.ErrUnsupported", err)
	}
}

func TestAbsentChunk(t *testing.T) {
	s := newSample(1, 1000)
	err := s.get(t, chunksOf(new(mem.Bucket)))
	if !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), s.digest.String()) {
		t.Errorf("Get = %v, want ErrNotFound with the digest", err)
	}
}

func TestCancelledGet(t *testing.T) {
	s := newSample(1, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	hung := storetest.Faulty(bucketOf(t, s), storetest.Always, storetest.Hangs)
	if err := store.GetOne(ctx, chunksOf(hung), s.digest, make([]byte, 1000)); !errors.Is(err, context.Canceled) {
		t.Errorf("Get = %v, want context.Canceled", err)
	}
}

func TestWriteFailureSurfaces(t *testing.T) {
	full := errors.New("disk full")
	s := newSample(1, 1000)
	w := newWriter(t, storetest.FaultyWrites(new(mem.Bucket), storetest.Always, full), store.WriterOptions{})
	if _, err := w.Put(t.Context(), s.digest, s.data); !errors.Is(err, full) {
		t.Errorf("Put = %v, want the bucket's error", err)
	}
}

func TestHasTellsFailureFromAbsence(t *testing.T) {
	b := denying{new(mem.Bucket)}
	has, err := newWriter(t, b, store.WriterOptions{}).Has(t.Context(), newSample(1, 10).digest)
	if has || !errors.Is(err, store.ErrDenied) {
		t.Errorf("Has = %v, %v; want ErrDenied", has, err)
	}
}

type denying struct{ store.Bucket }

func (denying) Stat(context.Context, string) (int64, error) { return 0, store.ErrDenied }

func TestParallelPutAndGet(t *testing.T) {
	b := new(mem.Bucket)
	w, c := newWriter(t, b, store.WriterOptions{}), chunksOf(b)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			s := newSample(uint64(i%8), 50_000+i%8)
			if _, err := w.Put(t.Context(), s.digest, s.data); err != nil {
				t.Error(err)
			}
			s.wantFrom(t, c)
		})
	}
	wg.Wait()
}

func TestGetAllocatesLittle(t *testing.T) {
	s := newSample(1, 70_000)
	c := chunksOf(bucketOf(t, s))
	dst := make([]byte, len(s.data))
	perGet := testing.AllocsPerRun(100, func() {
		if err := store.GetOne(t.Context(), c, s.digest, dst); err != nil {
			t.Fatal(err)
		}
	})
	if perGet > 20 {
		t.Errorf("Get allocates %v times", perGet)
	}
}

func BenchmarkPut(b *testing.B) {
	data := append(storetest.Bytes(1, 32<<10), bytes.Repeat([]byte("some text "), 3<<10)...)
	d := blob.SHA512_256.Sum(data)
	w, err := store.NewWriter(new(mem.Bucket), store.WriterOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := w.Put(b.Context(), d, data); err != nil {
				b.Fatal(err)
			}
		}
	})
}
