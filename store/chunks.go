package store

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/blob"
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
	r        Reader
	summer   summer
	unpacker unpacker
	buffers  buffers
}

var (
	_ Getter     = (*Chunks)(nil)
	_ ManyGetter = (*Chunks)(nil)
)

// NewChunks reads chunks named by algorithm's digests from r.
func NewChunks(r Reader, algorithm blob.Algorithm) *Chunks {
	return &Chunks{r: r, summer: summer{algorithm: algorithm}, unpacker: newUnpacker()}
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
	if err := c.read(ctx, d, dst); err != nil {
		return err
	}
	if got := c.summer.sum(dst); got != d {
		return c.explain(d, content{fmt.Errorf("its %v digest is %v", c.summer.algorithm, got)})
	}
	return nil
}

// read fills dst with what the store has for a chunk, which is not proven.
func (c *Chunks) read(ctx context.Context, d blob.Digest, dst []byte) error {
	err := c.getPacked(ctx, packedName(d), dst)
	switch {
	case errors.Is(err, ErrNotFound):
		err = c.getPlain(ctx, plainName(d), dst)
	case errors.Is(err, content{errEmpty}): // it counts as none, see Stat
		if plainErr := c.getPlain(ctx, plainName(d), dst); !errors.Is(plainErr, ErrNotFound) {
			err = plainErr
		}
	}
	if err != nil {
		return c.explain(d, err)
	}
	return nil
}

// GetMany implements ManyGetter. It reads all before it hashes any, which fills the processor's lanes best.
func (c *Chunks) GetMany(ctx context.Context, wants []Want, slots Slots) error {
	err := each(ctx, wants, slots, func(ctx context.Context, w Want) error {
		err := c.read(ctx, w.Digest, w.Dst)
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

func (c *Chunks) getPacked(ctx context.Context, name string, dst []byte) error {
	buf := c.buffers.get()
	defer c.buffers.put(buf)
	packed, err := c.r.Read(ctx, name, (*buf)[:0], packedLimit(len(dst)))
	if err != nil {
		return err
	}
	*buf = packed
	err = c.unpacker.unpack(dst, packed)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errors.ErrUnsupported):
		return fmt.Errorf("reading %s in %v: %w", name, c.r, err)
	}
	return content{err}
}

func (c *Chunks) getPlain(ctx context.Context, name string, dst []byte) error {
	plain, err := c.r.Read(ctx, name, dst[:0:len(dst)], int64(len(dst)))
	if err != nil {
		return err
	}
	if len(plain) == 0 || len(plain) != len(dst) {
		return content{sizeError(len(plain), len(dst))}
	}
	copy(dst, plain) // a no-op unless the reader moved it
	return nil
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
// casync never flushes what it writes, and a power cut leaves empty files under final names.
func (c *Chunks) Stat(ctx context.Context, d blob.Digest) (stored int64, err error) {
	return stat(ctx, c.r, d)
}

func stat(ctx context.Context, r Reader, d blob.Digest) (int64, error) {
	for _, name := range []string{packedName(d), plainName(d)} {
		size, err := r.Stat(ctx, name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return 0, err
		}
		if err == nil && size > 0 {
			return size, nil
		}
	}
	return 0, fmt.Errorf("chunk %v in %v: %w", d, r, ErrNotFound)
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
