//go:build libzstd

package chunkfile

import (
	"bytes"
	"testing"

	libzstd "github.com/DataDog/zstd"
	"github.com/klauspost/compress/zstd"
)

// TestLibzstdReadsOurs: libzstd reads the frames of both encoders and of appendRawFrame. Every
// other test of this build covers the reverse, Go reading libzstd's frames.
func TestLibzstdReadsOurs(t *testing.T) {
	p, err := NewEncoder(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range edges {
		data := append(random(uint64(size), size), make([]byte, size)...)
		packed, err := p.Encode(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		for name, frame := range map[string][]byte{
			"libzstd": packed,
			"go":      compress(t, data, zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true)),
			"raw":     appendRawFrame(nil, data),
		} {
			if got, err := libzstd.Decompress(nil, frame); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s: %d bytes: libzstd reads %d, %v", name, len(data), len(got), err)
			}
		}
	}
}

// FuzzLibzstd: both decoders agree on the encoder's frame of any data.
func FuzzLibzstd(f *testing.F) {
	f.Add([]byte("some text, some text"), 3, 100)
	f.Fuzz(func(t *testing.T, data []byte, level, repeat int) {
		data = bytes.Repeat(data, 1+repeat&0xff)
		p, err := NewEncoder(level)
		if err != nil || len(data) == 0 || len(data) > 1<<20 {
			return
		}
		packed, err := p.Encode(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(data))
		if err := NewDecoder().Decode(got, packed); err != nil || !bytes.Equal(got, data) {
			t.Errorf("level %d: decode: %v", level, err)
		}
		if got, err := goReads(t, packed); err != nil || !bytes.Equal(got, data) {
			t.Errorf("level %d: the Go decoder reads %d bytes, %v", level, len(got), err)
		}
	})
}

// TestLevels: the encoder's levels are libzstd's own.
func TestLevels(t *testing.T) {
	data := append(bytes.Repeat(random(1, 3000), 20), make([]byte, 5000)...)
	for level := 1; level <= maxLevel; level++ {
		p, err := NewEncoder(level)
		if err != nil {
			t.Fatal(err)
		}
		got, err := p.Encode(nil, data)
		if err != nil {
			t.Fatal(err)
		}
		want, err := libzstd.CompressLevel(nil, data, level)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("level %d: %d bytes, want libzstd's %d, %v", level, len(got), len(want), err)
		}
	}
}

func goReads(t testing.TB, packed []byte) ([]byte, error) {
	t.Helper()
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return d.DecodeAll(packed, nil)
}

// FuzzDecodersAgree: where both libzstd and the Go decoder accept some bytes as a chunk, they
// decode to the same.
func FuzzDecodersAgree(f *testing.F) {
	data := bytes.Repeat(random(1, 100), 20)
	for _, packed := range [][]byte{compress(f, data), streamed(f, data), appendRawFrame(nil, data), wantsDictionary} {
		f.Add(packed, len(data))
	}
	u := NewDecoder()
	f.Fuzz(func(t *testing.T, packed []byte, size int) {
		got := make([]byte, size&(1<<18-1)+1)
		if !bytes.HasPrefix(packed, []byte(zstdMagic)) || u.Decode(got, packed) != nil {
			return
		}
		if want, err := goReads(t, packed); err == nil && !bytes.Equal(got, want) {
			t.Errorf("libzstd reads %d bytes that are not the %d that Go reads", len(got), len(want))
		}
	})
}
