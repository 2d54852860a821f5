package delta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"cairn/blob"
	"cairn/testimages"
)

// TestMutated: whatever happens to a delta's file, a decoded chunk has the right digest or is refused.
func TestMutated(t *testing.T) {
	files := 200
	switch {
	case os.Getenv("CAIRN_LONG") != "":
		files = 100_000
	case testing.Short():
		files = 50
	}
	old := testimages.Random(5, 350_000)
	from, to := imageOf(t, old), imageOf(t, change(old))
	good, m := makeFile(t, from, to, 2)
	head := len(good) - int(m.Payloads)
	r := rand.New(rand.NewPCG(1, 2))
	z := NewDecoder()
	defer z.Close()
	var decoded, refused int
	for range files {
		file := bytes.Clone(good)
		for range 1 + r.IntN(3) {
			file[r.IntN(len(file))] ^= 1 << r.IntN(8)
		}
		switch r.IntN(3) {
		case 0:
			file = file[:r.IntN(len(file))]
		case 1: // a table that its checksum does not refuse
			file = append(rehash(file[:head]), file[head:]...)
		}
		d, err := Decode(bytes.NewReader(file), to.Index)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			refused++
			continue
		}
		for _, row := range d.All() {
			if row.Kind != Frame || row.Offset+row.Size > int64(len(file)) {
				continue
			}
			c := to.Index.At(row.Chunk)
			dst := make([]byte, c.Size)
			var reference []byte
			for _, g := range row.Ranges {
				if g.End() > int64(len(old)) {
					continue
				}
				reference = append(reference, old[g.Offset:g.End()]...)
			}
			err := z.Decode(dst, reference, file[row.Offset:row.Offset+row.Size])
			if err != nil || to.Index.Algorithm().Sum(dst) != c.Digest {
				refused++
				continue
			}
			decoded++
			if want := make([]byte, c.Size); must(to.Data.ReadAt(want, c.Offset)) != len(want) || !bytes.Equal(dst, want) {
				t.Fatalf("chunk %d has other bytes", row.Chunk)
			}
		}
	}
	if decoded < files || refused < files/10 {
		t.Errorf("of %d files, %d chunks are decoded, and %d chunks or files refused", files, decoded, refused)
	}
}

// TestMemory: a delta from an image of 16 GiB, which has no byte of the new image but a few chunks, takes at most
// 2 GiB of memory with any number of workers.
func TestMemory(t *testing.T) {
	if os.Getenv("CAIRN_LONG") == "" {
		t.Skip("16 GiB are read twice; set CAIRN_LONG=1")
	}
	const size = 16 << 30
	old := pattern{}
	x := must(blob.NewBuilder(blob.SHA512_256, blob.Params{Min: 16 << 10, Avg: 64 << 10, Max: 256 << 10}))
	for i := range uint64(size >> 16) { // the digests of old chunks are not checked
		must(x.Add(1<<16, blob.SHA512_256.Sum(binary.LittleEndian.AppendUint64(nil, i))))
	}
	data := make([]byte, 32<<20)
	must(old.ReadAt(data, 9<<30+5))
	for at := 5000; at < len(data); at += 9000 {
		copy(data[at:], "edited")
	}
	y := must(blob.NewBuilder(blob.SHA512_256, x.Index().Params()))
	for at := 0; at < len(data); at += 1 << 17 {
		must(y.Add(1<<17, blob.SHA512_256.Sum(data[at:at+1<<17])))
	}
	from, to := Image{x.Index(), old}, Image{y.Index(), bytes.NewReader(data)}
	m, err := Make(t.Context(), from, to, io.Discard, Options{Workers: 100})
	if err != nil {
		t.Fatal(err)
	}
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	t.Logf("%d rows, %d bytes of payloads, %d MiB from the system", len(m.Rows), m.Payloads, s.Sys>>20)
	if len(m.Rows) < y.Len()*9/10 || s.Sys > 2<<30 {
		t.Errorf("%d of %d chunks, %d bytes of memory", len(m.Rows), y.Len(), s.Sys)
	}
}

// pattern is an endless image in which no 16 bytes repeat.
type pattern struct{}

func (pattern) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		at := uint64(off) + uint64(i)
		h := (at>>3 + 1) * 0x9E3779B97F4A7C15
		h = (h ^ h>>31) * 0xD6E8FEB86659FD93
		p[i] = byte((h ^ h>>32) >> (at & 7 * 8))
	}
	return len(p), nil
}
