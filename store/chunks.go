package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/blob"
	"cairn/store/chunkfile"
)

// Chunks is a Reader seen through digests: a casync chunk store. Compressed chunks are preferred, plain ones
// are read where there is no compressed one. Safe for concurrent use.
type Chunks struct {
	r       Reader
	slots   chan struct{} // as many as chunks may be read at once
	summer  summer
	decoder *chunkfile.Decoder
	buffers buffers
}

var _ Getter = (*Chunks)(nil)

// defaultReads is how many chunks are read at once.
const defaultReads = 32

// NewChunks reads chunks named by algorithm's digests from r, up to 32 at once.
func NewChunks(r Reader, algorithm blob.Algorithm) *Chunks {
	return NewChunksAtOnce(r, algorithm, defaultReads)
}

// NewChunksAtOnce is NewChunks with another limit of chunks that are read at once.
func NewChunksAtOnce(r Reader, algorithm blob.Algorithm, limit int) *Chunks {
	return &Chunks{r: r, slots: make(chan struct{}, limit), summer: summer{algorithm: algorithm}, decoder: chunkfile.NewDecoder()}
}

// Get implements Getter. Its memory is bounded by that of the wants, whatever the store answers. A corrupt chunk is read
// once more, since it may have been damaged on its way. Many chunks are all read before they are hashed together, which
// fills the processor's lanes.
func (c *Chunks) Get(ctx context.Context, wants []Want, done func(i int, err error)) {
	if len(wants) == 1 {
		done(0, c.inSlot(ctx, func() error { return c.getTwice(ctx, wants[0]) }))
		return
	}
	failed := make([]error, len(wants))
	Each(len(wants), cap(c.slots), func(i int) {
		failed[i] = c.inSlot(ctx, func() error {
			_, err := c.read(ctx, wants[i].Digest, wants[i].Dst) // a suspicion is for get, when the digest is wrong
			return err
		})
	})
	sums := c.sumAll(wants, failed)
	Each(len(wants), cap(c.slots), func(i int) {
		if isCorrupt(failed[i]) || failed[i] == nil && sums[i] != wants[i].Digest {
			failed[i] = c.inSlot(ctx, func() error { return c.get(ctx, wants[i]) })
		}
		done(i, failed[i])
	})
}

// inSlot calls read when fewer others run than there may.
func (c *Chunks) inSlot(ctx context.Context, read func() error) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
		return read()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// getTwice gets a chunk, and gets it once more if it is corrupt.
func (c *Chunks) getTwice(ctx context.Context, w Want) error {
	err := c.get(ctx, w)
	if isCorrupt(err) {
		err = c.get(ctx, w)
	}
	return err
}

// sumAll returns the digests of the wants that did not fail.
func (c *Chunks) sumAll(wants []Want, failed []error) []blob.Digest {
	data, sums := make([][]byte, len(wants)), make([]blob.Digest, len(wants))
	for i, w := range wants {
		if failed[i] == nil {
			data[i] = w.Dst
		}
	}
	c.summer.algorithm.SumAll(sums, data)
	return sums
}

func (c *Chunks) get(ctx context.Context, w Want) error {
	suspicion, err := c.read(ctx, w.Digest, w.Dst)
	if err != nil {
		return err
	}
	got := c.summer.sum(w.Dst)
	switch {
	case got == w.Digest:
		return nil
	case suspicion != nil:
		return suspicion
	}
	return c.explain(w.Digest, content{fmt.Errorf("its %v digest is %v", c.summer.algorithm, got)})
}

// read fills dst with what the store has for a chunk, which is not proven. The suspicion is the error to return when
// the digest is wrong, if the answer's header contradicted the bytes.
func (c *Chunks) read(ctx context.Context, d blob.Digest, dst []byte) (suspicion, err error) {
	suspicion, err = c.getPacked(ctx, ObjectName(d, true), dst)
	switch {
	case errors.Is(err, ErrNotFound):
		suspicion, err = c.getPlain(ctx, ObjectName(d, false), dst)
	case errors.Is(err, content{chunkfile.ErrEmpty}): // it counts as none, see Stat
		if reason, plainErr := c.getPlain(ctx, ObjectName(d, false), dst); !errors.Is(plainErr, ErrNotFound) {
			suspicion, err = reason, plainErr
		}
	}
	if err != nil {
		return nil, c.explain(d, err)
	}
	return suspicion, nil
}

