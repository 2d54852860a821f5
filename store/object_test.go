package store_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"cairn/blob"
	"cairn/internal/test/mem"
	"cairn/internal/test/need"
	"cairn/store"
	"cairn/store/local"
)

// frame returns data as a frame encoded with the options.
func frame(t *testing.T, data []byte, o ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, o...)
	if err != nil {
		t.Fatal(err)
	}
	return e.EncodeAll(data, nil)
}

// streamed returns data as casync writes it: a frame without its content size.
func streamed(t *testing.T, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	e, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	n, err := e.Write(data[:min(1000, len(data))])
	err = errors.Join(err, e.Flush()) // a frame that is written in one call may declare its size
	_, more := e.Write(data[n:])
	if err := errors.Join(err, more, e.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// TestLoad reads chunks in each form, with known and unknown sizes.
func TestLoad(t *testing.T) {
	big := sample{data: make([]byte, 9<<20)} // far larger when decompressed
	big.digest = blob.SHA512_256.Sum(big.data)
	for _, s := range []sample{newSample(1, 5000), newSample(2, 300_000), big} {
		for name, form := range map[string][]byte{
			"ours": mustRead(t, bucketOf(t, s), s.packed()), "with its size": frame(t, s.data),
			"streamed": streamed(t, s.data), "plain": s.data,
		} {
			b := new(mem.Bucket)
			packed := name != "plain"
			mustWrite(t, b, store.ObjectName(s.digest, packed), form)
			var raw store.Raw
			for _, size := range []int64{0, int64(len(s.data)), 0} {
				if err := chunksOf(b).Load(t.Context(), s.digest, packed, size, &raw); err != nil {
					t.Errorf("%s, size %d: Load = %v", name, size, err)
					continue
				}
				if !bytes.Equal(raw.Plain, s.data) || !bytes.Equal(raw.Stored, form) || raw.Packed != packed {
					t.Errorf("%s, size %d: Load gives %d bytes stored in %d", name, size, len(raw.Plain), len(raw.Stored))
				}
			}
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	s := newSample(1, 5000)
	good := mustRead(t, bucketOf(t, s), s.packed())
	bomb := 2 << 20 // its size is not declared
	if !testing.Short() {
		bomb = blob.MaxChunkSize + 1<<20
	}
	for name, form := range map[string][]byte{
		"empty": {}, "other": []byte("<html>"), "cut": good[:len(good)-1], "head only": good[:4],
		"claims too much": {0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0},
		"holds nothing":   frame(t, nil, zstd.WithZeroFrames(true)),
		"a bomb":          streamed(t, make([]byte, bomb)),
	} {
		for _, size := range []int64{0, 5000} {
			if name == "a bomb" && testing.Short() && size == 0 {
				continue // it is a small one
			}
			b := new(mem.Bucket)
			mustWrite(t, b, s.packed(), form)
			var corrupt *store.CorruptError
			if err := chunksOf(b).Load(t.Context(), s.digest, true, size, new(store.Raw)); !errors.As(err, &corrupt) {
				t.Errorf("%s, size %d: Load = %v, want a CorruptError", name, size, err)
			}
		}
	}
	for _, packed := range []bool{false, true} {
		if err := chunksOf(new(mem.Bucket)).Load(t.Context(), s.digest, packed, 0, new(store.Raw)); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("Load of nothing = %v, want ErrNotFound", err)
		}
	}
}

// FuzzLoad: loading any object without a size gives the same as loading it with its size.
func FuzzLoad(f *testing.F) {
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 3, 0x19, 0, 0, 'a', 'b', 'c'})
	f.Add([]byte("\x1f\x8b\x08"))
	f.Add(append([]byte("\xfd7zXZ\x00"), append(make([]byte, 30), "YZ"...)...))
	d := blob.SHA256.Sum(nil)
	f.Fuzz(func(t *testing.T, form []byte) {
		b := new(mem.Bucket)
		mustWrite(t, b, store.ObjectName(d, true), form)
		var free, sized store.Raw
		if chunksOf(b).Load(t.Context(), d, true, 0, &free) != nil {
			return
		}
		if err := chunksOf(b).Load(t.Context(), d, true, int64(len(free.Plain)), &sized); err != nil || !bytes.Equal(sized.Plain, free.Plain) {
			t.Errorf("%d bytes without a size; with it %d bytes, %v", len(free.Plain), len(sized.Plain), err)
		}
		if _, err := newWriter(t, b, store.WriterOptions{}).PutRaw(t.Context(), d, &free); err != nil {
			t.Errorf("PutRaw = %v", err)
		}
	})
}

// TestPutRaw: a chunk stays as it is when it is one zstd frame, and is encoded as one otherwise.
func TestPutRaw(t *testing.T) {
	s := newSample(1, 300_000)
	one := frame(t, s.data)
	two := append(frame(t, s.data[:1000]), frame(t, s.data[1000:])...)
	for name, c := range map[string]struct {
		form   []byte
		packed bool
		kept   bool
	}{
		"a frame": {one, true, true}, "a frame without checksum": {frame(t, s.data, zstd.WithEncoderCRC(false)), true, true},
		"streamed": {streamed(t, s.data), true, true}, "two frames": {two, true, false}, "plain": {s.data, false, false},
		"trailing bytes": {append(bytes.Clone(one), 0), true, false}, "skippable first": {append([]byte{0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0}, one...), true, false},
	} {
		b := new(mem.Bucket)
		w := newWriter(t, b, store.WriterOptions{})
		raw := &store.Raw{Packed: c.packed, Stored: c.form, Plain: s.data}
		if _, err := w.PutRaw(t.Context(), s.digest, raw); err != nil {
			t.Fatalf("%s: PutRaw = %v", name, err)
		}
		s.wantFrom(t, chunksOf(b))
		if got := bytes.Equal(mustRead(t, b, s.packed()), c.form); got != c.kept {
			t.Errorf("%s: kept as it is: %v, want %v", name, got, c.kept)
		}
		plain := new(mem.Bucket)
		if _, err := newWriter(t, plain, store.WriterOptions{Compression: store.None}).PutRaw(t.Context(), s.digest, raw); err != nil {
			t.Fatalf("%s: PutRaw without compression = %v", name, err)
		}
		if !bytes.Equal(mustRead(t, plain, s.plain()), s.data) {
			t.Errorf("%s: a store without compression got other bytes", name)
		}
	}
}

// TestPutRawOfCasyncs: chunks that casync compressed stay as they are.
func TestPutRawOfCasyncs(t *testing.T) {
	casync := need.Tool(t, "casync")
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, imageBytes(image()), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(casync, "make", "--store="+filepath.Join(dir, "s.castr"), filepath.Join(dir, "x.caibx"), path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("casync: %v\n%s", err, out)
	}
	b, err := local.Open(filepath.Join(dir, "s.castr"), local.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for o, err := range b.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		d, packed, _ := store.ChunkObject(o.Name)
		var raw store.Raw
		if err := chunksOf(b).Load(t.Context(), d, packed, 0, &raw); err != nil || blob.SHA512_256.Sum(raw.Plain) != d {
			t.Fatalf("Load(%s) = %v, or another chunk", o.Name, err)
		}
		to := new(mem.Bucket)
		if _, err := newWriter(t, to, store.WriterOptions{}).PutRaw(t.Context(), d, &raw); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(mustRead(t, to, o.Name), raw.Stored) {
			t.Errorf("%s did not stay as casync made it", o.Name)
		}
	}
}
