package chunkfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"cairn/blob"
	"cairn/internal/test/need"
)

func random(seed uint64, size int) []byte {
	p := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func compress(t testing.TB, data []byte, options ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, options...)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(data, nil)
}

// streamed returns a frame as casync makes it: without its content size.
func streamed(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	e, err := zstd.NewWriter(&b, zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 { // in pieces with flushes, or the encoder would know the size
		n := min(len(data), 30_000)
		if _, err := e.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		if err := e.Flush(); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestEncodedForm(t *testing.T) {
	for _, level := range []int{0, 1, 3, 6, 10, maxLevel} {
		p, err := NewEncoder(level)
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{
			"one byte": {7}, "small": random(1, 255), "zeros": make([]byte, 256<<10), "random": random(2, 300_000),
			"text": bytes.Repeat([]byte("compressible "), 20_000),
		} {
			packed, err := p.Encode(nil, data)
			if err != nil {
				t.Fatal(err)
			}
			var head zstd.Header
			if err := head.Decode(packed); err != nil {
				t.Fatal(err)
			}
			if !head.SingleSegment || head.HasCheckSum || !head.HasFCS || head.FrameContentSize != uint64(len(data)) {
				t.Errorf("level %d, %s: frame head %+v", level, name, head)
			}
			if int64(len(packed)) > Limit(len(data)) {
				t.Errorf("level %d, %s: %d bytes became %d, over the limit", level, name, len(data), len(packed))
			}
			got := make([]byte, len(data))
			if err := NewDecoder().Decode(got, packed); err != nil || !bytes.Equal(got, data) {
				t.Errorf("level %d, %s: decode: %v", level, name, err)
			}
		}
	}
	for _, level := range []int{-1, maxLevel + 1} {
		if _, err := NewEncoder(level); err == nil {
			t.Errorf("NewEncoder(%d) succeeded", level)
		}
	}
}

// TestLargeChunk: a chunk of many windows decodes; its frame declares its size, but need not be one
// segment.
func TestLargeChunk(t *testing.T) {
	p, err := NewEncoder(1)
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat(append(random(1, 100_000), make([]byte, 900_000)...), 6)
	packed, err := p.Encode(nil, data)
	if err != nil {
		t.Fatal(err)
	}
	var head zstd.Header
	if err := head.Decode(packed); err != nil || head.FrameContentSize != uint64(len(data)) {
		t.Errorf("frame head %+v, %v", head, err)
	}
	got := make([]byte, len(data))
	if err := NewDecoder().Decode(got, packed); err != nil || !bytes.Equal(got, data) {
		t.Errorf("decode: %v", err)
	}
}

func TestDecodeOthersFrames(t *testing.T) {
	data := bytes.Repeat(random(1, 1000), 200)
	for name, packed := range map[string][]byte{
		"without size": streamed(t, data),
		"checksum":     compress(t, data, zstd.WithEncoderCRC(true)),
		"large window": compress(t, data, zstd.WithWindowSize(128<<20), zstd.WithSingleSegment(false)),
	} {
		got := make([]byte, len(data))
		if err := NewDecoder().Decode(got, packed); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	data := bytes.Repeat(random(1, 1000), 200)
	packed := compress(t, data)
	flipped := bytes.Clone(packed) // packed has a checksum, so the decoder detects the flip
	flipped[len(flipped)/2] ^= 1
	for name, test := range map[string]struct {
		packed []byte
		size   int
		want   error
	}{
		"empty":         {nil, 10, nil},
		"magic alone":   {[]byte(zstdMagic), 10, nil},
		"plain":         {data, len(data), nil},
		"truncated":     {packed[:len(packed)-1], len(data), nil},
		"flipped":       {flipped, len(data), nil},
		"too long":      {packed, len(data) - 1, nil},
		"too short":     {packed, len(data) + 1, nil},
		"no size, long": {streamed(t, data), len(data) - 1, nil},
		"nothing":       {compress(t, nil, zstd.WithZeroFrames(true)), 10, nil},
		"twice":         {append(bytes.Clone(packed), packed...), len(data), nil},
		"twice for two": {append(bytes.Clone(packed), packed...), 2 * len(data), nil},
		"a byte more":   {append(bytes.Clone(packed), 0), len(data), nil},
		"then to skip":  {append(bytes.Clone(packed), "\x50\x2a\x4d\x18\x01\x00\x00\x00x"...), len(data), nil},
		"then nothing":  {append(bytes.Clone(packed), compress(t, nil, zstd.WithZeroFrames(true))...), len(data), nil},
		"dictionary":    {wantsDictionary, 10, nil},
		"nothing asked": {packed, 0, nil},
		"xz alone":      {[]byte(xzMagic + "more"), 10, nil},
		"gzip alone":    {[]byte(gzipMagic + "more"), 10, nil},
	} {
		err := NewDecoder().Decode(make([]byte, test.size), test.packed)
		if err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: decode = %v, want %v", name, err, test.want)
		}
	}
}

// wantsDictionary is a whole frame of ten raw bytes that names an unknown dictionary.
var wantsDictionary = []byte(zstdMagic + "\x21\x07\x0a\x51\x00\x00" + "0123456789")

// TestDecodeRefusesPieces: a truncated frame is never accepted.
func TestDecodeRefusesPieces(t *testing.T) {
	data := bytes.Repeat(random(1, 100), 30)
	u, dst := NewDecoder(), make([]byte, len(data))
	for name, packed := range map[string][]byte{
		"checksum": compress(t, data), "no checksum": compress(t, data, zstd.WithEncoderCRC(false)),
		"raw": appendRawFrame(nil, data), "no size": streamed(t, data),
	} {
		if err := u.Decode(dst, packed); err != nil || !bytes.Equal(dst, data) {
			t.Errorf("%s: decode: %v", name, err)
		}
		for n := range packed {
			if u.Decode(dst, packed[:n]) == nil {
				t.Errorf("%s: decode of %d of %d bytes succeeded", name, n, len(packed))
			}
		}
	}
}

// TestBombs: frames of some kilobytes that declare or hold 128 MiB take no memory.
func TestBombs(t *testing.T) {
	const size = 128 << 20
	blocks := make([]byte, 0, 4096)
	for range size >> 17 { // RLE blocks of 128 KiB
		blocks = append(blocks, 1<<1, 0, 1<<4, 0xaa)
	}
	claim := binary.LittleEndian.AppendUint32([]byte(zstdMagic+"\xa0"), size) // one segment, 4 bytes of size
	window := []byte(zstdMagic + "\x00\x88")                                  // no size, a window of 128 MiB
	bombs := map[string][]byte{
		"claims": append(claim, blocks...),
		"holds":  append(window, blocks...),
	}
	u := NewDecoder()
	dst := make([]byte, 64<<10)
	for name, bomb := range bombs {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := u.Decode(dst, bomb)
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: decode succeeded", name)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 2<<20 {
			t.Errorf("%s: a bomb of %d bytes took %d bytes of memory", name, len(bomb), took)
		}
	}
}

// TestDecodeInto decodes each form with and without the size, into memory of any size.
func TestDecodeInto(t *testing.T) {
	e, err := NewEncoder(0)
	if err != nil {
		t.Fatal(err)
	}
	d := NewDecoder()
	for _, data := range [][]byte{{7}, bytes.Repeat(random(1, 1000), 200), random(2, 300_000), make([]byte, 2<<20)} {
		ours, err := e.Encode(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		for name, file := range map[string][]byte{
			"ours": ours, "without size": streamed(t, data), "gzip": compressGzip(t, data), "xz": compressXZ(t, data, xz.WriterConfig{}),
		} {
			for _, size := range []int{0, len(data)} {
				for _, buf := range [][]byte{nil, make([]byte, 10), make([]byte, 5, 3<<20)} {
					got, err := d.DecodeInto(buf, file, size)
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("%s of %d bytes, size %d: DecodeInto = %d bytes, %v", name, len(data), size, len(got), err)
					}
					if cap(buf) >= 3<<20 && &got[0] != &buf[0] {
						t.Errorf("%s of %d bytes, size %d: DecodeInto allocated, though buf was large enough", name, len(data), size)
					}
				}
			}
			if _, err := d.DecodeInto(nil, file, len(data)+1); err == nil {
				t.Errorf("%s of %d bytes: DecodeInto took another size", name, len(data))
			}
		}
	}
}

// TestDecodeIntoRefuses: files that cannot be a chunk of any size are refused.
func TestDecodeIntoRefuses(t *testing.T) {
	good := compress(t, bytes.Repeat(random(1, 100), 20))
	tooMuch := binary.LittleEndian.AppendUint32([]byte(gzipMagic+"\x08 seven ten bytes"), blob.MaxChunkSize+1)
	for name, file := range map[string][]byte{
		"empty": {}, "other": []byte("<html>"), "cut": good[:len(good)-1], "head alone": good[:4],
		"zstd, too much": []byte(zstdMagic + "\xe0\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00"), "gzip, too much": tooMuch,
		"nothing": compress(t, nil, zstd.WithZeroFrames(true)), "nothing, without size": []byte(zstdMagic + "\x00\x00\x01\x00\x00"),
		"xz alone": []byte(xzMagic), "gzip alone": []byte(gzipMagic),
	} {
		var err error
		if took := memory(func() { _, err = NewDecoder().DecodeInto(nil, file, 0) }); err == nil || took > 3<<20 {
			t.Errorf("%s: DecodeInto = %v, and took %d bytes", name, err, took)
		}
	}
	if _, err := NewDecoder().DecodeInto(nil, nil, 0); !errors.Is(err, ErrEmpty) {
		t.Errorf("empty: DecodeInto = %v, want ErrEmpty", err)
	}
}

func TestCheckPlain(t *testing.T) {
	for _, c := range []struct {
		n, size int
		want    bool
	}{{1, 1, true}, {5, 0, true}, {0, 0, false}, {0, 1, false}, {1, 2, false}, {2, 1, false}} {
		if err := CheckPlain(c.n, c.size); (err == nil) != c.want {
			t.Errorf("CheckPlain(%d, %d) = %v", c.n, c.size, err)
		}
	}
}

func TestIsZstdFrame(t *testing.T) {
	one := compress(t, random(1, 1000))
	for name, c := range map[string]struct {
		file []byte
		want bool
	}{
		"a frame": {one, true}, "without size": {streamed(t, random(1, 1000)), true}, "raw": {appendRawFrame(nil, random(1, 1000)), true},
		"two": {append(bytes.Clone(one), one...), false}, "a byte more": {append(bytes.Clone(one), 0), false},
		"a byte less": {one[:len(one)-1], false}, "gzip": {compressGzip(t, one), false}, "nothing": {nil, false},
	} {
		if got := IsZstdFrame(c.file); got != c.want {
			t.Errorf("%s: IsZstdFrame = %v", name, got)
		}
	}
}

// FuzzDecode: any bytes either fill dst exactly or are refused, and decode to the same without a
// size.
func FuzzDecode(f *testing.F) {
	data := bytes.Repeat(random(1, 100), 20)
	f.Add(compress(f, data), len(data))
	f.Add(streamed(f, data), len(data))
	f.Add(compressXZ(f, data, xz.WriterConfig{}), len(data))
	f.Add(compressXZ(f, data, xz.WriterConfig{CheckSum: xz.SHA256, BlockSize: 700}), len(data))
	f.Add(compressGzip(f, data), len(data))
	f.Add([]byte(xzMagic), 1)
	f.Add([]byte(zstdMagic+"\x00\x88"), 1)
	u := NewDecoder()
	f.Fuzz(func(t *testing.T, packed []byte, size int) {
		free, err := u.DecodeInto(nil, packed, 0)
		if sized := make([]byte, len(free)); err == nil && (u.Decode(sized, packed) != nil || !bytes.Equal(sized, free)) {
			t.Errorf("%d bytes without a size, and with that size others", len(free))
		}
		size &= 1<<20 - 1
		dst := make([]byte, size+1)
		dst[size] = 0x5a
		if u.Decode(dst[:size], packed) == nil && size > 0 && len(packed) == 0 {
			t.Error("something came of nothing")
		}
		if dst[size] != 0x5a {
			t.Error("decode wrote behind dst")
		}
	})
}

// FuzzEncode: encoded data decodes to the same data.
func FuzzEncode(f *testing.F) {
	f.Add([]byte("x"), 3)
	f.Fuzz(func(t *testing.T, data []byte, level int) {
		p, err := NewEncoder(level)
		if err != nil || len(data) == 0 {
			return
		}
		packed, err := p.Encode(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(data))
		if err := NewDecoder().Decode(got, packed); err != nil || !bytes.Equal(got, data) {
			t.Errorf("decode: %v", err)
		}
	})
}

func TestIncompressible(t *testing.T) {
	mostly := random(3, 64<<10)
	clear(mostly[40<<10:])
	for name, c := range map[string]struct {
		data []byte
		want bool
	}{
		"random":         {random(1, 64<<10), true},
		"random, large":  {random(2, 1<<20+1), true},
		"smallest":       {random(4, 4096), true},
		"too small":      {random(5, 4095), false},
		"nothing":        {nil, false},
		"zeros":          {make([]byte, 64<<10), false},
		"text":           {bytes.Repeat([]byte("compressible "), 9_000), false},
		"partly zeros":   {mostly, false},
		"noise of 1 KiB": {bytes.Repeat(random(6, 1<<10), 64), false},
		"hexadecimal":    {fmt.Appendf(nil, "%x", random(7, 32<<10)), false},
	} {
		if got := isIncompressible(c.data); got != c.want {
			t.Errorf("%s: incompressible = %v, want %v", name, got, c.want)
		}
	}
}

// edges are sizes around which a frame of raw blocks changes its form.
var edges = []int{
	1, 255, 256, 257, 65_535, 65_536, 65_791, 65_792, maxRawBlock - 1, maxRawBlock, maxRawBlock + 1, 2 * maxRawBlock, 300_000,
}

func TestRawFrame(t *testing.T) {
	for _, size := range edges {
		checkRawFrame(t, random(uint64(size), size))
	}
}

// checkRawFrame checks that a raw frame declares its size, is one segment, holds data, and is
// within rawFrameSize.
func checkRawFrame(t *testing.T, data []byte) {
	t.Helper()
	packed := appendRawFrame(nil, data)
	var head zstd.Header
	if err := head.Decode(packed); err != nil {
		t.Fatal(err)
	}
	if !head.SingleSegment || head.HasCheckSum || !head.HasFCS || head.FrameContentSize != uint64(len(data)) {
		t.Errorf("%d bytes: frame head %+v", len(data), head)
	}
	got := make([]byte, len(data))
	if err := NewDecoder().Decode(got, packed); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes: decode: %v", len(data), err)
	}
	if len(packed) > rawFrameSize(len(data)) {
		t.Errorf("%d bytes: a frame of %d, announced as %d at most", len(data), len(packed), rawFrameSize(len(data)))
	}
}

// FuzzRawFrame: data in raw blocks decodes to the same data. It is repeated to fill several blocks.
func FuzzRawFrame(f *testing.F) {
	for _, size := range edges {
		f.Add([]byte{byte(size), 1, 2}, size)
	}
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		size &= 1<<19 - 1
		if len(data) > 0 && size > 0 {
			checkRawFrame(t, bytes.Repeat(data, size/len(data)+1)[:size])
		}
	})
}

