package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/blob"
	"cairn/store/chunkfile"
)

// packedSuffix ends the name of a compressed chunk, whatever the codec; a plain chunk has no suffix.
const packedSuffix = ".cacnk"

// plainName is where casync keeps a chunk that is not compressed: abcd/<64 hexadecimal digits>.
func plainName(d blob.Digest) string {
	hex := d.String()
	return hex[:4] + "/" + hex
}

func packedName(d blob.Digest) string { return plainName(d) + packedSuffix }

// Chunks is a Reader seen through digests: a casync chunk store. Compressed chunks are preferred, plain ones
// are read where there is no compressed one. Safe for concurrent use.
type Chunks struct {
	r       Reader
	summer  summer
	decoder *chunkfile.Decoder
	buffers buffers
}

var (
	_ Getter     = (*Chunks)(nil)
	_ ManyGetter = (*Chunks)(nil)
)

// NewChunks reads chunks named by algorithm's digests from r.
func NewChunks(r Reader, algorithm blob.Algorithm) *Chunks {
	return &Chunks{r: r, summer: summer{algorithm: algorithm}, decoder: chunkfile.NewDecoder()}
}

// Get implements Getter. Memory is bounded by len(dst), whatever the store answers. A corrupt chunk is read
// once more, since it may have been damaged on its way.
func (c *Chunks) Get(ctx context.Context, d blob.Digest, dst []byte) error {
	err := c.get(ctx, d, dst)
	if _, corrupt := errors.AsType[*CorruptError](err); corrupt {
		return c.get(ctx, d, dst)
	}
	return err
}

func (c *Chunks) get(ctx context.Context, d blob.Digest, dst []byte) error {
	suspicion, err := c.read(ctx, d, dst)
	if err != nil {
		return err
	}
	got := c.summer.sum(dst)
	switch {
	case got == d:
		return nil
	case suspicion != nil:
		return suspicion
	}
	return c.explain(d, content{fmt.Errorf("its %v digest is %v", c.summer.algorithm, got)})
}

// read fills dst with what the store has for a chunk, which is not proven. The suspicion is the error to return when
// the digest is wrong, if the answer's header contradicted the bytes.
func (c *Chunks) read(ctx context.Context, d blob.Digest, dst []byte) (suspicion, err error) {
	suspicion, err = c.getPacked(ctx, packedName(d), dst)
	switch {
	case errors.Is(err, ErrNotFound):
		suspicion, err = c.getPlain(ctx, plainName(d), dst)
	case errors.Is(err, content{chunkfile.ErrEmpty}): // it counts as none, see Stat
		if reason, plainErr := c.getPlain(ctx, plainName(d), dst); !errors.Is(plainErr, ErrNotFound) {
			suspicion, err = reason, plainErr
		}
	}
	if err != nil {
		return nil, c.explain(d, err)
	}
	return suspicion, nil
}

// GetMany implements ManyGetter. It reads all before it hashes any, which fills the processor's lanes best.
func (c *Chunks) GetMany(ctx context.Context, wants []Want, slots Slots) error {
	err := each(ctx, wants, slots, func(ctx context.Context, w Want) error {
		_, err := c.read(ctx, w.Digest, w.Dst) // what is wrong is read again, and explained then
		if _, corrupt := errors.AsType[*CorruptError](err); corrupt {
			return c.get(ctx, w.Digest, w.Dst)
		}
		return err
	})
	if err != nil {
		return err
	}
	return each(ctx, c.wrong(wants), slots, func(ctx context.Context, w Want) error {
		return c.get(ctx, w.Digest, w.Dst)
	})
}

// wrong lists those of the wants whose bytes are not right.
func (c *Chunks) wrong(wants []Want) (wrong []Want) {
	data, sums := make([][]byte, len(wants)), make([]blob.Digest, len(wants))
	for i, w := range wants {
		data[i] = w.Dst
	}
	c.summer.algorithm.SumAll(sums, data)
	for i, w := range wants {
		if sums[i] != w.Digest {
			wrong = append(wrong, w)
		}
	}
	return wrong
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
	case isSuspect(err) && size == 0:
		return 0, nil
	case isSuspect(err):
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
