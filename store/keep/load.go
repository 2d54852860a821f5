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
	a, _ := d.firstAlgorithm()
	return source{store.NewChunks(r, a), r.String(), d}
}

// firstAlgorithm returns the algorithm to try first, and reports whether the other one is possible.
func (d digests) firstAlgorithm() (first blob.Algorithm, more bool) {
	if d.given != nil {
		return *d.given, false
	}
	return blob.Algorithm(d.last.Load()), true
}

func otherAlgorithm(a blob.Algorithm) blob.Algorithm {
	if a == blob.SHA256 {
		return blob.SHA512_256
	}
	return blob.SHA256
}

// matches reports whether d is the digest of data.
func (s digests) matches(d blob.Digest, data []byte) bool {
	a, more := s.firstAlgorithm()
	if a.Sum(data) == d {
		return true
	}
	if !more || otherAlgorithm(a).Sum(data) != d {
		return false
	}
	s.last.Store(uint32(otherAlgorithm(a)))
	return true
}

// runLoader loads runs of chunks for one worker, and reuses its memory.
type runLoader struct {
	source
	raws   []store.Raw
	errs   []error
	data   [][]byte
	loaded []int
	sums   []blob.Digest
}

func newRunLoader(s source) *runLoader {
	return &runLoader{source: s, raws: make([]store.Raw, maxRun), errs: make([]error, maxRun), sums: make([]blob.Digest, maxRun)}
}

// loadVerified reads at most maxRun chunks and leaves their bytes in raws. It returns for each
// chunk nil if the bytes match the digest, a *store.CorruptError if they do not, store.ErrNotFound,
// or errors.ErrUnsupported. Any other failure ends it. It reads a corrupt chunk a second time,
// since the transfer may have damaged it.
func (p *runLoader) loadVerified(ctx context.Context, chunks []chunk) ([]error, error) {
	p.data, p.loaded = p.data[:0], p.loaded[:0]
	for i, c := range chunks {
		p.errs[i] = p.loadChunk(ctx, c, &p.raws[i])
		if p.errs[i] == nil {
			p.data, p.loaded = append(p.data, p.raws[i].Plain), append(p.loaded, i)
		}
	}
	first, _ := p.firstAlgorithm()
	first.SumAll(p.sums, p.data)
	for n, i := range p.loaded {
		if p.sums[n] != chunks[i].digest && !p.matches(chunks[i].digest, p.raws[i].Plain) {
			p.errs[i] = p.digestError(chunks[i], &p.raws[i], p.sums[n])
		}
	}
	for i, c := range chunks {
		if isCorrupt(p.errs[i]) {
			p.errs[i] = p.loadAgain(ctx, c, &p.raws[i])
		}
		if err := p.errs[i]; err != nil && !isChunkError(err) {
			return nil, err
		}
	}
	return p.errs[:len(chunks)], nil
}

func (p *runLoader) loadAgain(ctx context.Context, c chunk, into *store.Raw) error {
	err := p.loadChunk(ctx, c, into)
	if err == nil && !p.matches(c.digest, into.Plain) {
		first, _ := p.firstAlgorithm()
		return p.digestError(c, into, first.Sum(into.Plain))
	}
	return err
}

func (s source) loadChunk(ctx context.Context, c chunk, into *store.Raw) error {
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
		err := s.loadChunk(ctx, chunk{c.digest, c.size, either}, into)
		switch {
		case err == nil && s.matches(c.digest, into.Plain):
			return true, nil
		case err == nil && into.Suspicion != nil:
			return false, into.Suspicion
		case err != nil && !isChunkError(err):
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

// digestError returns the error for a chunk with a wrong digest. It is the store's failure if a
// header indicated one, such as a login form in place of every object, else damage.
func (s source) digestError(c chunk, read *store.Raw, sum blob.Digest) error {
	if read.Suspicion != nil {
		return read.Suspicion
	}
	return &store.CorruptError{Name: fmt.Sprintf("chunk %v in %s", c.digest, s.name), Err: fmt.Errorf("its digest is %v", sum)}
}

// isChunkError reports whether an error is about one chunk, and not about the store.
func isChunkError(err error) bool {
	return isCorrupt(err) || errors.Is(err, store.ErrNotFound) || errors.Is(err, errors.ErrUnsupported)
}

func isCorrupt(err error) bool {
	_, ok := errors.AsType[*store.CorruptError](err)
	return ok
}
