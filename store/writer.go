package store

import (
	"context"
	"errors"
	"fmt"

	"cairn/blob"
	"cairn/store/chunkfile"
)

// Compression is how chunks are stored.
type Compression uint8

const (
	Zstd Compression = iota
	None             // named without a suffix: casync and desync do not look for it over HTTP
)

// WriterOptions configure a Writer. The zero value matches casync's defaults.
type WriterOptions struct {
	Compression Compression
	Level       int // compression level, 1 to 22 as in the zstd tool; 0 is 3
	// Uploads limits the objects that are written at once to a remote bucket without batches of its
	// own (see NewUploads). At 0 each Put waits for its own write.
	Uploads int
	// Known reports which chunks the bucket holds. If it is nil, the Writer sends requests to the
	// bucket for each chunk.
	Known Haser
}

// Haser reports whether a store holds a chunk. Safe for concurrent use.
type Haser interface {
	Has(ctx context.Context, d blob.Digest) (bool, error)
}

// Writer writes chunks into a bucket as a casync chunk store, in one batch. Safe for concurrent
// use. Put compresses in the caller's goroutine, so parallel calls use all cores.
type Writer struct {
	batch   Batch
	known   Haser
	encoder *chunkfile.Encoder // nil when chunks are stored uncompressed
	buffers buffers
}

var _ Putter = (*Writer)(nil)

// NewWriter returns a Writer to b. The caller must call Close.
func NewWriter(b Bucket, o WriterOptions) (*Writer, error) {
	w := &Writer{known: o.Known}
	if w.known == nil {
		w.known = statHaser{b}
	}
	if o.Compression == Zstd {
		encoder, err := chunkfile.NewEncoder(o.Level)
		if err != nil {
			return nil, err
		}
		w.encoder = encoder
	}
	if _, own := b.(Batcher); !own && o.Uploads != 0 {
		w.batch = NewUploads(b, UploadOptions{AtOnce: o.Uploads})
		return w, nil
	}
	batch, err := NewBatch(b)
	if err != nil {
		return nil, fmt.Errorf("writing to %v: %w", b, err)
	}
	w.batch = batch
	return w, nil
}

// Put implements Putter. The chunk is durable, and certain to be readable, after the next Commit.
// Put replaces an existing chunk, so that a damaged one can be repaired.
func (w *Writer) Put(ctx context.Context, d blob.Digest, data []byte) (stored int64, err error) {
	if len(data) == 0 {
		return 0, fmt.Errorf("putting chunk %v: a chunk has at least one byte", d)
	}
	if w.encoder == nil {
		return w.writeObject(ctx, ObjectName(d, false), data)
	}
	buf := w.buffers.get()
	defer w.buffers.put(buf)
	packed, err := w.encoder.Encode(*buf, data)
	if err != nil {
		return 0, fmt.Errorf("putting chunk %v: %w", d, err)
	}
	*buf = packed
	return w.writeObject(ctx, ObjectName(d, true), packed)
}

func (w *Writer) writeObject(ctx context.Context, name string, data []byte) (int64, error) {
	if err := w.batch.Write(ctx, name, data); err != nil {
		return 0, err
	}
	return int64(len(data)), nil
}

// PutRaw is Put of a chunk that was read from another store and verified to be d. It writes the
// stored bytes unchanged if the Writer compresses and they are one zstd frame, which every reader
// of stores can decode. Otherwise it stores Plain as Put does.
func (w *Writer) PutRaw(ctx context.Context, d blob.Digest, chunk *Raw) (stored int64, err error) {
	if w.encoder != nil && chunk.Packed && chunkfile.IsZstdFrame(chunk.Stored) {
		return w.writeObject(ctx, ObjectName(d, true), chunk.Stored)
	}
	return w.Put(ctx, d, chunk.Plain)
}

// Has reports whether the bucket holds the chunk under either of its names. It does not read the
// object, but an empty object does not count (see Chunks.Stat). A chunk that was put but not
// committed may or may not count.
func (w *Writer) Has(ctx context.Context, d blob.Digest) (bool, error) { return w.known.Has(ctx, d) }

// statHaser stats each chunk in a bucket: one request if it has the compressed chunk, two
// otherwise.
type statHaser struct{ r Reader }

func (a statHaser) Has(ctx context.Context, d blob.Digest) (bool, error) {
	_, _, err := findObject(ctx, a.r, d)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Commit makes every chunk that was put durable and readable.
func (w *Writer) Commit(ctx context.Context) error { return w.batch.Commit(ctx) }

// Close discards the chunks that were not committed. No other method may be called afterwards.
func (w *Writer) Close() error { return w.batch.Close() }
