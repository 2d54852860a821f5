package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"cairn/blob"
)

// indexOf returns the index of an image of n chunks of 1000 bytes.
func indexOf(t testing.TB, n int) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 1000, Avg: 1000, Max: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := b.Add(1000, blob.Digest{1, byte(i), byte(i >> 8)}); err != nil {
			t.Fatal(err)
		}
	}
	return b.Index()
}

func headFor(x *blob.Index) Head {
	return Head{Algorithm: x.Algorithm(), Old: blob.Digest{7}, New: x.Digest(), OldSize: 10_000_000}
}

var sampleRows = []Row{
	{Chunk: 0, Size: 100, Stored: 300, Ranges: []Range{{4096, 8192}, {0, 100}}},
	{Chunk: 3, Size: 1, Stored: 2},
	{Chunk: 4, Kind: 9, Size: MaxPayload, Stored: maxStored, Ranges: []Range{{10_000_000 - MaxReference, MaxReference}}},
}

func encodeRows(t testing.TB, h Head, rows ...Row) []byte {
	t.Helper()
	b, err := Encode(h, rows)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEncodeDecode(t *testing.T) {
	x := indexOf(t, 5)
	for _, rows := range [][]Row{nil, sampleRows} {
		file := encodeRows(t, headFor(x), rows...)
		r := bytes.NewReader(append(file, "payloads"...))
		d, err := Decode(r, x)
		if err != nil {
			t.Fatal(err)
		}
		if r.Len() != len("payloads") {
			t.Errorf("%d bytes are left, want the payloads only", r.Len())
		}
		var got []Row
		for _, row := range d.All() {
			got = append(got, row)
		}
		want, at := []Row(nil), int64(len(file))
		for _, row := range rows {
			row.Offset = at
			if row.Ranges == nil {
				row.Ranges = []Range{}
			}
			at += row.Size
			want = append(want, row)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("rows (-want +got):\n%s", diff)
		}
		end, err := TableEnd(file[:FirstBytes])
		if d.Head != headFor(x) || d.HeadSize() != int64(len(file)) || d.FileSize() != at || end != int64(len(file)) || err != nil {
			t.Errorf("head %+v, sizes %d, %d, table ends at %d, %v", d.Head, d.HeadSize(), d.FileSize(), end, err)
		}
	}
}

// rehash sets the checksum of a file of head and table.
func rehash(file []byte) []byte {
	body := file[:len(file)-sha256.Size]
	sum := sha256.Sum256(body)
	return append(bytes.Clone(body), sum[:]...)
}

// pack returns head and table of a file whose decompressed table has these bytes.
func pack(h Head, plain []byte) []byte {
	z, _ := zstd.NewWriter(nil)
	table := z.EncodeAll(plain, nil)
	return rehash(append(append(appendHead(nil, h, len(table)), table...), make([]byte, sha256.Size)...))
}

func TestDecodeRefuses(t *testing.T) {
	x := indexOf(t, 5)
	h := headFor(x)
	with := func(change func(r *Row)) []byte {
		r := Row{Chunk: 1, Size: 10, Stored: 20, Ranges: []Range{{0, 10}}}
		change(&r)
		return encodeRows(t, h, r)
	}
	set := func(at int, v uint64) []byte {
		file := encodeRows(t, h, sampleRows...)
		binary.LittleEndian.PutUint64(file[at:], v)
		return rehash(file)
	}
	many := make([]Range, MaxRanges+1)
	for i := range many {
		many[i] = Range{int64(i), 1}
	}
	wide := []Row{}
	for i := range 5 {
		wide = append(wide, Row{Chunk: i, Size: 1, Stored: 2, Ranges: []Range{{0, 500}, {0, 500}}})
	}
	small := h
	small.OldSize = 500
	other := h
	other.New[0]++
	algorithm := h
	algorithm.Algorithm = blob.SHA256
	wrongSum := encodeRows(t, h, sampleRows...)
	wrongSum[len(wrongSum)-1]++
	for name, file := range map[string][]byte{
		"empty":                {},
		"short":                encodeRows(t, h)[:50],
		"short table":          encodeRows(t, h, sampleRows...)[:110],
		"no checksum":          encodeRows(t, h)[:len(encodeRows(t, h))-1],
		"magic":                append([]byte("cairndlx"), encodeRows(t, h)[8:]...),
		"version":              set(8, 2),
		"algorithm":            set(8, 1|2<<32),
		"another image":        encodeRows(t, other),
		"another algorithm":    encodeRows(t, algorithm),
		"old size":             set(80, 1<<62+1),
		"large table":          set(88, maxTable+1),
		"checksum":             wrongSum,
		"table is not zstd":    rehash(append(append(appendHead(nil, h, 4), "none"...), make([]byte, 32)...)),
		"chunk beyond image":   with(func(r *Row) { r.Chunk = 5 }),
		"empty payload":        with(func(r *Row) { r.Size = 0 }),
		"large payload":        with(func(r *Row) { r.Size, r.Stored = MaxPayload+1, MaxPayload+2 }),
		"saves nothing":        with(func(r *Row) { r.Stored = r.Size }),
		"large stored":         with(func(r *Row) { r.Stored = r.Size + maxStored + 1 }),
		"many ranges":          with(func(r *Row) { r.Ranges = many }),
		"empty range":          with(func(r *Row) { r.Ranges = []Range{{0, 0}} }),
		"range before image":   with(func(r *Row) { r.Ranges = []Range{{-1, 10}} }),
		"range beyond image":   with(func(r *Row) { r.Ranges = []Range{{h.OldSize - 9, 10}} }),
		"range far beyond":     with(func(r *Row) { r.Ranges = []Range{{1<<63 - 1, 10}} }),
		"range wraps":          with(func(r *Row) { r.Ranges = []Range{{10, 10}, {-1 << 63, 10}} }),
		"large reference":      with(func(r *Row) { r.Ranges = []Range{{0, MaxReference}, {0, 1}} }),
		"references in all":    encodeRows(t, small, wide...),
		"more rows than image": pack(h, append([]byte{6}, make([]byte, 100)...)),
		"ends in a column":     pack(h, []byte{1, 0, 0, 1}),
		"long number":          pack(h, []byte{0x80, 0}),
		"huge number":          pack(h, bytes.Repeat([]byte{0xff}, 20)),
		"bytes behind":         pack(h, []byte{0, 0}),
		"bomb":                 pack(h, append([]byte{0}, make([]byte, 1<<20)...)),
		"no table":             pack(h, nil),
	} {
		if d, err := Decode(bytes.NewReader(file), x); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v, want ErrInvalid", name, d, err)
		}
	}
	if _, err := Decode(bytes.NewReader(encodeRows(t, small, wide[:4]...)), x); err != nil {
		t.Errorf("references of %d bytes are refused: %v", 4000, err)
	}
}

