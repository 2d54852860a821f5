//go:build libzstd

package store

import (
	"runtime"

	"github.com/DataDog/zstd"
)

// libContexts keeps libzstd's contexts: at most one for each thread that runs Go, each made when it is first
// needed. They serve to compress and to decompress, and what they hold for either is allocated by its use.
type libContexts chan zstd.Ctx

func newContexts() libContexts {
	c := make(libContexts, runtime.GOMAXPROCS(0))
	for range cap(c) {
		c <- nil
	}
	return c
}

// take waits until a context is free. It is to be put back.
func (c libContexts) take() zstd.Ctx {
	if idle := <-c; idle != nil {
		return idle
	}
	return zstd.NewCtx()
}

func (c libContexts) put(idle zstd.Ctx) { c <- idle }

// libEncoder compresses with libzstd.
type libEncoder struct {
	level    int
	contexts libContexts
}

func newEncoder(level int) (encoder, error) { return libEncoder{level, newContexts()}, nil }

// encode writes the content's size into the frame, and makes one segment of what fits the level's window,
// which at every level is more than a chunk of usual size.
func (e libEncoder) encode(dst, data []byte) ([]byte, error) {
	c := e.contexts.take()
	defer e.contexts.put(c)
	return c.CompressLevel(dst, data, e.level)
}

// libDecoder decompresses with libzstd.
type libDecoder struct{ contexts libContexts }

func newDecoder() decoder { return libDecoder{newContexts()} }

// decode uses dst as the window, so that a frame that claims a large one gets none.
func (d libDecoder) decode(dst, frame []byte) (int, error) {
	c := d.contexts.take()
	defer d.contexts.put(c)
	n, err := c.DecompressInto(dst, frame)
	if err != nil {
		return 0, err
	}
	return n, nil
}
