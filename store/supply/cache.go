package supply

import (
	"context"
	"sync/atomic"
	"time"

	"cairn/store"
)

// Cached returns a Getter that gets chunks from near, and on a miss from far. It puts chunks
// fetched from far into keep, which is near's writing side. A chunk that is absent, corrupt or
// unreadable in near counts as a miss and is put again.
//
// The first failure of keep is reported to failed. After each failure Cached puts no chunk for 10
// s; a full disk may have room later. The caller commits and closes keep.
func Cached(far, near store.Getter, keep store.Putter, failed func(error)) store.Getter {
	return &cache{near: near, far: far, keep: keep, failed: failed}
}

type cache struct {
	near, far store.Getter
	keep      store.Putter
	failed    func(error)
	failing   atomic.Bool               // keep has failed at least once
	resume    atomic.Pointer[time.Time] // when to use keep again; nil before the first failure
}

// keepAgain is the pause after a failure of keep.
const keepAgain = 10 * time.Second

// Get implements store.Getter.
func (c *cache) Get(ctx context.Context, wants []store.Want, done func(i int, err error)) {
	missing := getIndexed(ctx, c.near, wants, allIndexes(len(wants)), func(i int, err error) (miss bool) {
		if err != nil {
			return true
		}
		done(i, nil)
		return false
	})
	if len(missing) == 0 {
		return
	}
	getIndexed(ctx, c.far, wants, missing, func(i int, err error) bool {
		if err == nil {
			c.putChunk(ctx, wants[i])
		}
		done(i, err)
		return false
	})
}

func (c *cache) putChunk(ctx context.Context, w store.Want) {
	if resume := c.resume.Load(); resume != nil && time.Now().Before(*resume) {
		return
	}
	_, err := c.keep.Put(ctx, w.Digest, w.Dst)
	if err == nil || ctx.Err() != nil {
		return
	}
	resume := time.Now().Add(keepAgain)
	c.resume.Store(&resume)
	if !c.failing.Swap(true) {
		c.failed(err)
	}
}
