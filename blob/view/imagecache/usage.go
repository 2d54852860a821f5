package imagecache

// Usage is what the images take on disk, what they may, and what has become of the rest.
type Usage struct {
	Bytes   int64
	Limit   int64 // Unlimited if there is none
	Evicted int64 // bytes so far
	Dropped int64 // chunks so far that were not kept because the disk was too slow or failed
	Working bool  // false for a while after the disk has failed
}

// Usage looks at all images.
func (d *Dir) Usage() Usage {
	u := Usage{Bytes: d.Used(), Limit: d.limit, Evicted: d.evicted.Load(), Dropped: d.Dropped(), Working: d.working()}
	if u.Limit <= 0 {
		u.Limit = Unlimited
	}
	return u
}
