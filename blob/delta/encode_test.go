package delta

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

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

func TestAddMatches(t *testing.T) {
	const size, m = 1 << 40, matchPadding
	var far, large []Range
	for i := range int64(200) {
		far = append(far, Range{(i + 1) << 30, 1000 + i})
		large = append(large, Range{(i + 1) << 30, 100_000 + i})
	}
	for _, tc := range []struct {
		name                string
		list, matches, want []Range
	}{
		{"none", nil, nil, nil},
		{"one", nil, []Range{{10_000, 200}}, []Range{{10_000 - m, 200 + 2*m}}},
		{"short", nil, []Range{{10_000, leastMatched - 1}}, nil},
		{"two short ones together", nil, []Range{{10_000, 100}, {10_300, 100}}, []Range{{10_000 - m, 400 + 2*m}}},
		{"at the start", nil, []Range{{10, 200}}, []Range{{0, 210 + m}}},
		{"at the end", nil, []Range{{size - 200, 200}}, []Range{{size - 200 - m, 200 + m}}},
		{"inside", []Range{{0, 1000}}, []Range{{500, 500}}, []Range{{0, 1000}}},
		{"across", []Range{{0, 1000}}, []Range{{500, 501}}, []Range{{0, 1001 + m}}},
		{"before", []Range{{50_000, 1000}}, []Range{{10_000, 200}}, []Range{{10_000 - m, 200 + 2*m}, {50_000, 1000}}},
	} {
		got := addMatches(slices.Clone(tc.list), slices.Clone(tc.matches), size)
		if diff := cmp.Diff(tc.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: (-want +got):\n%s", tc.name, diff)
		}
	}
	near := []Range{{0, 100}, {1000, 100}}
	for name, list := range map[string][]Range{"far": far, "large": large} {
		got := addMatches(slices.Clone(near), slices.Clone(list), size)
		if len(got) > len(near)+mostMatched || sizeOf(got) > MaxReference || len(got) < 20 || !slices.Equal(got[:2], near) {
			t.Errorf("%s: %d ranges of %d bytes, the first are %v", name, len(got), sizeOf(got), got[:2])
		}
		if last := got[len(got)-1]; last.Offset+m != list[199].Offset {
			t.Errorf("%s: the longest match is not kept, but %v", name, last)
		}
	}
}

// TestRangesAreBounded: the place between two neighbours is within the limits of a row, however large the chunk is.
func TestRangesAreBounded(t *testing.T) {
	for _, size := range []int64{1, 100_000, 1 << 20, MaxChunk} {
		for _, b := range []between{
			{-1, -1}, {1 << 30, -1}, {-1, 1 << 30}, {1 << 30, 1<<30 + size}, {1 << 30, 1<<30 + 4*size}, {1 << 30, 1 << 28},
		} {
			list := b.ranges(1<<29, size, 1<<40)
			if n := sizeOf(list); n > MaxReference || n < min(size, MaxReference) || len(list) > 2 {
				t.Errorf("%+v: %d bytes in %d ranges for a chunk of %d bytes", b, n, len(list), size)
			}
		}
	}
}

