package store

import (
	"context"
	"errors"
	"fmt"

	"cairn/blob"
	"cairn/store/chunkfile"
)

// Raw is a chunk as read from a store. The next Load into it reuses its memory.
type Raw struct {
	Packed bool   // Stored is compressed
	Stored []byte // the object
	Plain  []byte // the decompressed bytes; not verified
	// Suspicion is the error to return when Plain is not the chunk; nil unless a header
	// contradicted the object.
	Suspicion error
	// Limit is the largest decompressed size to load if the size is unknown. An object that is
	// larger, or does not declare its size, is an errors.ErrUnsupported. 0 is the largest chunk.
	Limit int

	unpacked []byte // memory for Plain
}

// Load reads and decompresses one object of a chunk. The size is that of the chunk, or 0 if it is
// unknown; then the largest possible chunk bounds memory. The caller must hash Plain. Absence is
// ErrNotFound; an object that cannot be decompressed is a *CorruptError.
func (c *Chunks) Load(ctx context.Context, d blob.Digest, packed bool, size int64, into *Raw) error {
	into.Packed = packed
	maxSize := size
	if maxSize == 0 {
		maxSize = blob.MaxChunkSize
	}
	limit := maxSize
	if packed {
		limit = chunkfile.Limit(int(maxSize))
	}
	stored, err := c.r.Read(ctx, ObjectName(d, packed), into.Stored[:0], limit)
	into.Suspicion, err = splitSuspicion(err)
	if err == nil {
		into.Stored = stored
		err = c.decompress(int(size), into)
	}
	if _, wrong := errors.AsType[contentError](err); wrong && into.Suspicion != nil && len(stored) > 0 {
		return into.Suspicion
	}
	if err != nil {
		return c.describeError(d, err)
	}
	return nil
}

// decompress sets Plain from Stored.
func (c *Chunks) decompress(size int, into *Raw) (err error) {
	if !into.Packed {
		into.Plain = into.Stored
		err = chunkfile.CheckPlain(len(into.Plain), size)
	} else {
		if size == 0 && into.Limit > 0 {
			declared, known, err := chunkfile.DeclaredSize(into.Stored)
			if err == nil && (!known || declared > uint64(into.Limit)) {
				return fmt.Errorf("reading %v: the size exceeds %d: %w", c.r, into.Limit, errors.ErrUnsupported)
			}
		}
		into.unpacked, err = c.decoder.DecodeInto(into.unpacked, into.Stored, size)
		into.Plain = into.unpacked
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("reading %v: %w", c.r, err)
	}
	if err != nil {
		return contentError{err}
	}
	return nil
}
