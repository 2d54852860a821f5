package view

// Usage is how many bytes of chunks are in memory, those being fetched included, and how many may be.
func (c *Cache) Usage() (bytes, limit int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes + c.taken, c.limit
}
