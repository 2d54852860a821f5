package delta

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
)

func TestNewBase(t *testing.T) {
	for _, c := range []struct{ chunks, samples, last int }{{0, 0, 0}, {1, 1, 0}, {5, 5, 4}, {100, MaxSamples, 31 * 100 / 32}} {
		x := indexOf(t, c.chunks)
		b := NewBase(x, 7, 3)
		if b.Index != x.Digest() || b.ImageSize != x.Size() || b.FileSize != 7 || b.HeadSize != 3 || len(b.Samples) != c.samples {
			t.Errorf("NewBase of %d chunks = %+v", c.chunks, b)
		}
		if d := (blob.Digest{1, byte(c.last)}); c.samples > 0 && b.Samples[c.samples-1] != [8]byte(d[:8]) {
			t.Errorf("the last sample of %d chunks is %x, want chunk %d", c.chunks, b.Samples[c.samples-1], c.last)
		}
	}
}

// TestSamplesAreDistinct: samples are neither zeros nor repeats.
func TestSamplesAreDistinct(t *testing.T) {
	b, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 100, Avg: 100, Max: 100})
	if err != nil {
		t.Fatal(err)
	}
	zeros := blob.SHA256.SumZeros(100)
	for _, d := range []blob.Digest{zeros, {1}, {1}, zeros, {2}, {1}} {
		if _, err := b.Add(100, d); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([][8]byte{{1}, {2}}, NewBase(b.Index(), 0, 0).Samples); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
}

func fullList() []Base {
	var bases []Base
	for i := range MaxBases {
		b := Base{Index: blob.Digest{9, byte(i)}, ImageSize: 1 << 62, FileSize: int64(i), HeadSize: int64(i / 2)}
		for range MaxSamples {
			b.Samples = append(b.Samples, [8]byte{byte(i)})
		}
		bases = append(bases, b)
	}
	return bases
}

func TestList(t *testing.T) {
	x := indexOf(t, 5)
	for _, bases := range [][]Base{nil, {NewBase(indexOf(t, 3), 1000, 300), {Index: blob.Digest{5}}}, fullList()} {
		b := EncodeList(x, bases)
		got, err := DecodeList(b, x)
		if err != nil || len(b) > MaxList {
			t.Errorf("a list of %d bytes: %v", len(b), err)
		}
		if diff := cmp.Diff(bases, got); diff != "" {
			t.Errorf("bases (-want +got):\n%s", diff)
		}
	}
	if n := len(EncodeList(x, fullList())); n != MaxList {
		t.Errorf("the largest list has %d bytes, want %d", n, MaxList)
	}
}

func TestDecodeListRefuses(t *testing.T) {
	x := indexOf(t, 5)
	good := EncodeList(x, []Base{NewBase(indexOf(t, 3), 1000, 300), {Index: blob.Digest{5}}})
	set := func(at int, v uint64) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint64(b[at:], v)
		return rehash(b)
	}
	damaged := bytes.Clone(good)
	damaged[len(damaged)-1]++
	samples := bytes.Clone(good)
	samples[listHeadSize+56] = MaxSamples + 1
	short := bytes.Clone(good)
	short[len(short)-sha256.Size-1] = 1 // sample of the last entry
	for name, b := range map[string][]byte{
		"empty":             nil,
		"short":             good[:listHeadSize+sha256.Size-1],
		"magic":             append([]byte("cairndlt"), good[8:]...),
		"version":           set(8, 2),
		"algorithm":         set(8, 1|1<<32),
		"another image":     EncodeList(indexOf(t, 6), nil),
		"checksum":          damaged,
		"many":              set(48, MaxBases+1),
		"more than there":   set(48, 3),
		"fewer than there":  set(48, 1),
		"image size":        set(listHeadSize+32, 1<<62+1),
		"delta size":        set(listHeadSize+40, 1<<62+1),
		"head size":         set(listHeadSize+48, 1001),
		"many samples":      rehash(samples),
		"samples cut short": rehash(short),
		"from itself":       EncodeList(x, []Base{{Index: x.Digest()}}),
		"twice":             EncodeList(x, []Base{{Index: blob.Digest{1}}, {Index: blob.Digest{1}}}),
		"trailing":          rehash(append(bytes.Clone(good), 0)),
	} {
		if bases, err := DecodeList(b, x); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, %v, want ErrInvalid", name, bases, err)
		}
	}
}

// FuzzDecodeList decodes lists. What decodes must encode to the same bytes.
func FuzzDecodeList(f *testing.F) {
	x := indexOf(f, 5)
	f.Add(EncodeList(x, nil))
	f.Add(EncodeList(x, []Base{NewBase(indexOf(f, 3), 1000, 300), {Index: blob.Digest{5}}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > sha256.Size {
			data = rehash(data)
		}
		bases, err := DecodeList(data, x)
		if err != nil {
			return
		}
		if back := EncodeList(x, bases); !bytes.Equal(back, data) {
			t.Fatalf("%x decodes and encodes to %x", data, back)
		}
	})
}
