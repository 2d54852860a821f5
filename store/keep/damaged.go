package keep

import (
	"context"

	"cairn/store"
)

// sampledSize is the largest chunk that IsDamaged decompresses.
const sampledSize = 4 << 20

// IsDamaged reads the chunk with the given name and reports whether its bytes do not match its name, or it has none. It
// is false if the chunk cannot be read, or is larger than 4 MiB.
func IsDamaged(ctx context.Context, r store.Reader, name string) bool {
	d, isPacked, ok := store.ChunkObject(name)
	if !ok {
		return false
	}
	c := chunk{digest: d, form: plain}
	if isPacked {
		c.form = packed
	}
	loader := newRunLoader(newSource(r, nil))
	loader.raws[0].Limit = sampledSize
	errs, err := loader.loadVerified(ctx, []chunk{c})
	if err != nil {
		return false
	}
	kind := kindOf(errs[0], -1, int64(len(loader.raws[0].Stored)))
	return kind == Damaged || kind == Empty
}
