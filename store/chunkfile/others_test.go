package chunkfile

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os/exec"
	"runtime"
	"slices"
	"testing"

	"github.com/ulikunitz/xz"

	"cairn/internal/test/need"
)

func compressXZ(t testing.TB, data []byte, config xz.WriterConfig) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := config.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func compressGzip(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pipe runs data through a program.
func pipe(t testing.TB, data []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), need.Tool(t, name), args...)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return out
}

// mixed returns partly compressible data that spans several of a codec's pieces.
func mixed() []byte {
	data := bytes.Repeat(random(1, 1000), 100)
	return slices.Concat(data, random(2, 100_000), make([]byte, 100_000))
}

// TestDecodeXZAndGzip: files of the xz and gzip tools decode, with every check, from the smallest
// to the largest dictionary.
func TestDecodeXZAndGzip(t *testing.T) {
	for _, args := range [][]string{
		{"xz"}, {"xz", "-0"}, {"xz", "-9e"}, {"xz", "-C", "none"}, {"xz", "-C", "crc32"}, {"xz", "-C", "sha256"},
		{"xz", "-T2"}, {"xz", "--block-size=500000"}, {"xz", "--lzma2=dict=4KiB"}, {"xz", "--lzma2=lc=0,lp=4,pb=0"},
		{"gzip"}, {"gzip", "-1"},
	} {
		for _, data := range [][]byte{{7}, mixed()} {
			packed := pipe(t, data, args[0], append(slices.Clone(args[1:]), "-c")...)
			got := make([]byte, len(data))
			if err := NewDecoder().Decode(got, packed); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%q of %d bytes: decode: %v", args, len(data), err)
			}
		}
	}
}

// TestOtherCodecsRefuse: a stream of the wrong length, or with a wrong byte or bit anywhere, is
// refused.
func TestOtherCodecsRefuse(t *testing.T) {
	data := bytes.Repeat(random(1, 100), 30)
	for name, packed := range map[string][]byte{
		"xz":        compressXZ(t, data, xz.WriterConfig{}),
		"xz, CRC32": compressXZ(t, data, xz.WriterConfig{CheckSum: xz.CRC32}),
		"gzip":      compressGzip(t, data),
	} {
		u := NewDecoder()
		refuse := func(what string, packed []byte, size int) {
			t.Helper()
			if u.Decode(make([]byte, size), packed) == nil {
				t.Errorf("%s, %s: decode succeeded", name, what)
			}
		}
		refuse("too long", packed, len(data)-1)
		refuse("too short", packed, len(data)+1)
		refuse("nothing wanted", packed, 0)
		refuse("twice", append(bytes.Clone(packed), packed...), len(data))
		refuse("twice for two", append(bytes.Clone(packed), packed...), 2*len(data))
		refuse("a byte more", append(bytes.Clone(packed), 0), len(data))
		refuse("padding", append(bytes.Clone(packed), 0, 0, 0, 0), len(data))
		for n := range packed {
			refuse("truncated", packed[:n], len(data))
		}
		if name == "gzip" {
			continue // its header has bits that do not affect the content
		}
		for i := range packed {
			flipped := bytes.Clone(packed)
			flipped[i] ^= 0x10
			got := make([]byte, len(data)) // the decoder does not use the compressed size of an LZMA2 chunk
			if u.Decode(got, flipped) == nil && !bytes.Equal(got, data) {
				t.Errorf("%s, byte %d flipped: decode succeeded", name, i)
			}
		}
	}
}

// xzClaiming returns a stream whose block declares a dictionary of that size.
func xzClaiming(t testing.TB, packed []byte, bits byte) []byte {
	t.Helper()
	const head = 12
	claims := bytes.Clone(packed)
	block := claims[head : head+(int(claims[head])+1)*4]
	at := bytes.Index(block, []byte{0x21, 1})
	if at < 0 {
		t.Fatal("there is no LZMA2 filter")
	}
	block[at+2] = bits
	sum := crc32.ChecksumIEEE(block[:len(block)-4])
	binary.LittleEndian.PutUint32(block[len(block)-4:], sum)
	return claims
}