// TestZstdReadsRawFrames: the zstd tool reads raw frames. TestOthersReadOurs tests casync and
// desync.
func TestZstdReadsRawFrames(t *testing.T) {
	tool := need.Tool(t, "zstd")
	for _, size := range edges {
		data := random(uint64(size), size)
		cmd := exec.CommandContext(t.Context(), tool, "-d", "-c")
		cmd.Stdin = bytes.NewReader(appendRawFrame(nil, data))
		if got, err := cmd.Output(); err != nil || !bytes.Equal(got, data) {
			t.Errorf("zstd -d of a raw frame of %d bytes gives %d, %v", size, len(got), err)
		}
	}
}

// TestEncodeAllocates: Encode allocates nothing once it has a buffer.
func TestEncodeAllocates(t *testing.T) {
	p, err := NewEncoder(0)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"text": bytes.Repeat([]byte("compressible "), 9_000), "random": random(1, 100_000),
	} {
		buf := make([]byte, 0, 256<<10)
		allocs := testing.AllocsPerRun(50, func() {
			if _, err := p.Encode(buf, data); err != nil {
				t.Fatal(err)
			}
		})
		if allocs > 1 {
			t.Errorf("%s: encode allocates %v times, want at most once", name, allocs)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	mixed := bytes.Repeat(random(1, 8<<10), 8)
	copy(mixed[32<<10:], random(2, 16<<10))
	p, err := NewEncoder(0)
	if err != nil {
		b.Fatal(err)
	}
	for name, data := range map[string][]byte{"mixed": mixed, "random": random(3, 64<<10)} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 0, 256<<10)
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Encode(buf, data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	data := bytes.Repeat(random(1, 8<<10), 8)
	copy(data[32<<10:], random(2, 16<<10))
	dst := make([]byte, len(data))
	u := NewDecoder()
	for name, packed := range map[string][]byte{"sized": compress(b, data), "unsized": streamed(b, data)} {
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