// content marks an error about what was read, as opposed to one of reading.
type content struct{ error }

func (c *Chunks) getPacked(ctx context.Context, name string, dst []byte) (suspicion, err error) {
	buf := c.buffers.get()
	defer c.buffers.put(buf)
	packed, err := c.r.Read(ctx, name, (*buf)[:0], chunkfile.Limit(len(dst)))
	if suspicion, err = splitSuspicion(err); err != nil {
		return nil, err
	}
	*buf = packed
	err = c.decoder.Decode(dst, packed)
	switch {
	case err == nil:
		return suspicion, nil
	case errors.Is(err, errors.ErrUnsupported):
		return nil, fmt.Errorf("reading %s in %v: %w", name, c.r, err)
	case suspicion != nil && len(packed) > 0:
		return nil, suspicion
	}
	return nil, content{err}
}

func (c *Chunks) getPlain(ctx context.Context, name string, dst []byte) (suspicion, err error) {
	plain, err := c.r.Read(ctx, name, dst[:0:len(dst)], int64(len(dst)))
	if suspicion, err = splitSuspicion(err); err != nil {
		return nil, err
	}
	err = chunkfile.CheckPlain(len(plain), len(dst))
	switch {
	case err == nil:
		copy(dst, plain) // a no-op unless the reader moved it
		return suspicion, nil
	case suspicion != nil && len(plain) > 0:
		return nil, suspicion
	}
	return nil, content{err}
}

// explain makes of an error what Get promises. A reader's own error names the object already.
func (c *Chunks) explain(d blob.Digest, err error) error {
	name := fmt.Sprintf("chunk %v in %v", d, c.r)
	if wrong, ok := errors.AsType[content](err); ok {
		return &CorruptError{Name: name, Err: wrong.error}
	}
	switch {
	case errors.Is(err, ErrTooLarge):
		return &CorruptError{Name: name, Err: err}
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	return err
}

// Stat is the size of a chunk as it is stored, in bytes; absence is ErrNotFound. An empty object is none:
// casync never flushes what it writes, and a power cut leaves empty files under final names. A chunk whose size the
// store does not tell is read.
func (c *Chunks) Stat(ctx context.Context, d blob.Digest) (stored int64, err error) {
	name, stored, err := findObject(ctx, c.r, d)
	if err != nil || stored != sizeUntold {
		return stored, err
	}
	buf := c.buffers.get()
	defer c.buffers.put(buf)
	object, err := c.r.Read(ctx, name, (*buf)[:0], chunkfile.Limit(blob.MaxChunkSize))
	if _, err = splitSuspicion(err); err != nil {
		return 0, c.explain(d, err)
	}
	*buf = object
	if len(object) == 0 {
		return 0, fmt.Errorf("chunk %v in %v: %w", d, c.r, ErrNotFound)
	}
	return int64(len(object)), nil
}

// sizeUntold is the size of an object that is there, of which the store does not say how large it is.
const sizeUntold = -1

// findObject asks for a chunk under both of its names, and returns the one that it has.
func findObject(ctx context.Context, r Reader, d blob.Digest) (name string, size int64, err error) {
	for _, packed := range []bool{true, false} {
		size, err := statObject(ctx, r, d, packed)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return "", 0, err
		}
		if err == nil && size != 0 {
			return ObjectName(d, packed), size, nil
		}
	}
	return "", 0, fmt.Errorf("chunk %v in %v: %w", d, r, ErrNotFound)
}

// statObject is the size of one object of a chunk. The word of an answer that looks like a login form counts only
// when the bytes are the chunk.
func statObject(ctx context.Context, r Reader, d blob.Digest, packed bool) (int64, error) {
	size, err := r.Stat(ctx, ObjectName(d, packed))
	switch {
	case errors.Is(err, ErrNoSize):
		return sizeUntold, nil
	case IsSuspect(err) && size == 0:
		return 0, nil
	case IsSuspect(err):
		return proveObject(ctx, r, d, packed)
	}
	return size, err
}

// buffers keeps buffers for compressed chunks between uses. The zero value is ready.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *[]byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return p
	}
	return new([]byte)
}

func (b *buffers) put(p *[]byte) { b.pool.Put(p) }