// TestMatches: parts of a chunk are found in an old image, across the blocks of a window and at its ends.
func TestMatches(t *testing.T) {
	old := slices.Concat(testimages.Random(1, 12*blockSize), make([]byte, 1000), testimages.Random(2, 5000))
	a, err := newAnchors(t.Context(), bytes.NewReader(old), []Range{{0, int64(len(old))}}, maxAnchors)
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
		{"all", old, 0, []Range{{0, int64(len(old))}}},
		{"shifted", append([]byte("new text"), old[100:2*blockSize+7]...), 0, []Range{{100, 2*blockSize - 93}}},
		{"backwards", slices.Concat([]byte("x"), old[blockSize-21:blockSize+50]), 1 << 40, []Range{{blockSize - 21, 71}}},
		{"end", old[len(old)-100:], -1 << 40, []Range{{int64(len(old)) - 100, 100}}},
		{"two parts", slices.Concat(old[50_000:50_100], testimages.Random(3, 300), old[7000:7200]), 0,
			[]Range{{50_000, 100}, {7000, 200}}},
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

// TestAnchorsAreBounded: anchors of more bytes than fit are further apart, and still find long runs.
func TestAnchorsAreBounded(t *testing.T) {
	old := testimages.Random(1, 1<<20)
	ranges := []Range{{1000, 300_000}, {400_001, 500_000}}
	for _, most := range []int64{1000, 100_000} {
		a, err := newAnchors(t.Context(), bytes.NewReader(old), ranges, most)
		if err != nil {
			t.Fatal(err)
		}
		if n := int64(len(a.slots)); n > most*4/3+4 || n < 50_000*4/3 && n < most/2 {
			t.Errorf("%d slots, at most %d anchors", n, most)
		}
		w := &window{image: bytes.NewReader(old), size: int64(len(old))}
		for _, at := range []int64{1000, 290_000, 400_001, 500_000, 890_000} {
			n := a.step + anchorSize - 1
			want := []Range{{at, n}}
			if got := a.matches(w, old[at:at+n], -1<<40); !slices.Equal(got, want) {
				t.Errorf("step %d: matches of %d bytes at %d are %v", a.step, n, at, got)
			}
		}
		if got := a.matches(w, old[350_000:350_100], -1<<40); len(got) > 0 {
			t.Errorf("step %d: matches outside the ranges are %v", a.step, got)
		}
	}
}

// TestRepeats: many equal places have a limited number of anchors.
func TestRepeats(t *testing.T) {
	old := bytes.Repeat(testimages.Random(1, 64), 10_000)
	a, err := newAnchors(t.Context(), bytes.NewReader(old), []Range{{0, int64(len(old))}}, maxAnchors)
	if err != nil {
		t.Fatal(err)
	}
	used := 0
	for _, s := range a.slots {
		if s.place > 0 {
			used++
		}
	}
	if used != 4*maxPlaces {
		t.Errorf("%d anchors of 4 different values, want %d", used, 4*maxPlaces)
	}
}

func TestVanished(t *testing.T) {
	b := must(blob.NewBuilder(blob.SHA256, blob.Params{Min: 10, Avg: 100, Max: 1 << 20}))
	for i := range byte(10) {
		must(b.Add(100_000, blob.Digest{i}))
	}
	must(b.Add(100_000, blob.SHA256.SumZeros(100_000)))
	c := must(blob.NewBuilder(blob.SHA256, blob.Params{Min: 10, Avg: 100, Max: 1 << 20}))
	for _, i := range []byte{9, 1, 2, 4, 7, 6} {
		must(c.Add(100_000, blob.Digest{i}))
	}
	want := []Range{{0, 100_000 + padding}, {300_000 - padding, 100_000 + 2*padding},
		{500_000 - padding, 100_000 + 2*padding}, {800_000 - padding, 100_000 + 2*padding}}
	if diff := cmp.Diff(want, findPlaces(b.Index(), c.Index()).vanished()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
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
	old := testimages.Random(5, 400_000)
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
	if len(chunks) < len(wanted)*8/10 || len(wanted) < 30 {
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

// countingReader counts the bytes that are read.
type countingReader struct {
	io.ReaderAt
	bytes int
}

func (r *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.ReaderAt.ReadAt(p, off)
	r.bytes += n
	return n, err
}

// TestMakeSample: a sample of the chunks is evenly spread, reads a part of the old image, and its chunks take about as
// much as in the whole delta.
func TestMakeSample(t *testing.T) {
	if testing.Short() {
		t.Skip("encodes many chunks")
	}
	old := testimages.Random(5, 1<<20)
	from, to := imageOf(t, old), imageOf(t, change(old))
	whole, err := Make(t.Context(), from, to, io.Discard, Options{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 8, 1000} {
		r := &countingReader{ReaderAt: from.Data}
		m, err := Make(t.Context(), Image{from.Index, r}, to, io.Discard, Options{Workers: 1, Sample: n})
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Tried) != min(n, len(whole.Tried)) || len(m.Rows) < len(m.Tried)*8/10 {
			t.Errorf("a sample of %d: %d of %d chunks were encoded, which gave %d rows", n, len(m.Tried), len(whole.Tried), len(m.Rows))
		}
		if n == 8 && (m.Tried[0] != whole.Tried[0] || m.Tried[7] < whole.Tried[len(whole.Tried)*3/4]) {
			t.Errorf("a sample of 8 chunks is %v of %v", m.Tried, whole.Tried)
		}
		if n == 1 && r.bytes > len(old)/2 {
			t.Errorf("for one chunk %d bytes of the old image were read", r.bytes)
		}
		sizes := map[int]int64{}
		for _, r := range whole.Rows {
			sizes[r.Chunk] = r.Size
		}
		for _, r := range m.Rows {
			if s := sizes[r.Chunk]; r.Size < s*9/10 || r.Size > 2*s+1000 {
				t.Errorf("a sample of %d: chunk %d takes %d bytes, and %d in the whole delta", n, r.Chunk, r.Size, s)
			}
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
	old := testimages.Random(5, 400_000)
	from, to := imageOf(t, old), imageOf(t, change(old))
	broken := func(i Image) Image {
		return Image{i.Index, failingAt{i.Data.(*bytes.Reader), 200_000}}
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
