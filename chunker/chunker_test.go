package chunker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"cairn/testimages"
)

// reference returns the ends of the chunks by casync's algorithm, byte by byte, as docs/format.md
// describes it.
func reference(image []byte, p Params) []int64 {
	var ends []int64
	d := p.discriminator()
	for start := 0; start < len(image); {
		n := len(image) - start
		length := min(n, int(p.Max))
		if first := int(p.firstCut()); !p.isFixed() && length >= first {
			length = firstHit(image[start:start+length], first, d)
		}
		start += length
		ends = append(ends, int64(start))
	}
	return ends
}

// firstHit returns the least length from least on that ends at a candidate, or the length of p.
func firstHit(p []byte, least int, d uint32) int {
	h := hashWindow(p[least-window:])
	for l := least; ; l++ {
		if h%d == d-1 || l == len(p) {
			return l
		}
		h = bits.RotateLeft32(h, 1) ^ bits.RotateLeft32(buzhash[p[l-window]], window) ^ buzhash[p[l]]
	}
}

// testSegment is small, so that small images have many segments.
const testSegment = 256 << 10

// ends returns the ends of the chunks that splitSegments makes. It checks the contract of batches.
func ends(t testing.TB, src *Source, image []byte, p Params, workers int) []int64 {
	t.Helper()
	var got []int64
	var mu sync.Mutex
	busy := map[int]bool{}
	worked := map[int]bool{}
	stages := Stages{
		Work: func(_ context.Context, b *Batch) error {
			mu.Lock()
			defer mu.Unlock()
			if busy[b.Worker] {
				t.Errorf("worker %d has two batches", b.Worker)
			}
			busy[b.Worker], worked[b.First] = true, true
			return nil
		},
		Order: func(_ context.Context, b *Batch) error {
			if b.First != len(got) {
				t.Errorf("batch starts at chunk %d, want %d", b.First, len(got))
			}
			for _, c := range b.Chunks {
				checkChunk(t, image, c)
				got = append(got, c.Offset+c.Size)
			}
			return nil
		},
		Finish: func(_ context.Context, b *Batch) error {
			mu.Lock()
			defer mu.Unlock()
			busy[b.Worker] = false
			return nil
		},
	}
	size, err := splitSegments(t.Context(), src, p, workers, testSegment, stages)
	if err != nil || size != int64(len(image)) {
		t.Fatalf("Split = %d, %v, want %d, nil", size, err, len(image))
	}
	return got
}

func checkChunk(t testing.TB, image []byte, c Chunk) {
	t.Helper()
	want := image[c.Offset : c.Offset+c.Size]
	if c.Data == nil {
		if len(bytes.Trim(want, "\x00")) != 0 {
			t.Errorf("chunk at %d is said to be a hole, and is not zero", c.Offset)
		}
	} else if !bytes.Equal(c.Data, want) {
		t.Errorf("chunk at %d has other bytes than the image", c.Offset)
	}
}

func random(seed uint64, n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p)
	return p
}

func TestTable(t *testing.T) {
	var raw []byte
	for _, v := range buzhash {
		raw = binary.LittleEndian.AppendUint32(raw, v)
	}
	const want = "5b52080d38287da9d2e278466e3e0db7ec98e5e8b226f50612a56fa012b1f660"
	if got := fmt.Sprintf("%x", sha256.Sum256(raw)); got != want {
		t.Errorf("digest of the table = %s, want %s", got, want)
	}
}

func TestHash(t *testing.T) {
	counting := make([]byte, window)
	for i := range counting {
		counting[i] = byte(i)
	}
	for _, c := range []struct {
		in   []byte
		want uint32
	}{
		{make([]byte, window), 0x9e489e48},
		{counting, 0x6b67dec6},
		{bytes.Repeat([]byte("a"), window), 0x0d7c0d7c},
	} {
		if got := hashWindow(c.in); got != c.want {
			t.Errorf("hashWindow(%x) = %#x, want %#x", c.in, got, c.want)
		}
	}
}