// TestXZDictionary: a block is decoded in the memory of its own size, however large a dictionary it
// declares.
func TestXZDictionary(t *testing.T) {
	data := bytes.Repeat(random(1, 1000), 64)
	claims := xzClaiming(t, compressXZ(t, data, xz.WriterConfig{}), 40) // 4 GiB less one byte
	got := make([]byte, len(data))
	took := memory(func() {
		if err := NewDecoder().Decode(got, claims); err != nil || !bytes.Equal(got, data) {
			t.Errorf("decode: %v", err)
		}
	})
	if took > uint64(len(data))+1<<20 {
		t.Errorf("a chunk of %d bytes took %d bytes of memory", len(data), took)
	}
	if NewDecoder().Decode(got, xzClaiming(t, claims, 41)) == nil {
		t.Error("a dictionary that there is no such size of was taken")
	}
}

func memory(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestOtherBombs: streams that hold 20 MB too much are refused without allocating that memory.
func TestOtherBombs(t *testing.T) {
	zeros := make([]byte, 20_000_000)
	for name, bomb := range map[string][]byte{
		"xz": pipe(t, zeros, "xz", "-0", "-c"), "gzip": pipe(t, zeros, "gzip", "-1", "-c"),
	} {
		u := NewDecoder()
		dst := make([]byte, 64<<10)
		if took := memory(func() {
			if u.Decode(dst, bomb) == nil {
				t.Errorf("%s: decode succeeded", name)
			}
		}); took > 2<<20 {
			t.Errorf("%s: a bomb of %d bytes took %d bytes of memory", name, len(bomb), took)
		}
	}
}

// TestXZUnsupported: other filters and more than one block, which casync does not write, are
// reported as unsupported and not as corrupt. With damage they are corrupt.
func TestXZUnsupported(t *testing.T) {
	for _, args := range [][]string{
		{"--x86", "--lzma2"}, {"--delta", "--lzma2"}, {"--block-size=500"}, {"-T2", "--block-size=900"}, {"--block-size=1"},
	} {
		packed := pipe(t, random(1, 1000), "xz", append(args, "-c")...)
		for _, size := range []int{0, 1000} {
			if _, err := NewDecoder().DecodeInto(nil, packed, size); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("xz %q: decode = %v, want ErrUnsupported", args, err)
			}
		}
		for _, at := range []int{20, len(packed) - 20} { // a header, and the index
			damaged := bytes.Clone(packed)
			damaged[at] ^= 1
			if err := NewDecoder().Decode(make([]byte, 1000), damaged); err == nil || at > 20 && errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("xz %q, byte %d damaged: decode = %v", args, at, err)
			}
		}
	}
}

