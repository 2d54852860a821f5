package release

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/store"
	"cairn/store/chunkfile"
	"cairn/store/gcroot"
	"cairn/store/pack"
)

// PackOptions make a Publisher write packs.
type PackOptions struct {
	To    store.Bucket     // the directory of packs
	Size  int64            // of a pack; see pack.NewWriter
	First *profile.Profile // its chunks are in packs of their own, in the order of the profile; nil for none
	// Chunks reports that the chunks are also written as files, which casync and desync read.
	Chunks bool
}

const (
	// maxMaps limits the gc roots whose maps are read.
	maxMaps = 16
	// packWindow limits the bytes of chunk files that wait to be packed. They come from several workers, and are packed in
	// the order of the image.
	packWindow = 32 << 20
	// maxFirst limits the bytes of chunk files of a profile, which wait for the last one. The rest is packed like others.
	maxFirst = 256 << 20
)

// packer writes the chunks of an image that are in no pack yet into packs.
type packer struct {
	algorithm blob.Algorithm
	encoder   *chunkfile.Encoder
	old       []*pack.Map        // of what was published before
	there     map[pack.Pack]bool // the packs of the store; a map may name others, which were removed by other means than gc
	first     *firstChunks

	mu      sync.Mutex // guards the fields below
	batch   store.Batch
	writer  *pack.Writer
	waiting window // to be packed
	held    window // chunks of the profile
}

// chunkToPack is the file of a chunk.
type chunkToPack struct {
	chunk blob.Chunk
	file  []byte
}

// window holds chunk files that wait.
type window struct {
	chunks []chunkToPack
	bytes  int64
}

func (w *window) add(c blob.Chunk, file []byte) {
	w.chunks = append(w.chunks, chunkToPack{c, bytes.Clone(file)})
	w.bytes += int64(len(file))
}

// newPacker returns a packer for a store. It learns from the maps in the newest gc roots, and in those of bases, which
// chunks are in packs.
func newPacker(ctx context.Context, o PublisherOptions, r *Recorder) (*packer, error) {
	writer := o.Writer
	p := &packer{algorithm: o.Algorithm, first: newFirstChunks(o.Packs.First)}
	var err error
	if p.encoder, err = chunkfile.NewEncoder(writer.Level); err != nil {
		return nil, err
	}
	if p.there, err = pack.List(ctx, o.Packs.To); err != nil {
		return nil, err
	}
	if err := p.readMaps(ctx, r, o.Bases); err != nil {
		return nil, err
	}
	if _, own := o.Packs.To.(store.Batcher); !own && writer.Uploads > 0 {
		p.batch = store.NewUploads(o.Packs.To, store.UploadOptions{AtOnce: min(writer.Uploads, 4)})
	} else if p.batch, err = store.NewBatch(o.Packs.To); err != nil {
		return nil, err
	}
	if p.writer, err = pack.NewWriter(p.batch, o.Algorithm, o.Packs.Size); err != nil {
		_ = p.batch.Close()
		return nil, err
	}
	return p, nil
}

// readMaps reads the maps in gc roots. Their packs may go: Recorder.Record looks for them again.
func (p *packer) readMaps(ctx context.Context, r *Recorder, bases []Base) error {
	if r.records == nil {
		return nil
	}
	roots := slices.Clone(r.lease.Listing.Roots)
	slices.SortStableFunc(roots, func(a, b gcroot.Entry) int { return cmp.Compare(b.Number, a.Number) })
	live := 0
	for _, e := range roots {
		isBase := slices.ContainsFunc(bases, func(b Base) bool { return b.Index.Digest() == e.Index })
		if !isBase && (!e.Retired.IsZero() || live == maxMaps) {
			continue
		}
		if !isBase {
			live++
		}
		root, err := r.records.Read(ctx, e, false)
		if errors.Is(err, store.ErrNotFound) { // gc has removed it since
			continue
		}
		if err != nil {
			return err
		}
		if len(root.Map) == 0 || root.Index.Algorithm() != p.algorithm {
			continue
		}
		m, err := pack.DecodeMap(bytes.NewReader(root.Map), root.Index)
		if err != nil {
			return fmt.Errorf("the gc root %s: %w", e.Name, err)
		}
		p.old = append(p.old, m)
	}
	return ctx.Err()
}