// TestLargeChunk: a delta has no chunks above the limit of a reader's memory.
func TestLargeChunk(t *testing.T) {
	b, _ := blob.NewBuilder(blob.SHA256, blob.Params{Min: 1, Avg: 1, Max: 4 << 20})
	b.Add(MaxChunk+1, blob.Digest{1})
	x := b.Index()
	file := encodeRows(t, headFor(x), Row{Size: 1, Stored: 2})
	if _, err := Decode(bytes.NewReader(file), x); !errors.Is(err, ErrInvalid) {
		t.Errorf("Decode = %v, want ErrInvalid", err)
	}
}

func TestReadError(t *testing.T) {
	x := indexOf(t, 5)
	file := encodeRows(t, headFor(x), sampleRows...)
	broken := errors.New("broken")
	for _, n := range []int{0, 50, 120} {
		_, err := Decode(&failing{bytes.NewReader(file[:n]), broken}, x)
		if !errors.Is(err, broken) || errors.Is(err, ErrInvalid) {
			t.Errorf("after %d bytes: %v, want the reader's error only", n, err)
		}
	}
}

// failing returns err instead of io.EOF.
type failing struct {
	*bytes.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err != nil {
		err = f.err
	}
	return n, err
}

func (f *failing) WriteTo(w interface{ Write(p []byte) (int, error) }) (int64, error) {
	n, _ := f.Reader.WriteTo(w)
	return n, f.err
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func encodeFrame(t testing.TB, reference, chunk []byte) []byte {
	t.Helper()
	e, err := newFrameEncoder()
	if err != nil {
		t.Fatal(err)
	}
	payload, err := e.encode(nil, reference, chunk)
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

// TestFrames: chunks decode with the reference they were encoded with, in any order with one Decoder.
// Bytes of the reference cost almost nothing, even where a reference looks like a zstd dictionary.
func TestFrames(t *testing.T) {
	d := NewDecoder()
	defer d.Close()
	e := must(newFrameEncoder())
	magic := []byte{0x37, 0xa4, 0x30, 0xec}
	for _, c := range []struct {
		name             string
		reference, chunk []byte
		most             int
	}{
		{"none", nil, random(1, 5000), 5020},
		{"one byte", []byte{1}, []byte{2}, 20},
		{"shifted", random(2, 50_000), append([]byte("new"), random(2, 50_000)[100:40_000]...), 60},
		{"largest", random(3, MaxReference), append(random(3, MaxReference)[:MaxChunk-100], random(4, 100)...), 400},
		{"far match", random(5, MaxReference), append(make([]byte, MaxChunk-1000), random(5, 1000)...), 600},
		{"magic", append(magic, random(6, 10_000)...), append(magic, random(6, 9_000)...), 60},
		{"only magic", magic, random(7, 100), 130},
		{"zeros", make([]byte, 1000), make([]byte, 100_000), 60},
	} {
		payload := must(e.encode(nil, c.reference, c.chunk))
		got := make([]byte, len(c.chunk))
		if err := d.Decode(got, c.reference, payload); err != nil || !bytes.Equal(got, c.chunk) {
			t.Errorf("%s: %v, or other bytes", c.name, err)
		}
		if len(payload) > c.most {
			t.Errorf("%s: a payload of %d bytes, want at most %d", c.name, len(payload), c.most)
		}
	}
}

// TestEncoderForgets: an encoder gives the same payload, whatever it encoded before.
func TestEncoderForgets(t *testing.T) {
	used, err := newFrameEncoder()
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{30_000, 500_000, 0, 70_000, 5000} {
		reference, chunk := random(uint64(i), n), append(random(uint64(i), n)[:n/2], random(99, 5000)...)
		fresh, _ := newFrameEncoder()
		want, err := fresh.encode(nil, reference, chunk)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := used.encode(nil, reference, chunk); err != nil || !bytes.Equal(got, want) {
			t.Errorf("reference of %d bytes: %v, or another payload than of a new encoder", n, err)
		}
	}
}

// TestWrongReference: bytes that are not those of the old image give wrong bytes or an error, and no more
// than the chunk's size.
func TestWrongReference(t *testing.T) {
	d := NewDecoder()
	defer d.Close()
	reference := random(1, 20_000)
	chunk := append(bytes.Clone(reference[5000:15_000]), "end"...)
	payload := encodeFrame(t, reference, chunk)
	for name, wrong := range map[string][]byte{"none": nil, "short": reference[:9000], "other": random(2, 20_000)} {
		got := make([]byte, len(chunk), len(chunk)+10)
		if err := d.Decode(got, wrong, payload); err == nil && bytes.Equal(got, chunk) {
			t.Errorf("%s: decoded without the reference", name)
		}
	}
	got := make([]byte, len(chunk))
	if err := d.Decode(got, reference, payload); err != nil || !bytes.Equal(got, chunk) {
		t.Errorf("after wrong references: %v, or other bytes", err)
	}
}

func TestDecodeRefusesPayloads(t *testing.T) {
	d := NewDecoder()
	defer d.Close()
	chunk := random(1, 10_000)
	good := encodeFrame(t, nil, chunk)
	large, _ := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20), zstd.WithSingleSegment(false))
	stream := bytes.NewBuffer(nil)
	large.Reset(stream)
	large.Write(make([]byte, 9<<20))
	large.Close()
	withID, _ := zstd.NewWriter(nil, zstd.WithEncoderDictRaw(5, chunk))
	for name, c := range map[string]struct {
		payload []byte
		size    int
	}{
		"empty":     {nil, 100},
		"text":      {[]byte("no zstd frame at all"), 20},
		"short":     {good[:len(good)-1], len(chunk)},
		"smaller":   {good, len(chunk) + 1},
		"larger":    {good, len(chunk) - 1},
		"trailing":  {append(bytes.Clone(good), good...), len(chunk)},
		"skippable": {[]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0}, 1},
		"window":    {stream.Bytes(), MaxChunk},
		"id":        {withID.EncodeAll(chunk, nil), len(chunk)},
	} {
		if err := d.Decode(make([]byte, c.size), nil, c.payload); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

// FuzzDecode decodes tables. What decodes must encode to a table that decodes to the same rows.
func FuzzDecode(f *testing.F) {
	x := indexOf(f, 5)
	h := headFor(x)
	f.Add(encodeRows(f, h, sampleRows...), true)
	f.Add(encodeRows(f, h), true)
	f.Add(appendTable(nil, sampleRows), false)
	f.Fuzz(func(t *testing.T, data []byte, whole bool) {
		if !whole {
			data = pack(h, data)
		} else if len(data) > sha256.Size {
			data = rehash(data)
		}
		d, err := Decode(bytes.NewReader(data), x)
		if err != nil {
			return
		}
		var rows []Row
		for _, r := range d.All() {
			rows = append(rows, r)
		}
		back, err := Decode(bytes.NewReader(encodeRows(t, d.Head, rows...)), x)
		if err != nil {
			t.Fatal(err)
		}
		for i := range rows {
			got := back.Row(i)
			got.Offset = rows[i].Offset
			if diff := cmp.Diff(rows[i], got); diff != "" {
				t.Fatalf("row %d (-want +got):\n%s", i, diff)
			}
		}
	})
}

// FuzzFrame decodes payloads with any reference.
func FuzzFrame(f *testing.F) {
	reference := random(1, 3000)
	f.Add(encodeFrame(f, reference, append(reference[:1000:1000], "x"...)), reference, 1001)
	f.Add(encodeFrame(f, nil, random(2, 50)), []byte{}, 50)
	d := NewDecoder()
	f.Fuzz(func(t *testing.T, payload, reference []byte, size int) {
		dst := make([]byte, max(size, 0)%10_000+1)
		tail := append(dst, 1, 2, 3)[:len(dst)]
		_ = d.Decode(tail, reference, payload)
		if rest := tail[len(tail) : len(tail)+3]; !bytes.Equal(rest, []byte{1, 2, 3}) {
			t.Fatal("Decode has written behind the chunk")
		}
	})
}
