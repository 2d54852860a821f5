package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func random(seed uint64, size int) []byte {
	p := make([]byte, size)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func pack(t testing.TB, data []byte, options ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, options...)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(data, nil)
}

// streamed is a frame as casync makes it: without the size of its content.
func streamed(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	e, err := zstd.NewWriter(&b, zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 { // in pieces and with flushes, or the encoder knows the size after all
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

func TestPackedForm(t *testing.T) {
	for _, level := range []int{0, 1, 3, 6, 10, maxLevel} {
		e, err := newPacker(level)
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{
			"one byte": {7}, "small": random(1, 255), "zeros": make([]byte, 256<<10), "random": random(2, 300_000),
			"text": bytes.Repeat([]byte("compressible "), 20_000),
		} {
			packed := e.EncodeAll(data, nil)
			var head zstd.Header
			if err := head.Decode(packed); err != nil {
				t.Fatal(err)
			}
			if !head.SingleSegment || head.HasCheckSum || !head.HasFCS || head.FrameContentSize != uint64(len(data)) {
				t.Errorf("level %d, %s: frame head %+v", level, name, head)
			}
			if int64(len(packed)) > packedLimit(len(data)) {
				t.Errorf("level %d, %s: %d bytes became %d, over the limit", level, name, len(data), len(packed))
			}
			got := make([]byte, len(data))
			if err := newUnpacker().unpack(got, packed); err != nil || !bytes.Equal(got, data) {
				t.Errorf("level %d, %s: unpack: %v", level, name, err)
			}
		}
	}
	for _, level := range []int{-1, maxLevel + 1} {
		if _, err := newPacker(level); err == nil {
			t.Errorf("newPacker(%d) succeeded", level)
		}
	}
}

func TestUnpackOthersFrames(t *testing.T) {
	data := bytes.Repeat(random(1, 1000), 200)
	for name, packed := range map[string][]byte{
		"without size": streamed(t, data),
		"checksum":     pack(t, data, zstd.WithEncoderCRC(true)),
		"large window": pack(t, data, zstd.WithWindowSize(128<<20), zstd.WithSingleSegment(false)),
	} {
		got := make([]byte, len(data))
		if err := newUnpacker().unpack(got, packed); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnpackRefuses(t *testing.T) {
	data := bytes.Repeat(random(1, 1000), 200)
	packed := pack(t, data)
	flipped := bytes.Clone(packed) // with its checksum, so that the decoder itself sees it
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
		"nothing":       {pack(t, nil, zstd.WithZeroFrames(true)), 10, nil},
		"twice":         {append(bytes.Clone(packed), packed...), len(data), nil},
		"xz":            {[]byte(xzMagic + "more"), 10, errors.ErrUnsupported},
		"gzip":          {[]byte(gzipMagic + "more"), 10, errors.ErrUnsupported},
	} {
		err := newUnpacker().unpack(make([]byte, test.size), test.packed)
		if err == nil || test.want != nil && !errors.Is(err, test.want) {
			t.Errorf("%s: unpack = %v, want %v", name, err, test.want)
		}
	}
}

// TestBombs: frames of some kilobytes that claim or hold 128 MiB take no memory.
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
	u := newUnpacker()
	dst := make([]byte, 64<<10)
	for name, bomb := range bombs {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := u.unpack(dst, bomb)
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: unpack succeeded", name)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 2<<20 {
			t.Errorf("%s: a bomb of %d bytes took %d bytes of memory", name, len(bomb), took)
		}
	}
}

// FuzzUnpack: any bytes either fill dst exactly or are refused, without memory beyond a few times dst.
func FuzzUnpack(f *testing.F) {
	data := bytes.Repeat(random(1, 100), 20)
	f.Add(pack(f, data), len(data))
	f.Add(streamed(f, data), len(data))
	f.Add([]byte(xzMagic), 1)
	f.Add([]byte(zstdMagic+"\x00\x88"), 1)
	u := newUnpacker()
	f.Fuzz(func(t *testing.T, packed []byte, size int) {
		size &= 1<<20 - 1
		dst := make([]byte, size+1)
		dst[size] = 0x5a
		if u.unpack(dst[:size], packed) == nil && size > 0 && len(packed) == 0 {
			t.Error("something came of nothing")
		}
		if dst[size] != 0x5a {
			t.Error("unpack wrote behind dst")
		}
	})
}

// FuzzPack: what is packed comes back.
func FuzzPack(f *testing.F) {
	f.Add([]byte("x"), 3)
	f.Fuzz(func(t *testing.T, data []byte, level int) {
		e, err := newPacker(level)
		if err != nil || len(data) == 0 {
			return
		}
		got := make([]byte, len(data))
		if err := newUnpacker().unpack(got, e.EncodeAll(data, nil)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("unpack: %v", err)
		}
	})
}

func BenchmarkUnpack(b *testing.B) {
	data := bytes.Repeat(random(1, 8<<10), 8)
	copy(data[32<<10:], random(2, 16<<10))
	dst := make([]byte, len(data))
	u := newUnpacker()
	for name, packed := range map[string][]byte{"sized": pack(b, data), "unsized": streamed(b, data)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if err := u.unpack(dst, packed); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