// findOld returns the place of a chunk in a pack that was there before.
func (p *packer) findOld(d blob.Digest) (at pack.Place, ok bool) {
	for _, m := range p.old {
		if at, ok = m.Find(d); ok && p.there[at.Pack] {
			return at, true
		}
	}
	return pack.Place{}, false
}

// find is a pack.Finder of the chunks in packs that are there, or were written.
func (p *packer) find(d blob.Digest) (at pack.Place, ok bool) {
	if at, ok = p.writer.Place(d); ok {
		return at, true
	}
	return p.findOld(d)
}

// addFile packs the file of a chunk. It copies the file.
func (p *packer) addFile(ctx context.Context, c blob.Chunk, file []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first.has(c) && p.held.bytes < maxFirst {
		p.held.add(c, file)
		return nil
	}
	p.waiting.add(c, file)
	if p.waiting.bytes < packWindow {
		return nil
	}
	return p.packWaiting(ctx, packWindow/2)
}

// packWaiting packs the first waiting chunks of the image, until at most keep bytes wait. The caller holds mu.
func (p *packer) packWaiting(ctx context.Context, keep int64) error {
	w := &p.waiting
	slices.SortFunc(w.chunks, func(a, b chunkToPack) int { return cmp.Compare(a.chunk.Offset, b.chunk.Offset) })
	for len(w.chunks) > 0 && w.bytes > keep {
		next := w.chunks[0]
		if err := p.writer.Add(ctx, next.chunk.Digest, next.file); err != nil {
			return err
		}
		w.chunks[0] = chunkToPack{}
		w.chunks, w.bytes = w.chunks[1:], w.bytes-int64(len(next.file))
	}
	return nil
}

// commit writes all packs durably: those of the profile, and the others.
func (p *packer) commit(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.packWaiting(ctx, 0); err != nil {
		return err
	}
	if err := p.writer.Close(ctx); err != nil {
		return err
	}
	held := p.first.sort(p.held.chunks)
	for _, c := range held {
		if err := p.writer.Add(ctx, c.chunk.Digest, c.file); err != nil {
			return err
		}
	}
	if err := p.writer.Close(ctx); err != nil {
		return err
	}
	p.held = window{}
	return p.batch.Commit(ctx)
}

func (p *packer) close() { _ = p.batch.Close() } // the index needs only committed packs

// encodeMap returns the map of the image of x.
func (p *packer) encodeMap(x *blob.Index) ([]byte, error) {
	m, err := pack.NewMap(x, p.find)
	if err != nil {
		return nil, err
	}
	return m.Encode()
}

// firstChunks are the chunks of a profile. The image of the profile may be another one: then a chunk at the same place
// may take the place of an unknown one.
type firstChunks struct {
	known  map[profile.Prefix]int // positions in the profile
	blocks []uint32               // sorted
	places map[uint32]int         // positions by block
}

func newFirstChunks(p *profile.Profile) *firstChunks {
	f := &firstChunks{known: map[profile.Prefix]int{}, places: map[uint32]int{}}
	if p == nil {
		return f
	}
	for i, e := range p.Entries() {
		f.known[e.Prefix] = i
		if _, taken := f.places[e.Block]; !taken {
			f.places[e.Block] = i
			f.blocks = append(f.blocks, e.Block)
		}
	}
	slices.Sort(f.blocks)
	return f
}

// position returns the position of a chunk in the profile.
func (f *firstChunks) position(c blob.Chunk) (at int, ok bool) {
	if at, ok = f.known[profile.Prefix(c.Digest[:8])]; ok {
		return at, true
	}
	lo, hi := uint32(min(c.Offset/profile.Block, 1<<32-1)), uint32(min((c.End()-1)/profile.Block, 1<<32-1))
	n := sort.Search(len(f.blocks), func(n int) bool { return f.blocks[n] >= lo })
	if n < len(f.blocks) && f.blocks[n] <= hi {
		return f.places[f.blocks[n]], true
	}
	return 0, false
}

func (f *firstChunks) has(c blob.Chunk) bool {
	_, ok := f.position(c)
	return ok
}

// sort returns chunks of the profile in its order.
func (f *firstChunks) sort(chunks []chunkToPack) []chunkToPack {
	slices.SortStableFunc(chunks, func(a, b chunkToPack) int {
		i, _ := f.position(a.chunk)
		j, _ := f.position(b.chunk)
		return cmp.Or(cmp.Compare(i, j), cmp.Compare(a.chunk.Offset, b.chunk.Offset))
	})
	return chunks
}
