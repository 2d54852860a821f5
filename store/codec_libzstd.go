//go:build libzstd

package store

import (
	"runtime"

	"github.com/DataDog/zstd"
)

// libEncoder compresses with libzstd, whose contexts are kept: at most one for each thread that runs Go.
type libEncoder struct {
	level int
	idle  chan zstd.Ctx
}

func newEncoder(level int) (encoder, error) {
	e := &libEncoder{level, make(chan zstd.Ctx, runtime.GOMAXPROCS(0))}
	for range cap(e.idle) {
		e.idle <- zstd.NewCtx()
	}
	return e, nil
}

// encode writes the content's size into the frame, and makes one segment of what fits the level's window,
// which at every level is more than a chunk of usual size.
func (e *libEncoder) encode(dst, data []byte) ([]byte, error) {
	c := <-e.idle
	defer func() { e.idle <- c }()
	return c.CompressLevel(dst, data, e.level)
}
