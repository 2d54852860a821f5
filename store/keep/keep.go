// Package keep looks after stores: it hashes again what they hold and repairs it from others (Verify), counts it
// (Stat), and copies it from one store to another (Copy). Memory does not grow with a store: what it holds is
// listed and worked off in shards. The package knows indexes as lists of chunks, and nothing of images, devices
// or where indexes lie.
package keep

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/store"
)

// ErrCannotList says that a store cannot tell what it holds, as a plain web server cannot. With indexes, which
// say what to look for, it need not.
var ErrCannotList = errors.New("it cannot be listed")

func listerOf(r store.Reader) (store.Lister, error) {
	l, can := store.As[store.Lister](r)
	if !can {
		return nil, fmt.Errorf("%v: %w", r, ErrCannotList)
	}
	return l, nil
}

// Kind is what is wrong with an object.
type Kind string

const (
	Damaged  Kind = "damaged"  // its bytes are not what its name says
	Empty    Kind = "empty"    // it has no byte: what a power cut leaves of a file that was not flushed
	Missing  Kind = "missing"  // an index has it, and the store has not
	Unknown  Kind = "unknown"  // it is compressed in a way that cannot be read without knowing its size
	Misnamed Kind = "misnamed" // it is called like a chunk and lies in another's directory
)

// Fate is what was done about it.
type Fate string

const (
	Left     Fate = ""
	Repaired Fate = "repaired" // replaced by the proven chunk of another store
	Removed  Fate = "removed"
)

// Finding is an object that is not as it should be.
type Finding struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"` // in the store
	Fate Fate   `json:"fate,omitempty"`
	Why  string `json:"why,omitempty"`
}

// MostFindings is how many findings are worth keeping, for a result or a Mark.
const MostFindings = 10_000

// Others are objects that are no chunks.
type Others struct {
	Objects int64    `json:"objects"`
	Bytes   int64    `json:"bytes"`
	First   []string `json:"first,omitempty"` // the names of some
}

// firsts is how many names are kept of objects that are no chunks.
const firsts = 10

func (o *Others) add(more Others) {
	o.Objects += more.Objects
	o.Bytes += more.Bytes
	for _, name := range more.First {
		if len(o.First) < firsts {
			o.First = append(o.First, name)
		}
	}
}

func (o *Others) count(object store.Object) {
	o.add(Others{1, object.Size, []string{object.Name}})
}

// stretch is how many chunks are worked off before what was done is made durable and noted.
const stretch = 8192

// together is how many chunks a worker hashes at once, which is several times cheaper than one by one.
const together = 8

// work hands runs of up to together of n things to workers, until one fails.
func work(ctx context.Context, n, workers int, worker func() func(ctx context.Context, lo, hi int) error) error {
	var next atomic.Int64
	run := min(max(n/(4*max(workers, 1)), 1), together)
	group, groupCtx := errgroup.WithContext(ctx)
	for range min(max(workers, 1), n) {
		group.Go(func() error {
			do := worker()
			for groupCtx.Err() == nil {
				hi := int(next.Add(int64(run)))
				lo := hi - run
				if lo >= n {
					return nil
				}
				if err := do(groupCtx, lo, min(hi, n)); err != nil {
					return err
				}
			}
			return groupCtx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// chunk is one that is to be read.
type chunk struct {
	digest blob.Digest
	size   int64 // 0 when it is not known
	form   form
}

// form says under which of its names a chunk is.
type form uint8

const (
	either form = iota // it has to be looked for
	packed
	plain
)

func (c chunk) name() string { return store.ObjectName(c.digest, c.form != plain) }
