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

// mixed is data that partly compresses, over several of the pieces that codecs cut.
func mixed() []byte {
	data := bytes.Repeat(random(1, 1000), 100)
	return slices.Concat(data, random(2, 100_000), make([]byte, 100_000))
}

// TestDecodeXZAndGzip as the tools make them, with every check, from smallest to largest dictionary.
func TestDecodeXZAndGzip(t *testing.T) {
	for _, args := range [][]string{
		{"xz"}, {"xz", "-0"}, {"xz", "-9e"}, {"xz", "-C", "none"}, {"xz", "-C", "crc32"}, {"xz", "-C", "sha256"},
		{"xz", "--block-size=50000"}, {"xz", "-T2", "--block-size=70000"}, {"xz", "--lzma2=dict=4KiB"},
		{"xz", "--lzma2=lc=0,lp=4,pb=0"}, {"gzip"}, {"gzip", "-1"},
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

// TestOtherCodecsRefuse what is not one whole stream of the right length, wherever a byte or bit is wrong.
func TestOtherCodecsRefuse(t *testing.T) {
	data := bytes.Repeat(random(1, 100), 30)
	for name, packed := range map[string][]byte{
		"xz":           compressXZ(t, data, xz.WriterConfig{}),
		"xz in blocks": compressXZ(t, data, xz.WriterConfig{BlockSize: 1000, CheckSum: xz.CRC32}),
		"gzip":         compressGzip(t, data),
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
			continue // its head has bits that mean nothing to what is unpacked
		}
		for i := range packed {
			flipped := bytes.Clone(packed)
			flipped[i] ^= 0x10
			refuse("flipped", flipped, len(data))
		}
	}
}

// xzClaiming is a stream whose block says that it needs a dictionary of that size (see lzma2Filter).
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

// TestXZDictionary: however large a dictionary a block claims, it is unpacked in the memory that its own size takes.
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

// TestXZClaimsMuch: a small block that says to hold more than an int has on some machines is refused.
func TestXZClaimsMuch(t *testing.T) {
	const coded, end = 0xff, 0
	packed := compressXZ(t, random(1, 1000), xz.WriterConfig{})
	head := 12 + (int(packed[12])+1)*4
	packed = packed[:head:head]
	for range 1 << 10 { // of 2 MiB each
		packed = append(packed, coded, 0xff, 0xff, 0, 0, 0, 0)
	}
	packed = append(packed, end)
	if err := NewDecoder().Decode(make([]byte, 1000), packed); err == nil {
		t.Error("decode succeeded")
	}
}

func memory(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestOtherBombs: streams that hold 20 MB more than they should are refused without that memory.
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

// TestXZFilters: what casync does not make, and this cannot read, is named and not called corrupt.
func TestXZFilters(t *testing.T) {
	for _, args := range [][]string{{"--x86", "--lzma2"}, {"--delta", "--lzma2"}} {
		packed := pipe(t, random(1, 1000), "xz", append(args, "-c")...)
		if err := NewDecoder().Decode(make([]byte, 1000), packed); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("xz %q: decode = %v, want ErrUnsupported", args, err)
		}
	}
}

// TestDeclaredSize: xz and gzip files are decoded without a size, as their ends tell it.
func TestDeclaredSize(t *testing.T) {
	data := mixed()
	d := NewDecoder()
	for _, tool := range [][]string{{"gzip", "-c"}, {"xz", "-c"}, {"xz", "-c", "-T2", "--block-size=65536"}} {
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
