package store

import (
	"context"
	"sync/atomic"
	"time"

	"cairn/blob"
)

// Cache gets chunks from near, and what near does not have from far, putting it into keep, which should be
// near's writing side. Near can only help: a chunk that is absent, corrupt or unreadable there comes from
// far and is put anew. The first failure to keep a chunk is told to failed; after each, nothing is kept for a
// while: a full disk may have room later. What keep took in is the owner's to commit and close.
func Cache(near Getter, keep Putter, far Getter, failed func(error)) Getter {
	return &cache{near: near, keep: keep, far: far, failed: failed}
}

type cache struct {
	near, far Getter
	keep      Putter
	failed    func(error)
	failing   atomic.Bool  // keep has failed before
	resume    atomic.Int64 // when to try keep again, in Unix nanoseconds
}

// keepAgain is how long keep is left alone after a failure.
const keepAgain = 10 * time.Second

func (c *cache) Get(ctx context.Context, d blob.Digest, dst []byte) error {
	if c.near.Get(ctx, d, dst) == nil {
		return nil
	}
	if err := c.far.Get(ctx, d, dst); err != nil {
		return err
	}
	c.put(ctx, d, dst)
	return nil
}

func (c *cache) put(ctx context.Context, d blob.Digest, data []byte) {
	if time.Now().UnixNano() < c.resume.Load() {
		return
	}
	_, err := c.keep.Put(ctx, d, data)
	if err == nil || ctx.Err() != nil {
		return
	}
	c.resume.Store(time.Now().Add(keepAgain).UnixNano())
	if !c.failing.Swap(true) {
		c.failed(err)
	}
}
