package pack

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/store/chunkfile"
)

// Bucket stores objects. A store.Bucket and a store.Batch implement it.
type Bucket interface {
	// Write stores an object. The data may be reused when Write returns.
	Write(ctx context.Context, name string, data []byte) error
}

// Writer writes chunks into packs. It holds one pack in memory. Not safe for concurrent use.
type Writer struct {
	to        Bucket
	algorithm blob.Algorithm
	size      int64
	random    io.Reader // tests replace it

	file   []byte // head and chunk files of the open pack
	table  []byte // of the open pack
	packs  []Pack // that were written
	places map[blob.Digest]place
}

// NewWriter returns a Writer of packs of at most size bytes, from MinSize to MaxSize. A pack of a single chunk may be
// larger.
func NewWriter(to Bucket, a blob.Algorithm, size int64) (*Writer, error) {
	if size < MinSize || size > MaxSize {
		return nil, fmt.Errorf("packs of %d bytes: want %d to %d", size, MinSize, MaxSize)
	}
	return &Writer{to: to, algorithm: a, size: size, random: rand.Reader, places: map[blob.Digest]place{}}, nil
}

// Add appends the file of a chunk to the open pack. If the pack would grow beyond its size, Add first writes it and
// opens another. The caller knows that file decodes to the chunk d. A chunk that was added before is ignored.
func (w *Writer) Add(ctx context.Context, d blob.Digest, file []byte) error {
	if len(file) == 0 || int64(len(file)) > chunkfile.Limit(blob.MaxChunkSize) {
		return fmt.Errorf("packing chunk %v: its file has %d bytes", d, len(file))
	}
	if _, added := w.places[d]; added {
		return nil
	}
	if w.fileSize()+int64(len(file))+rowSize > w.size {
		if err := w.Close(ctx); err != nil {
			return err
		}
	}
	if len(w.file) == 0 {
		w.file = appendHead(w.file, w.algorithm)
	}
	w.places[d] = place{uint32(len(w.packs)), uint32(len(w.file)), uint32(len(file))}
	w.file = append(w.file, file...)
	w.table = binary.LittleEndian.AppendUint32(append(w.table, d[:]...), uint32(len(file)))
	return nil
}

func appendHead(b []byte, a blob.Algorithm) []byte {
	b = binary.LittleEndian.AppendUint32(append(b, magic...), version)
	return binary.LittleEndian.AppendUint32(b, uint32(a))
}

// fileSize returns the size of the open pack's file.
func (w *Writer) fileSize() int64 {
	return int64(max(len(w.file), headSize) + len(w.table) + footerSize)
}

// Close writes the open pack, if it has any chunk. The next chunk begins another pack. After an error the pack stays
// open, and Close may be called again.
func (w *Writer) Close(ctx context.Context) error {
	if len(w.table) == 0 {
		return nil
	}
	var unique [randomSize]byte
	if _, err := io.ReadFull(w.random, unique[:]); err != nil {
		return fmt.Errorf("naming a pack: %w", err)
	}
	chunks := len(w.file)
	file := append(append(w.file, w.table...), unique[:]...)
	file = binary.LittleEndian.AppendUint64(file, uint64(len(w.table)/rowSize))
	w.file = file[:chunks]
	pack := Pack{ID: sha256.Sum256(file), Size: int64(len(file))}
	if err := w.to.Write(ctx, pack.Name(), file); err != nil {
		return fmt.Errorf("writing pack %s: %w", pack.Name(), err)
	}
	w.packs = append(w.packs, pack)
	w.file, w.table = w.file[:0], w.table[:0]
	return nil
}

// Place returns where a chunk lies in the packs that were written. ok is false if the chunk was not added, or its pack
// is still open.
func (w *Writer) Place(d blob.Digest) (at Place, ok bool) {
	p, ok := w.places[d]
	if !ok || int(p.pack) == len(w.packs) {
		return Place{}, false
	}
	return Place{w.packs[p.pack], int64(p.offset), int64(p.size)}, true
}

// Packs returns the packs that were written. The caller must not modify them.
func (w *Writer) Packs() []Pack { return w.packs }
