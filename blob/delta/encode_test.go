package delta

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/blob/scan"
	"cairn/chunker"
	"cairn/testimages"
)

// named returns the index of an image whose chunks are named by letters. The chunk "a" has 97 bytes; "0" is a chunk of
// 1000 zeros.
func named(t testing.TB, chunks string) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 10, Avg: 100, Max: 1000})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chunks {
		d, size := blob.Digest{byte(c)}, int64(c)
		if c == '0' {
			d, size = blob.SHA256.SumZeros(1000), 1000
		}
		if _, err := b.Add(size, d); err != nil {
			t.Fatal(err)
		}
	}
	return b.Index()
}

func TestFindPlaces(t *testing.T) {
	const a, b, c = 'a', 'b', 'c'
	for _, tc := range []struct {
		old, new string
		at       []int64
		wanted   []int
		between  []between
	}{
		{"abc", "abc", []int64{0, a, a + b}, nil, []between{}},
		{"", "ab", []int64{-1, -1}, []int{0, 1}, []between{{-1, -1}, {-1, -1}}},
		{"abc", "axc", []int64{0, -1, a + b}, []int{1}, []between{{a, a + b}}},
		{"abc", "xyc", []int64{-1, -1, a + b}, []int{0, 1}, []between{{-1, a + b - 'y'}, {-1, a + b}}},
		{"abc", "cxx", []int64{a + b, -1, -1}, []int{1}, []between{{a + b + c, -1}}},
		{"abac", "ac", []int64{0, a + b + a}, nil, []between{}}, // not a + b, where the second a is
		{"bab", "abx", []int64{b, b + a, -1}, []int{2}, []between{{b + a + b, -1}}},
		{"a0b", "0x0", []int64{a, -1, a}, []int{1}, []between{{-1, -1}}},
	} {
		p := findPlaces(named(t, tc.old), named(t, tc.new))
		if diff := cmp.Diff(tc.at, p.at); diff != "" {
			t.Errorf("%s to %s: places (-want +got):\n%s", tc.old, tc.new, diff)
		}
		if diff := cmp.Diff(tc.wanted, p.wanted); diff != "" {
			t.Errorf("%s to %s: wanted (-want +got):\n%s", tc.old, tc.new, diff)
		}
		if diff := cmp.Diff(tc.between, p.findBetween(), cmp.AllowUnexported(between{})); diff != "" {
			t.Errorf("%s to %s: between (-want +got):\n%s", tc.old, tc.new, diff)
		}
	}
}

func TestJoinRanges(t *testing.T) {
	for _, tc := range []struct {
		list []Range
		gap  int64
		want []Range
	}{
		{nil, 10, nil},
		{[]Range{{-5, 10}, {95, 10}}, 0, []Range{{0, 5}, {95, 5}}},
		{[]Range{{50, 10}, {10, 10}, {20, 5}}, 0, []Range{{10, 15}, {50, 10}}},
		{[]Range{{10, 50}, {20, 5}}, 0, []Range{{10, 50}}},
		{[]Range{{10, 10}, {25, 5}, {36, 4}}, 5, []Range{{10, 20}, {36, 4}}},
		{[]Range{{-10, 5}, {100, 5}, {5, 0}}, 0, nil},
	} {
		got := joinRanges(slices.Clone(tc.list), tc.gap, 100)
		if diff := cmp.Diff(tc.want, got, cmp.Transformer("empty", func(l []Range) []Range { return append([]Range{}, l...) })); diff != "" {
			t.Errorf("joinRanges(%v, %d) (-want +got):\n%s", tc.list, tc.gap, diff)
		}
	}
}

func TestLimitRanges(t *testing.T) {
	const size = 1 << 40
	var many, far, large []Range
	for i := range int64(200) {
		many = append(many, Range{i * 3000, 100})
		far = append(far, Range{i << 30, 100 + i})
		large = append(large, Range{i << 30, 100_000 + i})
	}
	if got := limitRanges(slices.Clone(many), size); len(got) != 1 || got[0] != (Range{0, 199*3000 + 100}) {
		t.Errorf("near ranges become %v, want one", got)
	}
	for name, list := range map[string][]Range{"far": far, "large": large} {
		got := limitRanges(slices.Clone(list), size)
		if len(got) > MaxRanges || sizeOf(got) > MaxReference || len(got) < 20 {
			t.Errorf("%s: %d ranges of %d bytes", name, len(got), sizeOf(got))
		}
		if last := got[len(got)-1]; last != list[199] {
			t.Errorf("%s: the largest range is not kept, but %v", name, last)
		}
	}
	if got := limitRanges([]Range{{5, 10}}, size); !slices.Equal(got, []Range{{5, 10}}) {
		t.Errorf("one range becomes %v", got)
	}
}

