package gcsim

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"cairn/store"
)

// place is one of the buckets that share a simulated service.
type place int

const (
	chunkPlace place = iota
	recordPlace
	indexPlace
	packPlace
	places
)

var placeNames = [places]string{"chunks", "records", "indexes", "packs"}

type verb int

const (
	read verb = iota
	stat
	list
	write
	create
	remove
	pause  // no request: the scheduler decides how long an actor waits between two looks
	forget // no request: the variant withdraws the turns of an actor
)

var verbNames = []string{"read", "stat", "list", "write", "create", "remove", "pause", "forget"}

// request is a call of a bucket. The scheduler decides when it is carried out, and whether it is answered.
type request struct {
	from  *actor
	place place
	verb  verb
	names []string // of the objects; the prefix of a listing
	data  []byte

	ctx    context.Context
	done   chan struct{} // closed after the answer
	gaveUp bool          // the actor does not wait any more
	found  []store.Object
	answer []byte
	err    error
}

func (r *request) String() string {
	if r.from.isSample(r) {
		return "stat chunks (one of the assumed)"
	}
	var names []string
	for _, name := range r.names {
		name = r.from.canonical(r.place, name)
		if lo, hi, ok := idOf(name); ok && r.place == recordPlace && !strings.HasPrefix(name[lo:], "00000000") {
			name = name[:lo] + "new" + name[hi:]
		}
		names = append(names, name)
	}
	return fmt.Sprintf("%s %s %.24s", verbNames[r.verb], placeNames[r.place], strings.Join(names, " "))
}

// key orders requests that arrive at the same moment. It has no random names.
func (r *request) key() string {
	name := r.names[0]
	if r.place == recordPlace {
		if lo, hi, ok := idOf(name); ok {
			name = name[:lo] + name[hi:]
		}
	}
	if r.place == packPlace {
		name = ""
	}
	return fmt.Sprintf("%03d %d %d %s", r.from.number, r.place, r.verb, name)
}

// idOf returns where the random ID in the name of a record is.
func idOf(name string) (lo, hi int, ok bool) {
	switch {
	case strings.HasPrefix(name, "leases/"), strings.HasPrefix(name, "turns/"), strings.HasPrefix(name, "packturns/"), strings.HasPrefix(name, "clock/"):
		lo = strings.IndexByte(name, '/') + 1
	case strings.IndexByte(name, '-') > 0:
		lo = strings.LastIndexByte(name, '-') + 1
	default:
		return 0, 0, false
	}
	return lo, lo + 16, len(name) >= lo+16
}

var (
	errCrashed = errors.New("the simulated process has crashed")
	errAbsent  = fmt.Errorf("the simulated store: %w", store.ErrNotFound)
	errTaken   = fmt.Errorf("the simulated store: %w", store.ErrExists)
	errFailed  = fmt.Errorf("the simulated store: %w", store.ErrUnavailable)
)

// bucket is an actor's access to a place.
type bucket struct {
	from  *actor
	place place
}

var (
	_ store.Bucket  = bucket{}
	_ store.Lister  = bucket{}
	_ store.Creator = bucket{}
	_ store.Remover = bucket{}
	_ store.Sweeper = sweeping{}
)

// sweeping is a bucket that removes many objects with one request.
type sweeping struct{ bucket }

func (b bucket) String() string { return placeNames[b.place] }

func (b bucket) send(ctx context.Context, v verb, names []string, data []byte) *request {
	r := &request{from: b.from, place: b.place, verb: v, names: names, data: data, done: make(chan struct{})}
	if err := b.from.send(ctx, r); err != nil {
		return &request{err: err} // r may still be carried out
	}
	return r
}

func (b bucket) Read(ctx context.Context, name string, dst []byte, limit int64) ([]byte, error) {
	r := b.send(ctx, read, []string{name}, nil)
	if r.err == nil && int64(len(r.answer)) > limit {
		return nil, store.ErrTooLarge
	}
	return append(dst, r.answer...), r.err
}

func (b bucket) Stat(ctx context.Context, name string) (int64, error) {
	r := b.send(ctx, stat, []string{name}, nil)
	return int64(len(r.answer)), r.err
}

func (b bucket) Write(ctx context.Context, name string, data []byte) error {
	return b.send(ctx, write, []string{name}, data).err
}

func (b bucket) Create(ctx context.Context, name string, data []byte) error {
	return b.send(ctx, create, []string{name}, data).err
}

func (b bucket) Remove(ctx context.Context, name string) error {
	return b.send(ctx, remove, []string{name}, nil).err
}

func (b sweeping) Sweep(ctx context.Context, names []string) error {
	return b.send(ctx, remove, names, nil).err
}

func (b bucket) List(ctx context.Context, prefix string) iter.Seq2[store.Object, error] {
	return func(yield func(store.Object, error) bool) {
		r := b.send(ctx, list, []string{prefix}, nil)
		for _, o := range r.found {
			if !yield(o, nil) {
				return
			}
		}
		if r.err != nil {
			yield(store.Object{}, r.err)
		}
	}
}
