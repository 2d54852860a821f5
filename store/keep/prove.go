package keep

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"cairn/blob"
	"cairn/store"
)

// source is a store whose chunks are read and hashed.
type source struct {
	chunks *store.Chunks
	name   string
	digests
}

// digests are the algorithms that may have named a chunk: the given one, or both, the likelier
// first.
type digests struct {
	given *blob.Algorithm
	last  *atomic.Uint32 // the algorithm of the last chunk
}

func newSource(r store.Reader, given *blob.Algorithm) source {
	d := digests{given, new(atomic.Uint32)}
	a, _ := d.try()
	return source{store.NewChunks(r, a), r.String(), d}
}

// try returns the algorithm to try first, and reports whether there is another one.
func (d digests) try() (first blob.Algorithm, more bool) {
	if d.given != nil {
		return *d.given, false
	}
	return blob.Algorithm(d.last.Load()), true
}

func other(a blob.Algorithm) blob.Algorithm {
	if a == blob.SHA256 {
		return blob.SHA512_256
	}
	return blob.SHA256
}

// is reports whether d is the digest of data.
func (s digests) is(d blob.Digest, data []byte) bool {
	a, more := s.try()
	if a.Sum(data) == d {
		return true
	}
	if !more || other(a).Sum(data) != d {
		return false
	}
	s.last.Store(uint32(other(a)))
	return true
}

// prover is the reusable memory of one worker.
type prover struct {
	source
	raws []store.Raw
	errs []error
	data [][]byte
	who  []int
	sums []blob.Digest
}

func newProver(s source) *prover {
	return &prover{source: s, raws: make([]store.Raw, together), errs: make([]error, together), sums: make([]blob.Digest, together)}
}

// prove reads at most together chunks and leaves their bytes in raws. It returns for each chunk nil
// if the bytes match the digest, a *store.CorruptError if they do not, store.ErrNotFound, or
// errors.ErrUnsupported. Any other failure ends it. It reads a corrupt chunk a second time, since
// the transfer may have damaged it.
func (p *prover) prove(ctx context.Context, chunks []chunk) ([]error, error) {
	p.data, p.who = p.data[:0], p.who[:0]
	for i, c := range chunks {
		p.errs[i] = p.load(ctx, c, &p.raws[i])
		if p.errs[i] == nil {
			p.data, p.who = append(p.data, p.raws[i].Plain), append(p.who, i)
		}
	}
	first, _ := p.try()
	first.SumAll(p.sums, p.data)
	for n, i := range p.who {
		if p.sums[n] != chunks[i].digest && !p.is(chunks[i].digest, p.raws[i].Plain) {
			p.errs[i] = p.wrong(chunks[i], &p.raws[i], p.sums[n])
		}
	}
	for i, c := range chunks {
		if is[*store.CorruptError](p.errs[i]) {
			p.errs[i] = p.again(ctx, c, &p.raws[i])
		}
		if err := p.errs[i]; err != nil && !known(err) {
			return nil, err
		}
	}
	return p.errs[:len(chunks)], nil
}

func (p *prover) again(ctx context.Context, c chunk, into *store.Raw) error {
	err := p.load(ctx, c, into)
	if err == nil && !p.is(c.digest, into.Plain) {
		first, _ := p.try()
		return p.wrong(c, into, first.Sum(into.Plain))
	}
	return err
}

func (s source) load(ctx context.Context, c chunk, into *store.Raw) error {
	into.Stored, into.Plain = into.Stored[:0], nil
	err := s.chunks.Load(ctx, c.digest, c.form != plain, c.size, into)
	if c.form == either && errors.Is(err, store.ErrNotFound) {
		err = s.chunks.Load(ctx, c.digest, false, c.size, into)
	}
	return err
}

// loadAny reads a chunk from the first store that has it intact, and reports whether one had.
func loadAny(ctx context.Context, from []source, c chunk, into *store.Raw) (found bool, err error) {
	for _, s := range from {
		err := s.load(ctx, chunk{c.digest, c.size, either}, into)
		switch {
		case err == nil && s.is(c.digest, into.Plain):
			return true, nil
		case err == nil && into.Suspicion != nil:
			return false, into.Suspicion
		case err != nil && !known(err):
			return false, err
		}
	}
	return false, nil
}

func newSources(readers []store.Reader, given *blob.Algorithm) (all []source) {
	for _, r := range readers {
		all = append(all, newSource(r, given))
	}
	return all
}

// wrong returns the error for a chunk with a wrong digest. It is the store's failure if a header
// indicated one, such as a login form in place of every object, else damage.
func (s source) wrong(c chunk, read *store.Raw, sum blob.Digest) error {
	if read.Suspicion != nil {
		return read.Suspicion
	}
	return &store.CorruptError{Name: fmt.Sprintf("chunk %v in %s", c.digest, s.name), Err: fmt.Errorf("its digest is %v", sum)}
}

// known reports whether an error is about one chunk, and not about the store.
func known(err error) bool {
	return is[*store.CorruptError](err) || errors.Is(err, store.ErrNotFound) || errors.Is(err, errors.ErrUnsupported)
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}