// TestMatches: parts of a chunk are found in an old image, across the blocks of a window and at its ends.
func TestMatches(t *testing.T) {
	old := slices.Concat(testimages.Random(1, 3*blockSize), make([]byte, 1000), testimages.Random(2, 5000))
	a, err := newAnchors(t.Context(), bytes.NewReader(old), int64(len(old)))
	if err != nil {
		t.Fatal(err)
	}
	w := &window{image: bytes.NewReader(old), size: int64(len(old))}
	for _, tc := range []struct {
		name  string
		chunk []byte
		near  int64
		want  []Range
	}{
		{"all", old, 0, []Range{{-matchPadding, int64(len(old)) + 2*matchPadding}}},
		{"shifted", append([]byte("new text"), old[100:2*blockSize+7]...), 0, []Range{{100 - matchPadding, 2*blockSize - 93 + 2*matchPadding}}},
		{"backwards", slices.Concat([]byte("x"), old[blockSize-21:blockSize+50]), 1 << 40, []Range{{blockSize - 21 - matchPadding, 71 + 2*matchPadding}}},
		{"end", old[len(old)-100:], -1 << 40, []Range{{int64(len(old)) - 100 - matchPadding, 100 + 2*matchPadding}}},
		{"two parts", slices.Concat(old[50_000:50_100], testimages.Random(3, 300), old[7000:7200]), 0,
			[]Range{{50_000 - matchPadding, 100 + 2*matchPadding}, {7000 - matchPadding, 200 + 2*matchPadding}}},
		{"none", testimages.Random(4, 10_000), 0, nil},
		{"short", old[100:110], 1 << 40, nil},
		{"zeros", make([]byte, 10_000), 1 << 40, nil},
	} {
		if diff := cmp.Diff(tc.want, a.matches(w, tc.chunk, tc.near)); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", tc.name, diff)
		}
	}
	if w.err != nil {
		t.Error(w.err)
	}
}

