//go:build libzstd

package chunkfile

import (
	"runtime"

	"github.com/DataDog/zstd"
)

// libContexts is a pool of libzstd contexts. It creates a context on first use, and at most
// GOMAXPROCS of them. A context can compress and decompress, and allocates the memory for either on
// first use.
type libContexts chan zstd.Ctx

func newContexts() libContexts {
	c := make(libContexts, runtime.GOMAXPROCS(0))
	for range cap(c) {
		c <- nil
	}
	return c
}

// acquire blocks until a context is free. The caller must release it.
func (c libContexts) acquire() zstd.Ctx {
	if idle := <-c; idle != nil {
		return idle
	}
	return zstd.NewCtx()
}

func (c libContexts) release(idle zstd.Ctx) { c <- idle }

// libEncoder compresses with libzstd.
type libEncoder struct {
	level    int
	contexts libContexts
}

func newZstdEncoder(level int) (zstdEncoder, error) { return libEncoder{level, newContexts()}, nil }

// encode writes the content size into the frame. It makes one segment of data that fits the level's
// window, which at every level is larger than a chunk of usual size.
func (e libEncoder) encode(dst, data []byte) ([]byte, error) {
	c := e.contexts.acquire()
	defer e.contexts.release(c)
	return c.CompressLevel(dst, data, e.level)
}

// libDecoder decompresses with libzstd.
type libDecoder struct{ contexts libContexts }

func newZstdDecoder() zstdDecoder { return libDecoder{newContexts()} }

// decode uses dst as the window, so a frame that declares a large window gets no memory for it.
func (d libDecoder) decode(dst, frame []byte) (int, error) {
	c := d.contexts.acquire()
	defer d.contexts.release(c)
	n, err := c.DecompressInto(dst, frame)
	if err != nil {
		return 0, err
	}
	return n, nil
}
