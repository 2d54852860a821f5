package view

import "slices"

// tellEvery is how many chunks a filling looks at before it counts what is missing.
const tellEvery = 256

// Follow fetches chunks before they are asked for, in this order, as far as there is room for them: the plan of
// a profile. It does not wait. What is on disk already is not fetched, and stays there longest.
func (v *Image) Follow(chunks []int) {
	places := make(map[int]int, len(chunks))
	for n, i := range chunks {
		places[i] = n
		if v.disk != nil {
			v.disk.Pin(i)
		}
	}
	v.begin(&feed{image: v, rank: foretold, list: slices.Clone(chunks)}, places)
}

// Fill fetches all chunks that are not on disk, when nobody reads: at most so many bytes a second, if that is not
// 0. It needs an image's file, and does not wait.
func (v *Image) Fill(bytesPerSecond int64) {
	if v.disk == nil {
		return
	}
	v.begin(&feed{image: v, rank: filling, rate: bytesPerSecond}, nil)
}

func (v *Image) begin(f *feed, places map[int]int) {
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	if places != nil {
		v.profile = places
	}
	v.source.feeds = append(v.source.feeds, f)
	slices.SortStableFunc(v.source.feeds, func(a, b *feed) int { return int(a.rank - b.rank) })
	c.pump()
}

// Close ends what Follow and Fill began, and lets go of the image's file. Reads go on, without it.
func (v *Image) Close() error {
	v.stopFeeds()
	if v.disk == nil {
		return nil
	}
	return v.disk.Close()
}

func (v *Image) stopFeeds() {
	c := v.source.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	v.source.feeds = slices.DeleteFunc(v.source.feeds, func(f *feed) bool { return f.image == v })
}

// cursor is how far the profile was fetched. The caller holds the cache's mutex.
func (v *Image) cursor() int {
	for _, f := range v.source.feeds {
		if f.image == v && f.rank == foretold {
			return f.at
		}
	}
	return len(v.profile)
}

// lacking is chunk i as it is wanted, unless it is here or on its way. The caller holds the cache's mutex.
func (v *Image) lacking(i int) (wanted, bool) {
	w, ok := v.absent(i)
	if !ok || v.disk != nil && (!v.disk.Wants(i) || v.disk.Queued(i)) {
		return w, false
	}
	e := v.source.cache.chunks[w.key]
	if e == nil {
		return w, true
	}
	if e.data != nil && v.disk != nil {
		v.disk.Offer(i, e.data) // it is in memory only
	}
	v.source.cache.join(e, w.home)
	return w, false
}

// roomToFill says whether the disk takes more.
func (v *Image) roomToFill() bool { return v.disk.Room() }

// filled says whether the filling has come to an end, and tells how it goes. The caller holds the cache's mutex.
func (v *Image) filled() bool {
	missing := v.disk.Missing()
	if missing == 0 {
		v.log().Info("the image is complete on disk", "image", v.name, "directory", v.disk.Path())
		return true
	}
	if v.wantsAny() {
		return false
	}
	v.log().Warn("the image stays incomplete on disk: parts of it cannot be kept", "image", v.name, "chunks", missing)
	return true
}

func (v *Image) wantsAny() bool {
	for i := range v.index.Len() {
		if v.disk.Wants(i) {
			return true
		}
	}
	return false
}

// progress tells how far the filling is, a tenth at a time. The caller holds the cache's mutex.
func (v *Image) progress(f *feed) {
	if f.at%tellEvery != 0 {
		return
	}
	n := v.index.Len()
	if tenth := 10 * (n - v.disk.Missing()) / max(n, 1); tenth > v.told && tenth < 10 {
		v.told = tenth
		v.log().Info("filling the image cache", "image", v.name, "percent", 10*tenth, "fetched", f.taken)
	}
}