// TestXZStructure: damage under valid checksums is refused.
func TestXZStructure(t *testing.T) {
	data := bytes.Repeat(random(1, 100), 30)
	good := compressXZ(t, data, xz.WriterConfig{CheckSum: xz.CRC32})
	// stream returns a stream around a block, with an index of that content.
	stream := func(block []byte, index ...byte) []byte {
		index = append([]byte{0}, index...)
		index = binary.LittleEndian.AppendUint32(index, crc32.ChecksumIEEE(index))
		footer := append(binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1)), good[6:8]...)
		file := slices.Concat(good[:12], block, index)
		file = binary.LittleEndian.AppendUint32(file, crc32.ChecksumIEEE(footer))
		return append(append(file, footer...), "YZ"...)
	}
	const indexSize = 12 // 0, 1, two bytes for either size, padding, sum
	block, index := good[12:len(good)-12-indexSize], good[len(good)-12-indexSize+1:len(good)-12-4]
	if !bytes.Equal(stream(block, index...), good) {
		t.Fatal("the sound stream differs from the library's")
	}
	withHead := func(head ...byte) []byte {
		size := 4*int(block[0]) + 4
		head = append([]byte{byte((len(head)+1+4)/4 - 1)}, head...)
		return stream(append(binary.LittleEndian.AppendUint32(head, crc32.ChecksumIEEE(head)), block[size:]...), index...)
	}
	if err := NewDecoder().Decode(make([]byte, len(data)), withHead(0, 0x21, 1, 40, 0, 0, 0)); err != nil {
		t.Errorf("the least head: decode = %v", err)
	}
	claims := bytes.Clone(block[:4*int(block[0])+4])
	for range 1 << 10 { // LZMA2 chunks that declare 2 MiB each
		claims = append(claims, 0xff, 0xff, 0xff, 0, 0, 0, 0)
	}
	claims = append(claims, 0, 0, 0, 0)
	huge := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}
	for name, file := range map[string][]byte{
		"no block":          stream(nil, 0, 0, 0),
		"an empty block":    stream(nil, 1, 0, 0),
		"huge, and empty":   stream(nil, slices.Concat([]byte{1}, huge, []byte{0, 0, 0, 0})...),
		"huge":              stream(block, slices.Concat([]byte{1}, huge, []byte{0, 0, 0, 0})...),
		"huge content":      stream(block, slices.Concat([]byte{1}, index[1:3], huge, []byte{0, 0})...),
		"claims 2 GiB":      stream(claims, slices.Concat(binary.AppendUvarint([]byte{1}, uint64(len(claims))), index[3:])...),
		"index cut":         stream(block, 1, 0x80, 0x80),
		"a shorter block":   stream(block, append([]byte{1, index[1] - 4}, index[2:]...)...),
		"bytes in padding":  stream(block, append(bytes.Clone(index[:len(index)-1]), 1)...),
		"no filter":         withHead(0, 0, 0),
		"filter cut":        withHead(0xc0, 5, 0x21),
		"sizes alone":       withHead(0xc0, 0x80, 0x80),
		"other filter":      withHead(0, 0x03, 1, 0, 0, 0, 0),
		"filter's size":     withHead(0, 0x21, 2, 0, 0, 0, 0),
		"dictionary":        withHead(0, 0x21, 1, 41, 0, 0, 0),
		"bytes in the head": withHead(0, 0x21, 1, 40, 0, 0, 1),
		"zero head":         stream(append([]byte{0, 0, 0, 0}, block...), index...),
		"head beyond":       stream(append([]byte{0xff}, block[1:]...), index...),
	} {
		for _, size := range []int{0, len(data)} {
			if _, err := NewDecoder().DecodeInto(nil, file, size); err == nil {
				t.Errorf("%s, size %d: decode succeeded", name, size)
			}
		}
	}
}

// TestDeclaredSize: xz and gzip files are decoded without a size, since they declare it at their
// end.
func TestDeclaredSize(t *testing.T) {
	data := mixed()
	d := NewDecoder()
	for _, tool := range [][]string{{"gzip", "-c"}, {"xz", "-c"}, {"xz", "-c", "-T2"}} {
		file := pipe(t, data, tool[0], tool[1:]...)
		if got, err := d.DecodeInto(nil, file, 0); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%q: DecodeInto = %d bytes, %v", tool, len(got), err)
		}
		if _, err := d.DecodeInto(nil, file[:len(file)-1], 0); err == nil || errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%q, cut: DecodeInto = %v, want a plain error", tool, err)
		}
	}
}

func BenchmarkDecodeOthers(b *testing.B) {
	data := bytes.Repeat(random(1, 8<<10), 8)
	copy(data[32<<10:], random(2, 16<<10))
	dst := make([]byte, len(data))
	u := NewDecoder()
	for name, packed := range map[string][]byte{"xz": compressXZ(b, data, xz.WriterConfig{}), "gzip": compressGzip(b, data)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if err := u.Decode(dst, packed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
