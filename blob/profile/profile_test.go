package profile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
)

const chunkSize = 16 << 10

// imageOf returns the index of an image whose chunks have these contents, given in short.
func imageOf(t testing.TB, algorithm blob.Algorithm, contents ...int) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(algorithm, blob.Params{Min: chunkSize, Avg: chunkSize, Max: 2 * chunkSize})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contents {
		if _, err := b.Add(chunkSize, sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(c)))); err != nil {
			t.Fatal(err)
		}
	}
	return b.Index()
}

// reads returns first reads of these chunks, a second apart.
func reads(x *blob.Index, chunks ...int) (list []Read) {
	for n, i := range chunks {
		list = append(list, Read{x.At(i), time.Duration(n) * time.Second})
	}
	return list
}

func upTo(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

func TestEncodeDecode(t *testing.T) {
	x := imageOf(t, blob.SHA256, upTo(50)...)
	p := New(x, reads(x, 7, 3, 7, 40))
	back, err := Decode(bytes.NewReader(p.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p, back, cmp.AllowUnexported(Profile{})); diff != "" {
		t.Errorf("Decode(Encode) (-want +got):\n%s", diff)
	}
	known, guessed, bytes := 3, 0, int64(0)
	for _, i := range back.Plan(x).Chunks {
		bytes += x.At(i).Size
	}
	summary := Summary{Index: x.Digest(), Algorithm: "sha256", ImageBytes: x.Size(), Recordings: 1, Chunks: 3, Seconds: 3}
	if diff := cmp.Diff(summary, back.Summarize(nil)); diff != "" {
		t.Errorf("Summarize (-want +got):\n%s", diff)
	}
	summary.Known, summary.Guessed, summary.Bytes = &known, &guessed, &bytes
	if diff := cmp.Diff(summary, back.Summarize(x)); diff != "" {
		t.Errorf("Summarize of the image (-want +got):\n%s", diff)
	}
	want := []uint32{0, 1000, 3000}
	for i, e := range back.Entries() {
		if e.After != want[i] {
			t.Errorf("entry %d came after %d ms, want %d", i, e.After, want[i])
		}
	}
}

// withChecksum returns a file with the right checksum.
func withChecksum(p []byte) []byte {
	sum := sha256.Sum256(p[:len(p)-32])
	return append(slices.Clone(p[:len(p)-32]), sum[:]...)
}

func TestDecodeRefuses(t *testing.T) {
	x := imageOf(t, blob.SHA256, upTo(5)...)
	good := New(x, reads(x, 0, 1, 2)).Encode()
	at := func(i int, v byte) []byte { p := slices.Clone(good); p[i] = v; return withChecksum(p) }
	twice := slices.Clone(good)
	copy(twice[headerSize:], twice[headerSize+rowSize:headerSize+2*rowSize])
	for name, p := range map[string][]byte{
		"empty": nil, "short": good[:90], "flipped": append(slices.Clone(good[:80]), append([]byte{good[80] ^ 1}, good[81:]...)...),
		"longer": append(slices.Clone(good), 0), "other magic": at(0, 'C'), "other version": at(8, 2),
		"other algorithm": at(12, 2), "more chunks than there are": at(64, 4), "fewer": at(64, 2),
		"very many": at(71, 1), "no boots": at(56, 0), "a chunk twice": withChecksum(twice),
	} {
		if _, err := Decode(bytes.NewReader(p)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Decode = %v, want %v", name, err, ErrInvalid)
		}
	}
}

func FuzzDecode(f *testing.F) {
	x := imageOf(f, blob.SHA256, upTo(5)...)
	f.Add(New(x, reads(x, 0, 1, 2)).Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Decode(bytes.NewReader(data))
		if err != nil {
			return
		}
		if !bytes.Equal(p.Encode(), data) {
			t.Error("Decode took what Encode does not write")
		}
		plan := p.Plan(x)
		if len(plan.Chunks) > x.Len() {
			t.Errorf("a plan of %d chunks for an image of %d", len(plan.Chunks), x.Len())
		}
	})
}

// TestPlan: known chunks come in order. Changed chunks are guessed by their place, which moves with the
// neighbours. An unrelated image has an empty plan.
func TestPlan(t *testing.T) {
	old := imageOf(t, blob.SHA256, upTo(100)...)
	p := New(old, reads(old, 20, 10, 50, 11, 90))
	shifted := append([]int{1000, 1001, 1002}, upTo(100)...)
	shifted[3+11] = 2000 // chunk 11 has changed, and lies 3 further on
	for name, c := range map[string]struct {
		x    *blob.Index
		want Plan
	}{
		"the same":  {old, Plan{Chunks: []int{20, 10, 50, 11, 90}, Known: 5}},
		"the next":  {imageOf(t, blob.SHA256, shifted...), Plan{Chunks: []int{23, 13, 53, 14, 93}, Known: 4, Guessed: 1}},
		"another":   {imageOf(t, blob.SHA256, 5000, 5001, 20), Plan{Chunks: []int{2}, Known: 1, Unknown: 4}},
		"other sum": {imageOf(t, blob.SHA512_256, upTo(100)...), Plan{Unknown: 5}},
		"empty":     {imageOf(t, blob.SHA256), Plan{Unknown: 5}},
	} {
		if diff := cmp.Diff(c.want, p.Plan(c.x)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestPlanOfLies: for any profile, a plan has chunks of the image, each once.
func TestPlanOfLies(t *testing.T) {
	x := imageOf(t, blob.SHA256, upTo(300)...)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		p := New(x, reads(x, rng.Perm(300)[:rng.IntN(300)]...))
		for i := range p.entries {
			if rng.IntN(3) == 0 {
				p.entries[i].Prefix[0]++
			}
			p.entries[i].Block = rng.Uint32()
		}
		seen := map[int]bool{}
		for _, i := range p.Plan(x).Chunks {
			if i < 0 || i >= 300 || seen[i] {
				t.Fatalf("the plan names chunk %d, twice: %v", i, seen[i])
			}
			seen[i] = true
		}
	}
}

// TestPlanOfTinyChunks: an index with many chunks smaller than its average does not make a plan slow.
// Only a few chunks are guessed for one entry.
func TestPlanOfTinyChunks(t *testing.T) {
	tiny := func(n int, names ...byte) *blob.Index {
		b, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 1, Avg: blob.MaxChunkSize, Max: blob.MaxChunkSize})
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			digest := blob.Digest(sha256.Sum256(binary.LittleEndian.AppendUint64(nil, uint64(i))))
			if i < len(names) {
				digest = blob.Digest{names[i]}
			}
			if _, err := b.Add(1, digest); err != nil {
				t.Fatal(err)
			}
		}
		return b.Index()
	}
	old, x := tiny(2, 1, 2), tiny(1<<16, 1)
	p := New(old, reads(old, 0, 1))
	if got := p.Plan(x); got.Known != 1 || got.Guessed != 1 {
		t.Errorf("the plan is %+v, want one chunk known and one guessed", got)
	}
	shifts := p.listShifts(x, p.findChunks(x))
	if got := guessChunks(x, shifts, 0); len(got) > 2*maxGuesses {
		t.Errorf("%d chunks are guessed, want %d at most", len(got), 2*maxGuesses)
	}
}

