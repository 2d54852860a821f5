package blob

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

var defaults = Params{16 << 10, 64 << 10, 256 << 10}

// build returns an index of chunks with these sizes. Their first digest bytes count up from 1.
func build(t testing.TB, a Algorithm, sizes ...int64) *Index {
	t.Helper()
	b, err := NewBuilder(a, defaults)
	if err != nil {
		t.Fatal(err)
	}
	for i, size := range sizes {
		if _, err := b.Add(size, Digest{byte(i + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	return b.Index()
}

// TestEncodeOneByte compares an index with casync's file for the image "x".
func TestEncodeOneByte(t *testing.T) {
	b, _ := NewBuilder(SHA512_256, defaults)
	b.Add(1, SHA512_256.Sum([]byte("x")))
	const want = "3000000000000000f99f127b9c4d829600000000000000b000400000000000000000010000000000000004000000" +
		"0000ffffffffffffffff7d41172f119e5be70100000000000000"
	got := hex.EncodeToString(b.Index().Encode())
	if !strings.HasPrefix(got, want) {
		t.Errorf("index starts with %s, want %s", got, want)
	}
	const tail = "000000000000000000000000000000003000000000000000" + "6000000000000000" + "d1ec49550e054f4b"
	if !strings.HasSuffix(got, tail) {
		t.Errorf("index ends with %s, want %s", got, tail)
	}
}

func TestIndex(t *testing.T) {
	x := build(t, SHA256, 20000, 30000, 5)
	if x.Len() != 3 || x.Size() != 50005 || x.Algorithm() != SHA256 || x.Params() != defaults {
		t.Errorf("index has %d chunks, %d bytes, %v, %v", x.Len(), x.Size(), x.Algorithm(), x.Params())
	}
	var got []Chunk
	for _, c := range x.All() {
		got = append(got, c)
	}
	want := []Chunk{{Digest{1}, 0, 20000}, {Digest{2}, 20000, 30000}, {Digest{3}, 50000, 5}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("chunks (-want +got):\n%s", diff)
	}
	for offset, want := range map[int64]int{0: 0, 19999: 0, 20000: 1, 49999: 1, 50000: 2, 50004: 2, 50005: 3, 1 << 40: 3} {
		if got := x.Find(offset); got != want {
			t.Errorf("Find(%d) = %d, want %d", offset, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	x := build(t, SHA256, 100, 200, 300, 400)
	for _, c := range []struct {
		lo   int
		size int64
		want int
	}{{0, 1, 1}, {0, 100, 1}, {0, 299, 1}, {0, 300, 2}, {0, 301, 2}, {0, 5000, 4}, {2, 1, 3}, {3, 1, 4}, {3, 400, 4}} {
		if got := x.Span(c.lo, c.size); got != c.want {
			t.Errorf("Span(%d, %d) = %d, want %d", c.lo, c.size, got, c.want)
		}
	}
}

func TestDecodeEncode(t *testing.T) {
	for _, x := range []*Index{build(t, SHA512_256), build(t, SHA256, 1), build(t, SHA512_256, 262144, 1, 99)} {
		file := x.Encode()
		if int64(len(file)) != x.EncodedSize() {
			t.Errorf("%d bytes, want %d", len(file), x.EncodedSize())
		}
		got, err := Decode(iotest.OneByteReader(bytes.NewReader(file)))
		if err != nil {
			t.Fatal(err)
		}
		if got.Digest() != x.Digest() || !bytes.Equal(got.Encode(), file) {
			t.Errorf("decoding and encoding %d chunks changed the index", x.Len())
		}
	}
}

// TestDecodeRefuses changes one thing at a time in a good index.
func TestDecodeRefuses(t *testing.T) {
	good := build(t, SHA512_256, 100, 200).Encode()
	set := func(at int, v uint64) []byte {
		p := bytes.Clone(good)
		binary.LittleEndian.PutUint64(p[at:], v)
		return p
	}
	cases := map[string][]byte{
		"nothing": nil, "archive": archiveStart(200), "text": []byte(strings.Repeat("<html>", 100)), "tail twice": append(bytes.Clone(good), good[144:]...),
		"trailing byte": append(bytes.Clone(good), 0), "header size": set(0, 49), "header type": set(8, 1),
		"unknown flags": set(16, 0xb000000000000000|1<<40), "min 0": set(24, 0), "min over avg": set(24, 65537),
		"avg over max": set(32, 262145), "max too large": set(40, 1<<27+1), "max huge": set(40, 1<<63),
		"table size": set(48, 136), "table type": set(56, 0), "chunk 0 empty": set(64, 0), "chunk over max": set(64, 262145),
		"chunk 1 backwards": set(104, 99), "chunk beyond 2^63": set(104, 1<<63+5),
		"tail 0": set(144, 1), "tail 1": set(152, 1), "tail offset": set(160, 0), "tail size": set(168, 135), "tail marker": set(176, 0),
	}
	for n := range good {
		cases[fmt.Sprintf("cut at %d", n)] = good[:n]
	}
	for name, file := range cases {
		if x, err := Decode(bytes.NewReader(file)); !errors.Is(err, ErrInvalid) || x != nil {
			t.Errorf("%s: Decode = %v, %v, want nil, ErrInvalid", name, x, err)
		}
	}
}

// TestDecodeFlags checks that Decode accepts and keeps the archive flags that casync writes.
func TestDecodeFlags(t *testing.T) {
	for flags, want := range map[uint64]Algorithm{
		0xb000000000000000: SHA512_256, 0x9000000000000000: SHA256, 0xa000000000000000: SHA512_256, 0: SHA256,
		0xf000000000000000: SHA512_256, 0xB0000001FFEFFE26: SHA512_256, 0x3000000000001f09: SHA512_256,
	} {
		file := build(t, SHA512_256, 100).Encode()
		binary.LittleEndian.PutUint64(file[16:], flags)
		x, err := Decode(bytes.NewReader(file))
		if err == nil && x.HasFileFlags() != (flags<<31 != 0) {
			t.Errorf("flags %#x: HasFileFlags = %v", flags, x.HasFileFlags())
		}
		if err != nil || x.Algorithm() != want || !bytes.Equal(x.Encode(), file) {
			t.Errorf("flags %#x: %v, want %v and the same bytes again", flags, err, want)
		}
	}
}

// archiveStart returns the first 16 bytes of a .catar from casync, followed by n zeros.
func archiveStart(n int) []byte {
	return append([]byte("@\x00\x00\x00\x00\x00\x00\x00\x51\xbb\x5b\xea\xbc\xfa\x96\x13"), make([]byte, n)...)
}

func TestIsArchive(t *testing.T) {
	for _, n := range []int{0, 100} {
		if !IsArchive(archiveStart(n)) {
			t.Errorf("IsArchive of %d bytes = false", 16+n)
		}
	}
	for _, other := range [][]byte{nil, archiveStart(0)[:15], make([]byte, 64), append([]byte{1}, archiveStart(9)...)} {
		if IsArchive(other) {
			t.Errorf("IsArchive(%x) = true", other)
		}
	}
	_, err := Decode(bytes.NewReader(archiveStart(200)))
	if err == nil || !strings.Contains(err.Error(), ".catar archive") {
		t.Errorf("Decode of an archive = %v", err)
	}
}

func TestDecodeReadError(t *testing.T) {
	broken := errors.New("broken")
	file := build(t, SHA512_256, 100, 200).Encode()
	for _, n := range []int{0, 10, 64, 100, 104, len(file)} {
		_, err := Decode(io.MultiReader(bytes.NewReader(file[:n]), iotest.ErrReader(broken)))
		if !errors.Is(err, broken) || errors.Is(err, ErrInvalid) {
			t.Errorf("error after %d bytes: Decode = %v, want %v", n, err, broken)
		}
	}
}

func TestBuilderRefuses(t *testing.T) {
	if _, err := NewBuilder(SHA256, Params{2, 1, 3}); !errors.Is(err, ErrInvalid) {
		t.Errorf("NewBuilder = %v, want ErrInvalid", err)
	}
	b, _ := NewBuilder(SHA256, defaults)
	for _, size := range []int64{0, -1, 262145} {
		if _, err := b.Add(size, Digest{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("Add(%d) = %v, want ErrInvalid", size, err)
		}
	}
}

func TestBuilderFindsRepeats(t *testing.T) {
	b, _ := NewBuilder(SHA256, defaults)
	for i := range 10_000 {
		d := SHA256.Sum([]byte{byte(i % 1000), byte(i % 1000 >> 8)})
		if first, err := b.Add(1, d); err != nil || first != i%1000 {
			t.Fatalf("Add of chunk %d = %d, %v, want %d", i, first, err, i%1000)
		}
	}
	table := NewTable(b.Index())
	for i, c := range b.Index().All() {
		if got := table.Find(c.Digest); got != i%1000 {
			t.Fatalf("Find(chunk %d) = %d, want %d", i, got, i%1000)
		}
	}
	if got := table.Find(Digest{1}); got != -1 {
		t.Errorf("Find(absent) = %d, want -1", got)
	}
}

func TestIsZero(t *testing.T) {
	for _, a := range []Algorithm{SHA512_256, SHA256} {
		b, _ := NewBuilder(a, defaults)
		b.Add(defaults.Max, a.Sum(make([]byte, defaults.Max)))
		b.Add(5000, Digest{1})
		b.Add(7777, a.Sum(make([]byte, 7777)))
		var got []bool
		for i := range 3 {
			got = append(got, b.Index().IsZero(i))
		}
		if diff := cmp.Diff([]bool{true, false, true}, got); diff != "" {
			t.Errorf("%v: IsZero (-want +got):\n%s", a, diff)
		}
	}
}

func TestDigest(t *testing.T) {
	d := SHA512_256.Sum(make([]byte, 262144))
	const zeros = "1c8109946feed9f9e9fe4b5144d90f05a50fb3275e848cb72f4b9546d8c533f2"
	if d.String() != zeros {
		t.Errorf("digest of 256 KiB of zeros = %v, want %s", d, zeros)
	}
	if got, err := ParseDigest(zeros); err != nil || got != d {
		t.Errorf("ParseDigest = %v, %v", got, err)
	}
	for _, bad := range []string{"", zeros[1:], strings.ToUpper(zeros), zeros + "00", "zz" + zeros[2:]} {
		if _, err := ParseDigest(bad); err == nil {
			t.Errorf("ParseDigest(%q) = nil, want an error", bad)
		}
	}
	for _, name := range []string{"sha512-256", "sha256"} {
		if a, err := ParseAlgorithm(name); err != nil || a.String() != name {
			t.Errorf("ParseAlgorithm(%q) = %v, %v", name, a, err)
		}
	}
	if _, err := ParseAlgorithm("md5"); err == nil {
		t.Error("ParseAlgorithm(md5) = nil, want an error")
	}
}

// FuzzDecode checks that an accepted file encodes to the same bytes.
func FuzzDecode(f *testing.F) {
	f.Add(build(f, SHA512_256, 100, 200).Encode())
	f.Add(build(f, SHA256).Encode())
	f.Fuzz(func(t *testing.T, file []byte) {
		x, err := Decode(bytes.NewReader(file))
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("Decode = %v, want ErrInvalid", err)
			}
			return
		}
		if !bytes.Equal(x.Encode(), file) {
			t.Errorf("%d chunks encode to other bytes", x.Len())
		}
	})
}

// TestMaxChunks: an index has at most MaxChunks rows. The blocks of this one are the same block, to save memory.
func TestMaxChunks(t *testing.T) {
	full := make([]row, blockRows)
	for i := range full {
		full[i].end = 1
	}
	x := &Index{params: defaults, blocks: make([][]row, MaxChunks/blockRows), n: MaxChunks - 1}
	for i := range x.blocks {
		x.blocks[i] = full
	}
	x.blocks[len(x.blocks)-1] = full[:blockRows-1]
	if err := x.appendRow(2, Digest{}); err != nil {
		t.Errorf("row %d: %v", MaxChunks, err)
	}
	if err := x.appendRow(3, Digest{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("row %d: %v, want ErrInvalid", MaxChunks+1, err)
	}
}
