package scan

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"

	"cairn/blob"
	"cairn/chunker"
	"cairn/testimages"
)

// TestGolden compares with digests of the indexes that the casync binary makes (docs/format.md).
func TestGolden(t *testing.T) {
	s := testimages.SHA256Stream(20 << 20)
	avg := func(n int64) chunker.Params { return chunker.Params{Min: n / 4, Avg: n, Max: n * 4} }
	for _, c := range []struct {
		id     string
		image  []byte
		params chunker.Params
		digest blob.Algorithm
		chunks int
		want   string
	}{
		{"g1", s, chunker.Default, 0, 332, "170fad156f6f53ffffed4e947903cdb80327164aaeb92d062cbd1a782da07d89"},
		{"g2", make([]byte, 20<<20), chunker.Default, 0, 80, "aeb7de264130ce9752a7867b99264c052f491bd5d62959f2120bca76a87e4190"},
		{"g3", s, avg(4096), 0, 5153, "336e07371209fc157d3e910159805cd89f95e1c0cdbe3abb85090f736cf7238c"},
		{"g4", s, chunker.Params{Min: 65536, Avg: 65536, Max: 65536}, 0, 320, "7aaa2f21c83aec68499572a7c199bd43de5d74b2ae230b1911b8538eef4a7d26"},
		{"g5", s, avg(1 << 20), 0, 14, "76197097b622bcd10461f7593061c512f8f25742a6112ec60e9fa1c0dfb8a0c7"},
		{"g6", s, chunker.Default, blob.SHA256, 332, "e619235069c1469da209e0a4b054091d463ef7388be47b7c934a7441d53a041c"},
		{"g7", nil, chunker.Default, 0, 0, "16ddad079094dc0f11dfb87986aebcb24d7975f2edb4442778f5f8f34208b7ab"},
		{"g8", []byte("x"), chunker.Default, 0, 1, "3f5361a55adb121c21d06ba0e32d9722b1ae978e6b2fabfdbd86ab1f0768e0e5"},
		{"g9", s[:16384], chunker.Default, 0, 1, "4c43a901d659404463218b80bac7a3108370cd0a99cc960a46b722f313d091e6"},
		{"g10", s[:16383], chunker.Default, 0, 1, "605dd97c0eec5c34006ffb4ec8363604f715f4f57eac31aaa622225f92b102d5"},
		{"g11", s[:47], chunker.Default, 0, 1, "5558e8196da95e661a4c6ea98d8886de351137c16b6586b50d9e5fec863b18e4"},
		{"g12", s[64537:164537], chunker.Default, 0, 3, "a56cd6546dc496540a3bf0e519490dbaf65efe744f56d1b9153729580d413f4a"},
	} {
		for _, workers := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s/%d", c.id, workers), func(t *testing.T) {
				o := Options{Algorithm: c.digest, Params: c.params, Workers: workers}
				x, stats, err := Image(t.Context(), chunker.FromReader(bytes.NewReader(c.image)), o)
				if err != nil {
					t.Fatal(err)
				}
				if got := fmt.Sprintf("%x", sha256.Sum256(x.Encode())); got != c.want || x.Len() != c.chunks {
					t.Errorf("index of %d chunks is %s, want %d, %s", x.Len(), got, c.chunks, c.want)
				}
				if stats.Chunks != c.chunks || stats.Size != int64(len(c.image)) {
					t.Errorf("stats %+v, want %d chunks of %d bytes", stats, c.chunks, len(c.image))
				}
			})
		}
	}
}

// TestFresh: Fresh is called once for each distinct chunk, with its bytes.
func TestFresh(t *testing.T) {
	s := testimages.SHA256Stream(3 << 20)
	image := bytes.Join([][]byte{s, make([]byte, 4<<20), s, make([]byte, 1<<20+77)}, nil)
	var mu sync.Mutex
	fresh := map[blob.Digest]int64{}
	o := Options{Params: chunker.Default, Workers: 3, Fresh: func(_ context.Context, c blob.Chunk, data []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if _, twice := fresh[c.Digest]; twice || blob.SHA512_256.Sum(data) != c.Digest || int64(len(data)) != c.Size {
			t.Errorf("chunk %v at %d handed on twice (%v) or with other bytes", c.Digest, c.Offset, twice)
		}
		fresh[c.Digest] = c.Size
		return nil
	}}
	x, stats, err := Image(t.Context(), chunker.FromReaderAt(holes{bytes.NewReader(image)}, int64(len(image))), o)
	if err != nil {
		t.Fatal(err)
	}
	if x.Digest() == (blob.Digest{}) || stats.Distinct != len(fresh) || stats.Distinct >= stats.Chunks {
		t.Errorf("%d chunks handed on, stats %+v", len(fresh), stats)
	}
	for _, c := range x.All() {
		if fresh[c.Digest] != c.Size {
			t.Errorf("chunk %v at %d was not handed on", c.Digest, c.Offset)
		}
	}
	if stats.Zeros < 4<<20 {
		t.Errorf("%d zero bytes, want at least 4 MiB", stats.Zeros)
	}
}

// holes is an image with holes from 3 MiB to 7 MiB and at its end.
type holes struct{ *bytes.Reader }

func (h holes) NextData(off int64) (start, end int64, err error) {
	switch {
	case off < 3<<20:
		return off, 3 << 20, nil
	case off < 10<<20:
		return max(off, 7<<20), 10 << 20, nil
	}
	return h.Size(), h.Size(), nil
}

func TestFreshFails(t *testing.T) {
	full := errors.New("full")
	o := Options{Params: chunker.Default, Workers: 2, Fresh: func(context.Context, blob.Chunk, []byte) error { return full }}
	if _, _, err := Image(t.Context(), chunker.FromReader(bytes.NewReader(testimages.SHA256Stream(1<<20))), o); !errors.Is(err, full) {
		t.Errorf("Image = %v, want %v", err, full)
	}
}