func TestMerge(t *testing.T) {
	x := imageOf(t, blob.SHA256, upTo(20)...)
	a, b, c := New(x, reads(x, 1, 2, 3, 4)), New(x, reads(x, 2, 1, 3, 5)), New(x, reads(x, 1, 3, 2, 6))
	chunksOf := func(p *Profile) []int { return p.Plan(x).Chunks }
	for _, s := range []struct {
		least int
		want  []int
	}{{1, []int{1, 2, 3, 4, 5, 6}}, {2, []int{1, 2, 3}}, {3, []int{1, 2, 3}}} {
		m, err := Merge([]*Profile{a, b, c}, s.least)
		if err != nil || m.recordings != 3 {
			t.Fatalf("Merge: %v", err)
		}
		got := chunksOf(m)
		if s.least == 1 {
			slices.Sort(got[3:]) // the last three have the same place
		}
		if diff := cmp.Diff(s.want, got); diff != "" {
			t.Errorf("at least %d (-want +got):\n%s", s.least, diff)
		}
	}
	other := imageOf(t, blob.SHA512_256, 1)
	if _, err := Merge([]*Profile{a, New(other, nil)}, 1); !errors.Is(err, ErrMixed) {
		t.Errorf("Merge of two kinds = %v, want %v", err, ErrMixed)
	}
	if _, err := Merge(nil, 1); err == nil {
		t.Error("Merge of nothing succeeds")
	}
}