func TestDiscriminator(t *testing.T) {
	for avg, want := range map[int64]uint32{65536: 49535, 4096: 3075, 131072: 99777, 1 << 20: 886711, 8 << 20: 33554432} {
		p := Params{avg / 4, avg, avg * 4}
		if got := p.discriminator(); got != want {
			t.Errorf("discriminator of %v = %d, want %d", p, got, want)
		}
	}
}

func TestParseParams(t *testing.T) {
	for text, want := range map[string]Params{
		"16:64:256": Default, "64": Default, "64K": Default, "65536B": Default, "64KiB": Default,
		"1M":             {256 << 10, 1 << 20, 4 << 20},
		"64:64:64":       {64 << 10, 64 << 10, 64 << 10},
		"60000B:64:256K": {60000, 64 << 10, 256 << 10},
		"8M":             {2 << 20, 8 << 20, 32 << 20},
	} {
		if got, err := ParseParams(text); err != nil || got != want {
			t.Errorf("ParseParams(%q) = %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "64:16:256", "16:64", "1:2:3:4", "x", "64G", "-1", "16M", "3B", "99999999999999M", "+5"} {
		if got, err := ParseParams(text); err == nil {
			t.Errorf("ParseParams(%q) = %v, want an error", text, got)
		}
	}
}

// TestQuickTest: the quick test passes all candidates, and as few other hashes as its comment says.
func TestQuickTest(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, d := range []uint32{1, 2, 3, 48, 191, 3075, 49535, 65536, 3 << 10, 255 << 8, 257 << 8, 99777, 886711, 1 << 25} {
		f := &finder{divisor: d, test: quickTest(d)}
		wrong := 0
		check := func(h uint32) {
			if f.isCandidate(h) && !f.test.Pass(h) {
				t.Errorf("divisor %d: %#x is a candidate and does not pass", d, h)
			}
			if !f.isCandidate(h) && f.test.Pass(h) {
				wrong++
			}
		}
		const tries = 100_000
		for range tries {
			check(rng.Uint32())
			check(rng.Uint32()/d*d + d - 1)
		}
		most := 1 // 2^32-1 may pass
		if d%2 == 0 {
			most += 2 * int(tries/math.Sqrt(float64(d)))
		}
		check(0)
		check(1<<32 - 1)
		if wrong > most {
			t.Errorf("divisor %d: %d of %d hashes pass wrongly, want %d at most", d, wrong, tries, most)
		}
	}
}

// images returns contents that failed before: runs, zeros in all places, and short images.
func images() map[string][]byte {
	s := random(1, 3<<20)
	sparse := make([]byte, 7<<20)
	copy(sparse[1<<20+5000:], s[:1<<20])
	copy(sparse[5<<20-7:], s[:100])
	runs := bytes.Repeat([]byte{0x55}, 2<<20)
	copy(runs[1<<20:], s[:700_000])
	return map[string][]byte{
		"empty": nil, "one": s[:1], "47": s[:47], "48": s[:48], "16383": s[:16383], "16384": s[:16384],
		"segment": s[:testSegment], "segment+1": s[:testSegment+1], "random": s, "zeros": make([]byte, 3<<20+5),
		"sparse": sparse, "runs": runs, "tail zeros": append(s[:1<<20:1<<20], make([]byte, 3<<20)...),
	}
}

var testParams = []Params{
	Default, {1 << 10, 4 << 10, 16 << 10}, {100 << 10, 400 << 10, 1 << 20}, {64 << 10, 64 << 10, 64 << 10},
	{65536, 65536, 262144}, {11, 47, 188}, {3085, 12345, 49380},
}

func TestSplitIsCasyncs(t *testing.T) {
	for name, image := range images() {
		for i, p := range testParams {
			if testing.Short() && i%3 != 0 {
				continue
			}
			want := reference(image, p)
			for _, workers := range []int{1, 3} {
				t.Run(fmt.Sprintf("%s/%v/%d", name, p, workers), func(t *testing.T) {
					for kind, src := range map[string]*Source{
						"ReaderAt": FromReaderAt(bytes.NewReader(image), int64(len(image))),
						"Reader":   FromReader(iotest.HalfReader(bytes.NewReader(image))),
						"sparse":   FromReaderAt(sparseBytes{bytes.NewReader(image), image}, int64(len(image))),
					} {
						if diff := cmp.Diff(want, ends(t, src, image, p, workers)); diff != "" {
							t.Errorf("%s: cuts (-casync +ours):\n%s", kind, diff)
						}
					}
				})
			}
		}
	}
}

// sparseBytes treats every aligned 4 KiB of zeros as a hole, as a file system may.
type sparseBytes struct {
	io.ReaderAt
	data []byte
}

func (s sparseBytes) NextData(off int64) (start, end int64, err error) {
	const block = 4096
	size := int64(len(s.data))
	zero := func(at int64) bool { return isZero(s.data[at/block*block : min(at/block*block+block, size)]) }
	for start = off; start < size && zero(start); start = start/block*block + block {
	}
	start = min(start, size)
	for end = start; end < size && !zero(end); end = end/block*block + block {
	}
	return start, min(end, size), nil
}

// TestCutAtMin: a candidate at exactly the minimum size counts. Other tools have got this wrong.
func TestCutAtMin(t *testing.T) {
	p := Params{16 << 10, 64 << 10, 256 << 10}
	s := testimages.SHA256Stream(200_000)
	image := s[64537:164537]
	got := ends(t, FromReaderAt(bytes.NewReader(image), int64(len(image))), image, p, 2)
	if len(got) != 3 || got[0] != p.Min {
		t.Errorf("cuts at %d, want the first of three at %d", got, p.Min)
	}
}

// TestZeroCandidates: if the sizes make zeros candidates, runs of zeros are cut at every minimum.
func TestZeroCandidates(t *testing.T) {
	d := int64(window)
	for (int64(zeroHash)+1)%d != 0 { // until zeros are candidates
		d++
	}
	p := Params{d, d, 4 * d} // casync does not let the divisor be below the minimum
	if f := newFinder(p); !f.zeroCandidates || int64(f.divisor) != d {
		t.Fatalf("divisor %d: zeros are no candidates with %v", f.divisor, p)
	}
	image := make([]byte, 3<<20)
	copy(image[1<<20:], random(1, 100_000))
	src := FromReaderAt(sparseBytes{bytes.NewReader(image), image}, int64(len(image)))
	if diff := cmp.Diff(reference(image, p), ends(t, src, image, p, 2)); diff != "" {
		t.Errorf("%v: cuts (-casync +ours):\n%s", p, diff)
	}
}

// TestHugeHole: a hole costs no reads, and little time for its size.
func TestHugeHole(t *testing.T) {
	const size = 1 << 40
	var zeros, data int64
	stages := Stages{Order: func(_ context.Context, b *Batch) error {
		for _, c := range b.Chunks {
			if c.Data == nil {
				zeros += c.Size
			} else {
				data += c.Size
			}
		}
		return nil
	}}
	n, err := Split(t.Context(), FromReaderAt(hole{}, size), Params{1 << 20, 4 << 20, 16 << 20}, 2, stages)
	if err != nil || n != size || zeros+data != size || data > 16<<20 {
		t.Errorf("Split = %d, %v with %d zeros, %d data", n, err, zeros, data)
	}
}

type hole struct{}

func (hole) ReadAt(p []byte, off int64) (int, error)          { clear(p); return len(p), nil }
func (hole) NextData(off int64) (start, end int64, err error) { return 1 << 40, 1 << 40, nil }

func TestSplitFails(t *testing.T) {
	image := random(1, 20<<20) // three segments
	broken := errors.New("broken")
	do := func(ctx context.Context, src *Source, stages Stages) error {
		_, err := Split(ctx, src, Default, 3, stages)
		return err
	}
	t.Run("shrinking image", func(t *testing.T) {
		err := do(t.Context(), FromReaderAt(bytes.NewReader(image), int64(len(image))+1), Stages{})
		if err == nil || !strings.Contains(err.Error(), "shrank") {
			t.Errorf("err = %v, want one that says that it shrank", err)
		}
	})
	t.Run("broken stream", func(t *testing.T) {
		for _, broken := range []error{broken, io.ErrUnexpectedEOF} { // a truncated compressed stream ends with this
			err := do(t.Context(), FromReader(io.MultiReader(bytes.NewReader(image), iotest.ErrReader(broken))), Stages{})
			if !errors.Is(err, broken) {
				t.Errorf("err = %v, want %v", err, broken)
			}
		}
	})
	t.Run("a stage", func(t *testing.T) {
		fail := func(_ context.Context, b *Batch) error { return broken }
		for _, stages := range []Stages{{Work: fail}, {Order: fail}, {Finish: fail}} {
			if err := do(t.Context(), FromReader(bytes.NewReader(image)), stages); !errors.Is(err, broken) {
				t.Errorf("err = %v, want %v", err, broken)
			}
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stages := Stages{Order: func(context.Context, *Batch) error { cancel(); return nil }}
		if err := do(ctx, FromReader(bytes.NewReader(image)), stages); !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v, want %v", err, context.Canceled)
		}
	})
	t.Run("cancelled at the end", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		stages := Stages{Finish: func(context.Context, *Batch) error { cancel(); return nil }}
		if err := do(ctx, FromReader(bytes.NewReader(image[:100])), stages); !errors.Is(err, context.Canceled) {
			t.Errorf("err = %v, want %v", err, context.Canceled)
		}
	})
	t.Run("bad sizes", func(t *testing.T) {
		if _, err := Split(t.Context(), FromReader(bytes.NewReader(image)), Params{4, 8, 16}, 1, Stages{}); err == nil {
			t.Error("err = nil for a maximum under the window")
		}
	})
}

// FuzzSplit: any bytes, sizes, workers and reads give casync's cuts.
func FuzzSplit(f *testing.F) {
	f.Add(uint64(1), 100_000, uint16(16), uint16(20), uint16(300), uint8(3))
	f.Fuzz(func(t *testing.T, seed uint64, size int, low, mid, high uint16, workers uint8) {
		p := Params{int64(low) + 1, int64(low) + int64(mid) + 1, int64(low) + int64(mid) + int64(high) + 1}
		if p.Validate() != nil || size < 0 || size > 1<<20 {
			t.Skip()
		}
		image := lumpy(seed, size)
		want := reference(image, p)
		n := int(workers%4) + 1
		if diff := cmp.Diff(want, ends(t, FromReaderAt(bytes.NewReader(image), int64(size)), image, p, n)); diff != "" {
			t.Errorf("%v: cuts (-casync +ours):\n%s", p, diff)
		}
	})
}

// lumpy returns random bytes with runs and zeros.
func lumpy(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 7))
	p := random(seed, n)
	for at := 0; at < n; {
		run := rng.IntN(n/4 + 100)
		if part := p[at:min(at+run, n)]; rng.IntN(2) == 0 {
			for i := range part {
				part[i] = byte(rng.IntN(2)) & p[at]
			}
		}
		at += run
	}
	return p
}

func BenchmarkFind(b *testing.B) {
	buf := random(1, SegmentSize)
	f := newFinder(Default)
	var set candidates
	b.SetBytes(SegmentSize)
	for b.Loop() {
		set = set.reset(len(buf))
		f.findCandidates(set, buf, 0)
	}
}

func BenchmarkSplit(b *testing.B) {
	image := random(1, 64<<20)
	b.SetBytes(int64(len(image)))
	for b.Loop() {
		Split(b.Context(), FromReaderAt(bytes.NewReader(image), int64(len(image))), Default, 1, Stages{})
	}
}
