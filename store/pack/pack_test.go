package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/internal/columns"
	"cairn/internal/test/mem"
	"cairn/store/chunkfile"
	"cairn/store/storetest"
)

// testImage is an image whose chunk files are known.
type testImage struct {
	index *blob.Index
	files map[blob.Digest][]byte
	plain map[blob.Digest][]byte
}

// newImage returns an image of n chunks of 1 to 3 KiB that hardly compress, and a repeated one of zeros.
func newImage(t testing.TB, a blob.Algorithm, n int) testImage {
	t.Helper()
	b, err := blob.NewBuilder(a, blob.Params{Min: 1, Avg: 2 << 10, Max: 4 << 10})
	if err != nil {
		t.Fatal(err)
	}
	encoder, err := chunkfile.NewEncoder(0)
	if err != nil {
		t.Fatal(err)
	}
	image := testImage{files: map[blob.Digest][]byte{}, plain: map[blob.Digest][]byte{}}
	add := func(data []byte) {
		d := a.Sum(data)
		if _, err := b.Add(int64(len(data)), d); err != nil {
			t.Fatal(err)
		}
		file, err := encoder.Encode(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		image.files[d], image.plain[d] = bytes.Clone(file), data
	}
	for i := range n {
		add(storetest.Bytes(uint64(i), 1<<10+i*37%(2<<10)))
		if i%10 == 3 {
			add(make([]byte, 4<<10))
		}
	}
	image.index = b.Index()
	return image
}

// zeroRandom makes the names of packs reproducible.
type zeroRandom struct{}

func (zeroRandom) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func newWriter(t testing.TB, to Bucket, a blob.Algorithm, size int64) *Writer {
	t.Helper()
	w, err := NewWriter(to, a, MinSize)
	if err != nil {
		t.Fatal(err)
	}
	w.size, w.random = size, zeroRandom{}
	return w
}

// writePacks writes the chunks of an image for which use returns true into packs, and returns their map.
func writePacks(t testing.TB, to Bucket, image testImage, size int64, use func(chunk int) bool) *Map {
	t.Helper()
	w := newWriter(t, to, image.index.Algorithm(), size)
	for i, c := range image.index.All() {
		if !use(i) {
			continue
		}
		if err := w.Add(context.Background(), c.Digest, image.files[c.Digest]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	m, err := NewMap(image.index, w.Place)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func all(int) bool { return true }

func compressTable(t testing.TB, table []byte) []byte {
	t.Helper()
	b, err := columns.Compress(table)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func encodeMap(t testing.TB, m *Map) []byte {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestWriter: packs have the chunks in order, each once, and are no larger than asked for.
func TestWriter(t *testing.T) {
	image := newImage(t, blob.SHA256, 50)
	b := new(mem.Bucket)
	const size = 20 << 10
	m := writePacks(t, b, image, size, all)
	var got []blob.Digest
	for _, p := range m.Packs() {
		file, err := b.Read(t.Context(), p.Name(), nil, MaxFile)
		if err != nil {
			t.Fatal(err)
		}
		a, entries, err := Decode(p.ID, file)
		if err != nil || a != blob.SHA256 || int64(len(file)) != p.Size || p.Size > size {
			t.Errorf("a pack of %d bytes for %d, %v: %v", len(file), p.Size, a, err)
		}
		for _, e := range entries {
			got = append(got, e.Digest)
			at, ok := m.Find(e.Digest)
			if !ok || at != (Place{p, e.Offset, e.Size}) || !bytes.Equal(file[e.Offset:][:e.Size], image.files[e.Digest]) {
				t.Errorf("chunk %v lies at %+v, %v, want %+v", e.Digest, at, ok, e)
			}
		}
	}
	var want []blob.Digest
	table := blob.NewTable(image.index)
	for i, c := range image.index.All() {
		if table.Find(c.Digest) == i {
			want = append(want, c.Digest)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("chunks in packs (-want +got):\n%s", diff)
	}
	if n := len(m.Packs()); n < 4 || n > 7 {
		t.Errorf("%d packs", n)
	}
}

// TestWriterGroups: Close separates the packs of two groups, and a pack in progress has no places.
func TestWriterGroups(t *testing.T) {
	image := newImage(t, blob.SHA512_256, 4)
	w := newWriter(t, new(mem.Bucket), blob.SHA512_256, 1<<20)
	first, second := image.index.At(0).Digest, image.index.At(1).Digest
	for _, d := range []blob.Digest{first, second} {
		if err := w.Add(t.Context(), d, image.files[d]); err != nil {
			t.Fatal(err)
		}
		if _, ok := w.Place(d); ok {
			t.Error("a chunk of an open pack has a place")
		}
		if err := errors.Join(w.Close(t.Context()), w.Close(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	a, _ := w.Place(first)
	b, _ := w.Place(second)
	if a.Pack == b.Pack || len(w.Packs()) != 2 {
		t.Errorf("two groups are in the packs %v", w.Packs())
	}
	if _, ok := w.Place(blob.Digest{}); ok {
		t.Error("an unknown chunk has a place")
	}
}

// TestWriterFails: a pack that could not be written is written by the next Close.
func TestWriterFails(t *testing.T) {
	image := newImage(t, blob.SHA256, 3)
	b := &failingBucket{failures: 1}
	w := newWriter(t, b, blob.SHA256, 1<<20)
	d := image.index.At(0).Digest
	if err := w.Add(t.Context(), d, image.files[d]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(t.Context()); !errors.Is(err, errBucket) {
		t.Errorf("Close = %v, want %v", err, errBucket)
	}
	if err := w.Close(t.Context()); err != nil {
		t.Error(err)
	}
	at, ok := w.Place(d)
	file, err := b.Read(t.Context(), at.Pack.Name(), nil, MaxFile)
	if !ok || err != nil || !bytes.Equal(file[at.Offset:][:at.Size], image.files[d]) {
		t.Errorf("the pack is not written: %v, %v", ok, err)
	}
	for _, file := range [][]byte{nil, make([]byte, chunkfile.Limit(blob.MaxChunkSize)+1)} {
		if err := w.Add(t.Context(), blob.Digest{1}, file); err == nil {
			t.Errorf("a chunk file of %d bytes is taken", len(file))
		}
	}
	for _, size := range []int64{MinSize - 1, MaxSize + 1} {
		if _, err := NewWriter(b, blob.SHA256, size); err == nil {
			t.Errorf("packs of %d bytes are taken", size)
		}
	}
}

var errBucket = errors.New("it fails")

type failingBucket struct {
	mem.Bucket
	failures int
}

func (b *failingBucket) Write(ctx context.Context, name string, data []byte) error {
	if b.failures--; b.failures >= 0 {
		return errBucket
	}
	return b.Bucket.Write(ctx, name, data)
}

// TestNames: two packs of the same chunks have different names.
func TestNames(t *testing.T) {
	image := newImage(t, blob.SHA256, 1)
	names := map[string]bool{}
	for range 2 {
		w, err := NewWriter(new(mem.Bucket), blob.SHA256, DefaultSize)
		if err != nil {
			t.Fatal(err)
		}
		d := image.index.At(0).Digest
		if err := errors.Join(w.Add(t.Context(), d, image.files[d]), w.Close(t.Context())); err != nil {
			t.Fatal(err)
		}
		names[w.Packs()[0].Name()] = true
	}
	if len(names) != 2 {
		t.Errorf("two packs are named %v", names)
	}
}

func TestDecodeRefuses(t *testing.T) {
	image := newImage(t, blob.SHA256, 3)
	b := new(mem.Bucket)
	p := writePacks(t, b, image, 1<<20, all).Packs()[0]
	good, err := b.Read(t.Context(), p.Name(), nil, MaxFile)
	if err != nil {
		t.Fatal(err)
	}
	change := func(do func(b []byte) []byte) []byte { return do(bytes.Clone(good)) }
	set := func(at int, v byte) []byte {
		return change(func(b []byte) []byte { b[(at+len(b))%len(b)] = v; return b })
	}
	for name, file := range map[string][]byte{
		"empty":         nil,
		"short":         good[:headSize+footerSize-1],
		"magic":         set(0, 'x'),
		"version":       set(8, 2),
		"algorithm":     set(12, 2),
		"no chunks":     set(-8, 0),
		"more chunks":   set(-8, 5),
		"fewer chunks":  set(-8, 2),
		"many chunks":   set(-1, 1),
		"empty chunk":   change(func(b []byte) []byte { clear(b[len(b)-footerSize-4 : len(b)-footerSize]); return b }),
		"large chunk":   set(-footerSize-1, 1),
		"byte too many": change(func(b []byte) []byte { return append(b[:16:16], b[15:]...) }),
		"trailing":      append(bytes.Clone(good), 0),
	} {
		if _, entries, err := Decode(sha256.Sum256(file), file); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v, want ErrInvalid", name, entries, err)
		}
	}
	if _, _, err := Decode(blob.Digest{}, good); !errors.Is(err, ErrInvalid) {
		t.Errorf("another name: %v, want ErrInvalid", err)
	}
	if _, entries, err := Decode(p.ID, good); err != nil || len(entries) != 3 {
		t.Errorf("the pack itself: %d chunks, %v", len(entries), err)
	}
}

// TestMap: a map of packs of several writers, with chunks in no pack, decodes to the same places.
func TestMap(t *testing.T) {
	for _, a := range []blob.Algorithm{blob.SHA512_256, blob.SHA256} {
		image := newImage(t, a, 60)
		b := new(mem.Bucket)
		odd := writePacks(t, b, image, 10<<10, func(i int) bool { return i%2 == 1 })
		third := writePacks(t, b, image, 15<<10, func(i int) bool { return i%3 == 0 })
		mixed, err := NewMap(image.index, func(d blob.Digest) (Place, bool) {
			if at, ok := odd.Find(d); ok {
				return at, true
			}
			return third.Find(d)
		})
		if err != nil {
			t.Fatal(err)
		}
		none := writePacks(t, b, image, 10<<10, func(int) bool { return false })
		for _, m := range []*Map{odd, third, mixed, none} {
			file := encodeMap(t, m)
			back, err := DecodeMap(iotest.OneByteReader(bytes.NewReader(file)), image.index)
			if err != nil {
				t.Fatal(err)
			}
			checkSameMap(t, m, back)
			if int64(len(file)) > MaxMapSize(image.index.Len()) {
				t.Errorf("a map of %d bytes", len(file))
			}
		}
	}
}

func checkSameMap(t *testing.T, m, back *Map) {
	t.Helper()
	for _, c := range m.Index().All() {
		at, ok := back.Find(c.Digest)
		if want, is := m.Find(c.Digest); at != want || ok != is {
			t.Fatalf("chunk %v lies at %+v, %v, want %+v, %v", c.Digest, at, ok, want, is)
		}
	}
	if diff := cmp.Diff(m.Packs(), back.Packs()); diff != "" {
		t.Fatalf("packs (-want +got):\n%s", diff)
	}
}

// TestMapOfEmptyImage: the map of an image without chunks is valid.
func TestMapOfEmptyImage(t *testing.T) {
	image := newImage(t, blob.SHA256, 0)
	if _, err := DecodeMap(bytes.NewReader(encodeMap(t, writePacks(t, nil, image, 10<<10, all))), image.index); err != nil {
		t.Error(err)
	}
}

// TestMapIsSmall: a usual map takes few bytes for each chunk.
func TestMapIsSmall(t *testing.T) {
	image := newImage(t, blob.SHA256, 2000)
	m := writePacks(t, new(mem.Bucket), image, 1<<20, all)
	if n, limit := len(encodeMap(t, m)), 3*image.index.Len(); n > limit {
		t.Errorf("the map of %d chunks has %d bytes, want at most %d", image.index.Len(), n, limit)
	}
}

func TestNewMapRefuses(t *testing.T) {
	image := newImage(t, blob.SHA256, 2)
	p := Pack{blob.Digest{1}, 10_000}
	for name, at := range map[string]Place{
		"in the head":  {p, headSize - 1, 100},
		"in the table": {p, 9900, 100},
		"empty":        {p, 100, 0},
		"too large":    {Pack{p.ID, 1 << 20}, 100, chunkfile.Limit(4<<10) + 1},
		"large pack":   {Pack{p.ID, MaxFile + 1}, 100, 100},
		"negative":     {p, -1, 100},
		"no pack":      {Pack{}, 100, 100},
	} {
		if _, err := NewMap(image.index, func(blob.Digest) (Place, bool) { return at, true }); err == nil {
			t.Errorf("%s: it is taken", name)
		}
	}
	size := int64(10_000)
	_, err := NewMap(image.index, func(blob.Digest) (Place, bool) {
		size++
		return Place{Pack{blob.Digest{1}, size}, 100, 100}, true
	})
	if err == nil {
		t.Error("a pack of two sizes is taken")
	}
}

// mapOf returns a map's file with the given table.
func mapOf(x *blob.Index, table []byte) []byte {
	digest := x.Digest()
	b := binary.LittleEndian.AppendUint32([]byte(mapMagic), version)
	b = binary.LittleEndian.AppendUint32(b, uint32(x.Algorithm()))
	b = binary.LittleEndian.AppendUint64(append(b, digest[:]...), uint64(len(table)))
	return withSum(append(b, table...))
}

func withSum(b []byte) []byte {
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func rehash(b []byte) []byte { return withSum(bytes.Clone(b[:len(b)-sha256.Size])) }

func TestDecodeMapRefuses(t *testing.T) {
	image := newImage(t, blob.SHA256, 3)
	x := image.index
	good := encodeMap(t, writePacks(t, new(mem.Bucket), image, 1<<20, all))
	set := func(at int, v byte) []byte {
		b := bytes.Clone(good)
		b[at] = v
		return rehash(b)
	}
	damaged := bytes.Clone(good)
	damaged[len(damaged)-1]++
	id := strings.Repeat("a", 32)
	table := func(parts ...any) []byte {
		var b []byte
		for _, p := range parts {
			switch p := p.(type) {
			case int:
				b = binary.AppendUvarint(b, uint64(p))
			case string:
				b = append(b, p...)
			}
		}
		return mapOf(x, compressTable(t, b))
	}
	for name, b := range map[string][]byte{
		"empty":         nil,
		"short":         good[:mapHead-1],
		"magic":         set(0, 'x'),
		"version":       set(8, 2),
		"algorithm":     set(12, 0),
		"other image":   set(16, good[16]+1),
		"longer table":  set(48, good[48]+1),
		"shorter table": set(48, good[48]-1),
		"huge table":    set(54, 1),
		"checksum":      damaged,
		"trailing":      append(bytes.Clone(good), 0),
		"no frame":      mapOf(x, []byte("table")),
		"packs":         table(4),
		"same packs":    table(2, id+id, 9000, 9000, 2, 2, 0, 0, 0, 0, 0, 9, 9, 9),
		"unused pack":   table(1, id, 9000, 0, 0, 0),
		"small pack":    table(1, id, 76, 2, 1, 0, 0, 1),
		"number":        table(1, id, 9000, 4, 0, 0, 0, 9),
		"negative":      table(1, id, 9000, 1, 0, 0, 0, 9),
		"offset":        table(1, id, 9000, 2, 1, 0, 1, 9),
		"size":          table(1, id, 9000, 2, 1, 0, 0, 0),
		"end":           table(1, id, 9000, 2, 1, 0, 2*(9000-76-8), 9),
		"more columns":  table(1, id, 9000, 2, 1, 0, 0, 9, 0),
		"fewer columns": table(1, id, 9000, 2, 1, 0, 0),
	} {
		if m, err := DecodeMap(bytes.NewReader(b), x); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v, want ErrInvalid", name, m, err)
		}
	}
	if _, err := DecodeMap(bytes.NewReader(table(1, id, 9000, 2, 1, 0, 0, 9)), x); err != nil {
		t.Errorf("a table without a defect: %v", err)
	}
	broken := errors.New("broken")
	for _, n := range []int{0, mapHead, len(good) - 1} {
		in := io.MultiReader(bytes.NewReader(good[:n]), iotest.ErrReader(broken))
		if _, err := DecodeMap(in, x); !errors.Is(err, broken) || errors.Is(err, ErrInvalid) {
			t.Errorf("a read that fails after %d bytes: %v, want %v", n, err, broken)
		}
	}
}

// TestGolden: the formats do not change.
func TestGolden(t *testing.T) {
	b := new(mem.Bucket)
	w := newWriter(t, b, blob.SHA256, MinSize)
	builder, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 1, Avg: 1, Max: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"x", "y", "x", "z"} {
		d := blob.SHA256.Sum([]byte(text))
		if _, err := builder.Add(1, d); err != nil {
			t.Fatal(err)
		}
		if text == "y" {
			continue
		}
		// a zstd frame of one raw block
		if err := w.Add(t.Context(), d, append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 1, 9, 0, 0}, text...)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := w.Packs()[0]
	file, err := b.Read(t.Context(), p.Name(), nil, MaxFile)
	if err != nil {
		t.Fatal(err)
	}
	m, err := NewMap(builder.Index(), w.Place)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"pack":         {file, goldenPack},
		"table of map": {m.appendTable(nil), goldenTable},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s = %s, want %s", name, got, c.want)
		}
	}
	if _, err := DecodeMap(bytes.NewReader(encodeMap(t, m)), builder.Index()); err != nil {
		t.Error(err)
	}
}

const (
	goldenPack = "636169726e70636b0100000001000000" + // magic, version, SHA-256
		"28b52ffd20010900007828b52ffd20010900007a" + // the files of x and z
		"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a48810a000000" +
		"594e519ae499312b29433b7dd8a97ff068defcba9755b6d5d00e84c524d67b060a000000" +
		"000000000000000000000000000000000200000000000000"
	goldenTable = "01" + "b23c003ac70f2f164cf3dd6773484e8924a841426eaff459f10bb17c93203be0" + "8401" + // one pack of 132 bytes
		"020102" + // in the pack, in none, in the pack
		"0000" + "0a0a" // at the beginning, after the one before; 10 bytes each
)

// FuzzDecode decodes packs. What decodes must be the same bytes when it is written again.
func FuzzDecode(f *testing.F) {
	image := newImage(f, blob.SHA256, 3)
	b := new(mem.Bucket)
	for _, p := range writePacks(f, b, image, 4<<10, all).Packs() {
		file, err := b.Read(f.Context(), p.Name(), nil, MaxFile)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file)
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		a, entries, err := Decode(sha256.Sum256(file), file)
		if err != nil {
			return
		}
		back := appendHead(nil, a)
		var table []byte
		for _, e := range entries {
			back = append(back, file[e.Offset:][:e.Size]...)
			table = binary.LittleEndian.AppendUint32(append(table, e.Digest[:]...), uint32(e.Size))
		}
		back = append(append(back, table...), file[len(back)+len(table):]...)
		if !bytes.Equal(back, file) {
			t.Fatalf("%x decodes to what is written as %x", file, back)
		}
	})
}

// FuzzDecodeMap decodes maps. What decodes must encode to a map with the same places.
func FuzzDecodeMap(f *testing.F) {
	image := newImage(f, blob.SHA256, 6)
	m := writePacks(f, new(mem.Bucket), image, 4<<10, func(i int) bool { return i != 2 })
	f.Add(encodeMap(f, m), true)
	f.Add(m.appendTable(nil), false)
	f.Fuzz(func(t *testing.T, data []byte, file bool) {
		if !file {
			data = mapOf(image.index, compressTable(t, data))
		} else if len(data) > sha256.Size {
			data = rehash(data)
		}
		m, err := DecodeMap(bytes.NewReader(data), image.index)
		if err != nil {
			return
		}
		back, err := DecodeMap(bytes.NewReader(encodeMap(t, m)), image.index)
		if err != nil {
			t.Fatal(err)
		}
		checkSameMap(t, m, back)
	})
}

// TestJoinSpans: wants are joined to spans by their places.
func TestJoinSpans(t *testing.T) {
	a, b := Pack{blob.Digest{1}, 64 << 20}, Pack{blob.Digest{2}, 64 << 20}
	at := func(p Pack, offset, size int64) located { return located{at: Place{p, offset, size}} }
	for name, c := range map[string]struct {
		wants []located
		want  []int // wants of each span
	}{
		"none":          {nil, nil},
		"neighbours":    {[]located{at(a, 200, 50), at(a, 100, 100)}, []int{2}},
		"gap":           {[]located{at(a, 100, 100), at(a, 200+maxGap, 5)}, []int{2}},
		"large gap":     {[]located{at(a, 100, 100), at(a, 201+maxGap, 5)}, []int{1, 1}},
		"two packs":     {[]located{at(b, 200, 100), at(a, 100, 100)}, []int{1, 1}},
		"the same":      {[]located{at(a, 100, 100), at(a, 200, 9), at(a, 100, 100)}, []int{3}},
		"overlap":       {[]located{at(a, 100, 100), at(a, 199, 9)}, []int{1, 1}},
		"overlap start": {[]located{at(a, 100, 100), at(a, 100, 9)}, []int{1, 1}},
		"most":          {[]located{at(a, 100, maxSpan-5), at(a, 100+maxSpan-5, 5)}, []int{2}},
		"more":          {[]located{at(a, 100, maxSpan-5), at(a, 100+maxSpan-5, 6)}, []int{1, 1}},
		"one too large": {[]located{at(a, 100, 2*maxSpan), at(a, 100+2*maxSpan, 6)}, []int{1, 1}},
	} {
		var got []int
		for _, s := range joinSpans(c.wants) {
			got = append(got, len(s.wants))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: wants of each span (-want +got):\n%s", name, diff)
		}
	}
}
