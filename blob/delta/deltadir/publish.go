// Package deltadir keeps the directory of the deltas of a store. It makes deltas and publishes them there, and
// verifies, counts and copies published ones. It knows nothing of flags or terminals.
package deltadir

import (
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/blob/release"
	"cairn/store"
)

// maxFile limits the bytes of a delta's file.
const maxFile = 1 << 40

// Outcome is what became of a delta.
type Outcome string

// The outcomes.
const (
	Made Outcome = "made"
	Held Outcome = "held" // there was one already, which stays
	None Outcome = "none" // it would save nothing, and is not published
	Same Outcome = "same" // the images are equal
)

// Options are the settings of Publish and EstimateDelta.
type Options struct {
	Workers  int                   // number of concurrent workers, at least 1
	Progress func(done, all int64) // as in delta.Options; may be nil
}

// Result describes a published delta.
type Result struct {
	Outcome    Outcome `json:"outcome"`
	Chunks     int     `json:"chunks"`             // that the delta encodes
	ChunkBytes int64   `json:"chunk_stored_bytes"` // of their files in the store
	FileBytes  int64   `json:"delta_bytes"`        // of the delta
	TableBytes int64   `json:"table_bytes"`        // of them, in its head and table
}

// Publish makes the delta between two images, and publishes it in a directory of deltas. If there is one
// already, perhaps of another encoder, it stays. On the list of the deltas to an image, an old image that
// was added later counts as newer. At most one Publish at a time may add to one list.
func Publish(ctx context.Context, dir store.Bucket, from, to *Image, o Options) (r Result, err error) {
	if from.Index.Digest() == to.Index.Digest() {
		return Result{Outcome: Same}, nil
	}
	d, err := readDelta(ctx, dir, to.Index, from.Index.Digest())
	switch {
	case err == nil:
		r = describe(Held, d)
	case errors.Is(err, store.ErrNotFound):
		r, err = makeDelta(ctx, dir, from, to, o)
	}
	if err != nil || r.Outcome == None {
		return r, err
	}
	for _, x := range []*blob.Index{from.Index, to.Index} {
		if err := createIndex(ctx, dir, to.Index, x); err != nil {
			return r, err
		}
	}
	return r, addToList(ctx, dir, to.Index, delta.NewBase(from.Index, r.FileBytes, r.TableBytes))
}

func describe(outcome Outcome, d *delta.Delta) Result {
	r := Result{Outcome: outcome, Chunks: d.Len(), FileBytes: d.FileSize(), TableBytes: d.HeadSize()}
	for _, row := range d.All() {
		r.ChunkBytes += row.Stored
	}
	return r
}

// readDelta reads head and table of a published delta, and checks the size of its file.
func readDelta(ctx context.Context, dir store.Reader, to *blob.Index, from blob.Digest) (d *delta.Delta, err error) {
	name := release.DeltaName(to.Digest(), from)
	err = store.Stream(ctx, dir, name, maxFile, func(r io.Reader) error {
		d, err = delta.Decode(r, to)
		return err
	})
	if err == nil {
		var size int64
		switch size, err = dir.Stat(ctx, name); {
		case d.Old != from:
			err = fmt.Errorf("%w: it is from the image of another index", delta.ErrInvalid)
		case errors.Is(err, store.ErrNoSize):
			err = nil
		case err == nil && size != d.FileSize():
			err = fmt.Errorf("%w: it has %d bytes instead of %d", delta.ErrInvalid, size, d.FileSize())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the delta %s in %v: %w", name, dir, err)
	}
	return d, nil
}

// makeDelta encodes a delta into a temporary file, decodes a sample of it from there, and creates it.
func makeDelta(ctx context.Context, dir store.Bucket, from, to *Image, o Options) (r Result, err error) {
	s, err := newSpool()
	if err != nil {
		return r, err
	}
	defer s.close()
	to.expect(from.Index)
	// The table comes before the payloads and is known after them. The unused bytes before it are a hole.
	out := &spoolWriter{to: s, off: delta.MaxHeadSize}
	made, err := delta.Make(ctx, delta.Image{Index: from.Index, Data: from}, delta.Image{Index: to.Index, Data: to},
		out, delta.Options{Workers: o.Workers, Progress: o.Progress})
	if err != nil {
		return r, err
	}
	head, err := delta.Encode(made.Head, made.Rows)
	if err != nil {
		return r, fmt.Errorf("making a delta: %w", err)
	}
	var saved int64
	for _, row := range made.Rows {
		saved += row.Stored - row.Size
	}
	if saved <= int64(len(head)) {
		return Result{Outcome: None}, nil
	}
	start := delta.MaxHeadSize - int64(len(head))
	if err := s.writeAt(head, start); err != nil {
		return r, err
	}
	data, unmap, err := s.view(start, int64(len(head))+made.Payloads)
	if err != nil {
		return r, err
	}
	defer unmap()
	d, err := checkFile(ctx, data, from, to.Index, sampled, o.Workers)
	if err != nil {
		return r, fmt.Errorf("checking the new delta: %w", err)
	}
	return createDelta(ctx, dir, d, to.Index, data)
}

// createDelta gives a delta its name, unless there is one of this name.
func createDelta(ctx context.Context, dir store.Bucket, d *delta.Delta, to *blob.Index, data []byte) (Result, error) {
	err := create(ctx, dir, release.DeltaName(d.New, d.Old), data)
	if errors.Is(err, store.ErrExists) {
		there, err := readDelta(ctx, dir, to, d.Old)
		if err != nil {
			return Result{}, err
		}
		return describe(Held, there), nil
	}
	if err != nil {
		return Result{}, fmt.Errorf("writing a delta: %w", err)
	}
	return describe(Made, d), nil
}

// create writes a new object, or returns store.ErrExists. If the bucket is not a store.Creator, a
// concurrent writer's object may be replaced.
func create(ctx context.Context, b store.Bucket, name string, data []byte) error {
	if creator, can := store.As[store.Creator](b); can {
		err := creator.Create(ctx, name, data)
		if !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	_, err := b.Stat(ctx, name)
	switch {
	case err == nil || errors.Is(err, store.ErrNoSize):
		return store.ErrExists
	case errors.Is(err, store.ErrNotFound):
		return b.Write(ctx, name, data)
	}
	return err
}

// createIndex writes the copy of an index beside the deltas to an image, unless it is there. A damaged
// copy is replaced.
func createIndex(ctx context.Context, dir store.Bucket, to, x *blob.Index) error {
	name := release.DeltaIndexName(to.Digest(), x.Digest())
	err := create(ctx, dir, name, x.Encode())
	if !errors.Is(err, store.ErrExists) {
		return err
	}
	_, err = release.ReadDeltaIndex(ctx, dir, to.Digest(), x.Digest(), blob.MaxChunks)
	if errors.Is(err, blob.ErrInvalid) {
		return dir.Write(ctx, name, x.Encode())
	}
	return err
}
