package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/blob"
	"cairn/store/chunkfile"
)

// Chunks is a casync chunk store in a Reader: it reads chunks by digest. It prefers a compressed
// chunk and falls back to the plain one. Safe for concurrent use.
type Chunks struct {
	r       Reader
	slots   chan struct{} // limits the chunks that are read at once
	hasher  groupHasher
	decoder *chunkfile.Decoder
	buffers buffers
}

var _ Getter = (*Chunks)(nil)

// defaultReads is the default limit of chunks that are read at once.
const defaultReads = 32

// NewChunks reads chunks named by algorithm's digests from r, at most 32 at once.
func NewChunks(r Reader, algorithm blob.Algorithm) *Chunks {
	return NewChunksAtOnce(r, algorithm, defaultReads)
}

// NewChunksAtOnce is NewChunks with the given limit of chunks that are read at once.
func NewChunksAtOnce(r Reader, algorithm blob.Algorithm, limit int) *Chunks {
	return &Chunks{r: r, slots: make(chan struct{}, limit), hasher: groupHasher{algorithm: algorithm}, decoder: chunkfile.NewDecoder()}
}

// Get implements Getter. Its memory is bounded by that of the wants, whatever the store answers. It
// reads a corrupt chunk a second time, since the transfer may have damaged it. Get reads several
// chunks before it hashes them together, which fills the processor's SIMD lanes.
func (c *Chunks) Get(ctx context.Context, wants []Want, done func(i int, err error)) {
	if len(wants) == 1 {
		done(0, c.withSlot(ctx, func() error {
			err := c.getOnce(ctx, wants[0])
			if isCorrupt(err) {
				err = c.getOnce(ctx, wants[0])
			}
			return err
		}))
		return
	}
	failed := make([]error, len(wants))
	Each(len(wants), cap(c.slots), func(i int) {
		failed[i] = c.withSlot(ctx, func() error {
			_, err := c.readUnverified(ctx, wants[i].Digest, wants[i].Dst) // getOnce reports the suspicion if the digest is wrong
			return err
		})
	})
	sums := c.sumAll(wants, failed)
	Each(len(wants), cap(c.slots), func(i int) {
		if isCorrupt(failed[i]) || failed[i] == nil && sums[i] != wants[i].Digest {
			failed[i] = c.withSlot(ctx, func() error { return c.getOnce(ctx, wants[i]) })
		}
		done(i, failed[i])
	})
}

// withSlot blocks until a slot is free, then calls read.
func (c *Chunks) withSlot(ctx context.Context, read func() error) error {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
		return read()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sumAll returns the digests of the wants that did not fail.
func (c *Chunks) sumAll(wants []Want, failed []error) []blob.Digest {
	data, sums := make([][]byte, len(wants)), make([]blob.Digest, len(wants))
	for i, w := range wants {
		if failed[i] == nil {
			data[i] = w.Dst
		}
	}
	c.hasher.algorithm.SumAll(sums, data)
	return sums
}

func (c *Chunks) getOnce(ctx context.Context, w Want) error {
	suspicion, err := c.readUnverified(ctx, w.Digest, w.Dst)
	if err != nil {
		return err
	}
	got := c.hasher.sum(w.Dst)
	switch {
	case got == w.Digest:
		return nil
	case suspicion != nil:
		return suspicion
	}
	return c.describeError(w.Digest, contentError{fmt.Errorf("its %v digest is %v", c.hasher.algorithm, got)})
}

// readUnverified fills dst with the store's bytes of a chunk, which are not verified. If the
// answer's header contradicted the bytes, suspicion is the error to return when the digest is
// wrong.
func (c *Chunks) readUnverified(ctx context.Context, d blob.Digest, dst []byte) (suspicion, err error) {
	suspicion, err = c.readPacked(ctx, ObjectName(d, true), dst)
	switch {
	case errors.Is(err, ErrNotFound):
		suspicion, err = c.readPlain(ctx, ObjectName(d, false), dst)
	case errors.Is(err, contentError{chunkfile.ErrEmpty}): // an empty object counts as absent, see Stat
		if reason, plainErr := c.readPlain(ctx, ObjectName(d, false), dst); !errors.Is(plainErr, ErrNotFound) {
			suspicion, err = reason, plainErr
		}
	}
	if err != nil {
		return nil, c.describeError(d, err)
	}
	return suspicion, nil
}

// contentError marks an error in the bytes that were read, as opposed to a failed read.
type contentError struct{ error }

func (c *Chunks) readPacked(ctx context.Context, name string, dst []byte) (suspicion, err error) {
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
	return nil, contentError{err}
}

func (c *Chunks) readPlain(ctx context.Context, name string, dst []byte) (suspicion, err error) {
	plain, err := c.r.Read(ctx, name, dst[:0:len(dst)], int64(len(dst)))
	if suspicion, err = splitSuspicion(err); err != nil {
		return nil, err
	}
	err = chunkfile.CheckPlain(len(plain), len(dst))
	switch {
	case err == nil:
		copy(dst, plain) // a no-op unless the reader moved the bytes
		return suspicion, nil
	case suspicion != nil && len(plain) > 0:
		return nil, suspicion
	}
	return nil, contentError{err}
}

// describeError converts an error to one that Get documents. A reader's own error names the object
// already.
func (c *Chunks) describeError(d blob.Digest, err error) error {
	name := fmt.Sprintf("chunk %v in %v", d, c.r)
	if wrong, ok := errors.AsType[contentError](err); ok {
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

// Stat returns the stored size of a chunk in bytes; absence is ErrNotFound. An empty object counts
// as absent: casync never flushes its files, and a power cut leaves empty files under final names.
// Stat reads the chunk if the store does not report its size.
func (c *Chunks) Stat(ctx context.Context, d blob.Digest) (stored int64, err error) {
	name, stored, err := findObject(ctx, c.r, d)
	if err != nil || stored != sizeUnknown {
		return stored, err
	}
	buf := c.buffers.get()
	defer c.buffers.put(buf)
	object, err := c.r.Read(ctx, name, (*buf)[:0], chunkfile.Limit(blob.MaxChunkSize))
	if _, err = splitSuspicion(err); err != nil {
		return 0, c.describeError(d, err)
	}
	*buf = object
	if len(object) == 0 {
		return 0, fmt.Errorf("chunk %v in %v: %w", d, c.r, ErrNotFound)
	}
	return int64(len(object)), nil
}

// sizeUnknown is the size of an existing object whose size the store does not report.
const sizeUnknown = -1

// findObject stats a chunk under both of its names, and returns the first name with an object that
// is not empty.
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

// statObject returns the size of one object of a chunk. If the answer looks like a login form, the
// object counts only when its bytes are the chunk.
func statObject(ctx context.Context, r Reader, d blob.Digest, packed bool) (int64, error) {
	size, err := r.Stat(ctx, ObjectName(d, packed))
	switch {
	case errors.Is(err, ErrNoSize):
		return sizeUnknown, nil
	case IsSuspect(err) && size == 0:
		return 0, nil
	case IsSuspect(err):
		return verifyObject(ctx, r, d, packed)
	}
	return size, err
}

// buffers pools buffers for compressed chunks. The zero value is ready.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *[]byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return p
	}
	return new([]byte)
}

func (b *buffers) put(p *[]byte) { b.pool.Put(p) }
