// Package keep maintains stores. Verify hashes a store's chunks and repairs them from other stores,
// Stat counts them, and Copy copies them to another store. Memory does not grow with a store,
// because its objects are listed and processed in shards. The package knows indexes as lists of
// chunks. It knows nothing of images, devices or the locations of indexes.
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

// ErrCannotList reports that a store, such as a plain web server, cannot list its objects. With
// indexes, which name the chunks, no listing is needed.
var ErrCannotList = errors.New("it cannot be listed")

func listerOf(r store.Reader) (store.Lister, error) {
	l, can := store.As[store.Lister](r)
	if !can {
		return nil, fmt.Errorf("%v: %w", r, ErrCannotList)
	}
	return l, nil
}

// Kind is the defect of an object.
type Kind string

const (
	Damaged  Kind = "damaged"  // its bytes do not match its name
	Empty    Kind = "empty"    // it has no bytes, as after a power cut before the file was flushed
	Missing  Kind = "missing"  // an index names it, but the store lacks it
	Unknown  Kind = "unknown"  // its compression cannot be decoded without knowing its size
	Misnamed Kind = "misnamed" // it is named like a chunk but is in the wrong directory
)

// Fate is the action taken on a defect.
type Fate string

const (
	Left     Fate = ""
	Repaired Fate = "repaired" // replaced by the verified chunk of another store
	Removed  Fate = "removed"
)

// Finding is a defective object.
type Finding struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"` // in the store
	Fate Fate   `json:"fate,omitempty"`
	Why  string `json:"why,omitempty"`
}

// MostFindings limits the findings to keep in a result or a Mark.
const MostFindings = 10_000

// Others counts objects that are not chunks.
type Others struct {
	Objects int64    `json:"objects"`
	Bytes   int64    `json:"bytes"`
	First   []string `json:"first,omitempty"` // the first names, at most 10
}

// maxFirst limits the names in Others.First.
const maxFirst = 10

func (o *Others) add(more Others) {
	o.Objects += more.Objects
	o.Bytes += more.Bytes
	for _, name := range more.First {
		if len(o.First) < maxFirst {
			o.First = append(o.First, name)
		}
	}
}

func (o *Others) countObject(object store.Object) {
	o.add(Others{1, object.Size, []string{object.Name}})
}

// batchSize is the number of chunks that are processed between two commits and marks.
const batchSize = 8192

// maxRun is the largest number of chunks that a worker hashes together, which is several times
// cheaper than one by one.
const maxRun = 8

// runWorkers splits n items into runs of at most maxRun and passes them to workers, until one
// fails.
func runWorkers(ctx context.Context, n, workers int, worker func() func(ctx context.Context, lo, hi int) error) error {
	var next atomic.Int64
	run := min(max(n/(4*max(workers, 1)), 1), maxRun)
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

// chunk is one chunk to read.
type chunk struct {
	digest blob.Digest
	size   int64 // 0 is unknown
	form   form
}

// form is the name under which a chunk is stored.
type form uint8

const (
	either form = iota // the compressed name is tried first, then the plain one
	packed
	plain
)

func (c chunk) name() string { return store.ObjectName(c.digest, c.form != plain) }
