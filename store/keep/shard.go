package keep

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/blob"
	"cairn/store"
)

// Limits of listing. A store of a million chunks has sixteen shards of one digit.
const (
	maxRootChunks  = 4096     // chunks listed in one go; a larger store is listed in parallel parts
	maxShardChunks = 1 << 16  // chunks in a shard; a larger one is split
	maxDepth       = 4        // digits of a shard's prefix: those of a directory
	maxLeafChunks  = 64 << 16 // chunks in a shard that cannot be split
	maxListings    = 8        // concurrent listings
)

// object is a chunk in a listing. 56 bytes.
type object struct {
	digest   blob.Digest
	size     int64 // as stored
	modified int64 // as time.Time.UnixNano; 0 is unknown
	packed   bool
}

// shard is the part of a store whose names begin with a prefix.
type shard struct {
	prefix            string
	objects           []object // by digest; the packed form of a chunk before the plain one
	foreign, misnamed Others
	split             bool // it has too many chunks and holds none of them
	err               error
}

// listShards lists a store in parts: first those with chunks, in the order of their digests, then
// the rest. In a store of more than a few chunks it may miss foreign objects whose names begin with
// a character outside of ASCII. An error is the last value yielded.
func listShards(ctx context.Context, l store.Lister) iter.Seq2[shard, error] {
	return func(yield func(shard, error) bool) {
		if s := listShard(ctx, l, "", maxRootChunks); !s.split {
			yield(s, s.err)
			return
		}
		splitShards(ctx, l, "", yield)
	}
}

func splitShards(ctx context.Context, l store.Lister, prefix string, yield func(shard, error) bool) bool {
	parts := longerPrefixes(prefix)
	limit := maxShardChunks
	if len(prefix)+1 >= maxDepth {
		limit = maxLeafChunks
	}
	for s := range parallelInOrder(ctx, len(parts), maxListings, func(ctx context.Context, i int) shard { return listShard(ctx, l, parts[i], limit) }) {
		switch {
		case s.err == nil && s.split && limit < maxLeafChunks:
			if !splitShards(ctx, l, s.prefix, yield) {
				return false
			}
			continue
		case s.err == nil && s.split:
			s.err = fmt.Errorf("more than %d chunks begin with %s", maxLeafChunks, s.prefix)
		}
		if !yield(s, s.err) || s.err != nil {
			return false
		}
	}
	return true
}

const hexDigits = "0123456789abcdef"

// longerPrefixes returns the prefixes that are one character longer, hexadecimal digits first.
func longerPrefixes(prefix string) []string {
	var digits, others []string
	for c := ' '; c <= '~'; c++ {
		if strings.ContainsRune(hexDigits, c) {
			digits = append(digits, prefix+string(c))
		} else {
			others = append(others, prefix+string(c))
		}
	}
	return append(digits, others...)
}

// listShard lists the names that begin with prefix. If they are more than limit chunks, it returns
// a shard to be split.
func listShard(ctx context.Context, l store.Lister, prefix string, limit int) shard {
	s := shard{prefix: prefix}
	for o, err := range l.List(ctx, prefix) {
		if err != nil {
			return shard{prefix: prefix, err: err}
		}
		s.addObject(o)
		if len(s.objects) > limit {
			return shard{prefix: prefix, split: true}
		}
	}
	slices.SortFunc(s.objects, func(a, b object) int {
		if c := bytes.Compare(a.digest[:], b.digest[:]); c != 0 || a.packed == b.packed {
			return c
		}
		if a.packed {
			return -1
		}
		return 1
	})
	return s
}

func (s *shard) addObject(o store.Object) {
	d, packed, ok := store.ChunkObject(o.Name)
	switch {
	case ok:
		s.objects = append(s.objects, object{d, o.Size, nanosOf(o.Modified), packed})
	case store.MisnamedChunk(o.Name):
		s.misnamed.countObject(o)
	default:
		s.foreign.countObject(o)
	}
}

func nanosOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// timeOf returns the time of an object.modified.
func timeOf(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos)
}

// parallelInOrder yields the results of do for 0 to n-1 in order, and runs at most atOnce calls at
// once. It returns after all calls have ended.
func parallelInOrder[T any](ctx context.Context, n, atOnce int, do func(ctx context.Context, i int) T) iter.Seq[T] {
	return func(yield func(T) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		results := make([]chan T, n)
		start := func(i int) {
			results[i] = make(chan T, 1)
			running.Go(func() { results[i] <- do(ctx, i) })
		}
		for i := range min(n, atOnce) {
			start(i)
		}
		for i := range n {
			v := <-results[i]
			if i+atOnce < n {
				start(i + atOnce)
			}
			if !yield(v) {
				return
			}
		}
	}
}