// imageOf cuts and hashes an image.
func imageOf(t testing.TB, data []byte) Image {
	t.Helper()
	x, _, err := scan.Image(t.Context(), chunker.FromReader(bytes.NewReader(data)), scan.Options{
		Algorithm: blob.SHA512_256, Params: chunker.Params{Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	return Image{x, bytes.NewReader(data)}
}

// change returns a copy of data with small edits, an insertion and a new part.
func change(data []byte) []byte {
	out := slices.Concat(data[:100_000], []byte("inserted"), data[100_000:300_000], testimages.Random(77, 20_000), data[310_000:])
	for at := 5000; at < len(out); at += 9000 {
		copy(out[at:], "edited")
	}
	return out
}

// apply decodes a delta's file with the old image, and returns the chunks it holds, by number.
func apply(t testing.TB, file []byte, old []byte, x *blob.Index) map[int][]byte {
	t.Helper()
	d, err := Decode(bytes.NewReader(file), x)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(file)) != d.FileSize() {
		t.Errorf("a file of %d bytes, want %d", len(file), d.FileSize())
	}
	z := NewDecoder()
	defer z.Close()
	chunks := map[int][]byte{}
	for _, r := range d.All() {
		var reference []byte
		for _, g := range r.Ranges {
			reference = append(reference, old[g.Offset:g.End()]...)
		}
		chunk := make([]byte, x.At(r.Chunk).Size)
		if err := z.Decode(chunk, reference, file[r.Offset:r.Offset+r.Size]); err != nil {
			t.Fatal(err)
		}
		if x.Algorithm().Sum(chunk) != x.At(r.Chunk).Digest {
			t.Errorf("chunk %d decodes to other bytes", r.Chunk)
		}
		chunks[r.Chunk] = chunk
	}
	return chunks
}

func makeFile(t testing.TB, from, to Image, workers int) ([]byte, *Made) {
	t.Helper()
	var payloads bytes.Buffer
	var last, all int64
	m, err := Make(t.Context(), from, to, &payloads, Options{Workers: workers, Progress: func(done, n int64) {
		if done < last || done > n {
			t.Errorf("progress of %d after %d, of %d", done, last, n)
		}
		last, all = done, n
	}})
	if err != nil {
		t.Fatal(err)
	}
	if last != all {
		t.Errorf("the last progress is %d of %d", last, all)
	}
	head, err := Encode(m.Head, m.Rows)
	if err != nil {
		t.Fatal(err)
	}
	return append(head, payloads.Bytes()...), m
}

// TestMake: a delta has most chunks that an edited image does not share, takes little, and is the same for any number
// of workers.
func TestMake(t *testing.T) {
	old := testimages.Random(5, 1<<20)
	from, to := imageOf(t, old), imageOf(t, change(old))
	file, m := makeFile(t, from, to, 1)
	chunks := apply(t, file, old, to.Index)
	wanted := findPlaces(from.Index, to.Index).wanted
	var plain, stored int64
	for _, i := range wanted {
		plain += to.Index.At(i).Size
	}
	for _, r := range m.Rows {
		stored += r.Stored
	}
	if len(chunks) < len(wanted)*8/10 || len(wanted) < 50 {
		t.Errorf("the delta has %d of %d new chunks", len(chunks), len(wanted))
	}
	if int64(len(file)) > plain/5 || m.Payloads > stored/5 {
		t.Errorf("a file of %d bytes for %d plain and %d stored bytes", len(file), plain, stored)
	}
	for _, workers := range []int{2, 7} {
		if again, _ := makeFile(t, from, to, workers); !bytes.Equal(again, file) {
			t.Errorf("%d workers make another file", workers)
		}
	}
}

func TestMakeNothing(t *testing.T) {
	old := testimages.Random(5, 100_000)
	for name, pair := range map[string][2]Image{
		"equal":     {imageOf(t, old), imageOf(t, old)},
		"unrelated": {imageOf(t, old), imageOf(t, testimages.Random(6, 100_000))},
		"empty old": {imageOf(t, nil), imageOf(t, old)},
		"empty new": {imageOf(t, old), imageOf(t, nil)},
		"zeros":     {imageOf(t, old), imageOf(t, make([]byte, 100_000))},
	} {
		if file, m := makeFile(t, pair[0], pair[1], 2); len(m.Rows) > 0 || len(file) > 200 {
			t.Errorf("%s: %d rows in %d bytes, want none", name, len(m.Rows), len(file))
		}
	}
}

// failingAt fails to read from an offset on.
type failingAt struct {
	*bytes.Reader
	at int64
}

var errBroken = errors.New("broken disk")

func (f failingAt) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.at {
		return 0, errBroken
	}
	return f.Reader.ReadAt(p, off)
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestMakeFails(t *testing.T) {
	old := testimages.Random(5, 1<<20)
	from, to := imageOf(t, old), imageOf(t, change(old))
	broken := func(i Image) Image {
		return Image{i.Index, failingAt{i.Data.(*bytes.Reader), 500_000}}
	}
	other := Image{to.Index, bytes.NewReader(testimages.Random(9, 2<<20))}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx      context.Context
		from, to Image
		w        failingWriter
		want     error
	}{
		"old image": {t.Context(), broken(from), to, failingWriter{}, errBroken},
		"new image": {t.Context(), from, broken(to), failingWriter{}, errBroken},
		"writer":    {t.Context(), from, to, failingWriter{errBroken}, errBroken},
		"cancelled": {cancelled, from, to, failingWriter{}, context.Canceled},
	} {
		if m, err := Make(tc.ctx, tc.from, tc.to, tc.w, Options{Workers: 3}); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, %v, want %v", name, m, err, tc.want)
		}
	}
	if m, err := Make(t.Context(), from, other, &bytes.Buffer{}, Options{Workers: 1}); err == nil {
		t.Errorf("an image with other bytes than its index: %v", m)
	}
}
