package view

import "iter"

// Cached yields in order, as lengths, what of n bytes from off on can be read without the store, and what not.
func (v *Image) Cached(off, n int64) iter.Seq2[int64, bool] {
	return func(yield func(int64, bool) bool) {
		for part := range v.pieces(off, n) {
			here := v.index.IsZero(part.number) || v.cache.has(keyOf(part.chunk))
			if !yield(part.size, here) {
				return
			}
		}
	}
}

// has says whether a chunk is here. To ask is not to use it.
func (c *Cache) has(k key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.chunks[k]
	return e != nil && e.place != nil
}
