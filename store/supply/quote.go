package supply

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"cairn/blob"
	"cairn/store"
	"cairn/store/pack"
)

// Quote tells what it costs to get some chunks, before they are downloaded. It is immutable.
type Quote struct {
	chunks map[blob.Digest]offer
}

// offer is what the stores have of a chunk: its file, or a place in a pack of dir.
type offer struct {
	size int64
	dir  *pack.Dir // nil if the chunk is in no pack
	at   pack.Place
}

// Quote asks the stores for what they have of some chunks: their sizes, or those of the packs that they are in. It reads
// a few bytes of a pack, to learn how the server sends packs. Requests fail and are retried as those of Get.
func (s *Supply) Quote(ctx context.Context, chunks []blob.Digest) (*Quote, error) {
	q := &Quote{chunks: make(map[blob.Digest]offer, len(chunks))}
	packs, err := s.quotePacks(ctx, chunks)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex // guards q.chunks
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(min(s.Requests(), requestsLocal))
	for _, d := range chunks {
		group.Go(func() error {
			return s.policy.Do(groupCtx, func() error {
				o, err := s.quoteChunk(groupCtx, d, packs)
				if err == nil {
					mu.Lock()
					defer mu.Unlock()
					q.chunks[d] = o
				}
				return err
			})
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return q, ctx.Err()
}

// holders says which members have a pack.
type holders map[pack.Pack]map[*member]bool

// quotePacks asks which members have the packs of some chunks.
func (s *Supply) quotePacks(ctx context.Context, chunks []blob.Digest) (holders, error) {
	p := s.stores.packs.Load()
	if p == nil {
		return nil, nil
	}
	held := holders{}
	for _, d := range chunks {
		at, ok := p.find(d)
		if !ok || held[at.Pack] != nil {
			continue
		}
		held[at.Pack] = map[*member]bool{}
		for m, dir := range p.dirs {
			err := s.policy.Do(ctx, func() (err error) {
				held[at.Pack][m], err = dir.Has(ctx, at.Pack)
				return err
			})
			if err != nil && !errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
				return nil, fmt.Errorf("asking for pack %s: %w", at.Pack.Name(), err)
			}
		}
	}
	return held, nil
}

// quoteChunk returns what the first member that has a chunk has of it.
func (s *Supply) quoteChunk(ctx context.Context, d blob.Digest, held holders) (offer, error) {
	p := s.stores.packs.Load()
	var errs []error
	for _, m := range s.stores.members {
		if p != nil {
			if at, ok := p.find(d); ok && held[at.Pack][m] {
				return offer{at.Size, p.dirs[m], at}, nil
			}
		}
		chunks, can := m.from.(sizer)
		if !can {
			continue
		}
		n, err := chunks.Stat(ctx, d)
		if err == nil {
			return offer{size: n}, nil
		}
		errs = append(errs, err)
	}
	return offer{}, fmt.Errorf("chunk %v: %w", d, errors.Join(errs...))
}

// Size returns the stored size of a chunk in bytes.
func (q *Quote) Size(d blob.Digest) int64 { return q.chunks[d].size }

// Cost returns how many requests some calls of Get take, and how many bytes they download. Each call gets a list of the
// chunks.
func (q *Quote) Cost(calls [][]blob.Digest) (requests, bytes int64) {
	packed := map[*pack.Dir][][]pack.Place{}
	for _, call := range calls {
		places := map[*pack.Dir][]pack.Place{}
		for _, d := range call {
			o := q.chunks[d]
			if o.dir != nil {
				places[o.dir] = append(places[o.dir], o.at)
				continue
			}
			requests++
			bytes += o.size
		}
		for dir, list := range places {
			packed[dir] = append(packed[dir], list)
		}
	}
	for dir, lists := range packed {
		n, size := dir.Cost(lists)
		requests += n
		bytes += size
	}
	return requests, bytes
}
