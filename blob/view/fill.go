package view

import (
	"time"

	"cairn/blob/view/fetch"
)

const (
	fillDelay = 25 * time.Millisecond // limit of the delay of a demand fetch by Fill
	fullPause = 10 * time.Second      // between two checks of a disk that has no room, or the complete image
	logEvery  = 256                   // chunks between two checks of the progress, which count the missing chunks
)

// fillFeed is the fetch.Feed of all chunks of an image that are not on disk. The Cache calls it one call at a time.
type fillFeed struct {
	image   *Image
	next    int   // the next chunk
	fetched int64 // bytes of the chunks that Next wanted
	tenths  int   // of the image, as last logged
	filled  bool  // the image was complete on disk at the last Rewind
}

// Fill fetches all chunks that are not on disk, with the lowest priority, and later those that the disk loses. It fetches
// at most bytesPerSecond; 0 is no limit. It returns at once, and does nothing without a disk.
func (v *Image) Fill(bytesPerSecond int64) {
	if v.disk != nil {
		v.chunks.StartFeed(&fillFeed{image: v}, fetch.Fill, bytesPerSecond)
	}
}

// Next implements fetch.Feed.
func (f *fillFeed) Next() (chunk int, wanted, more bool) {
	v, i := f.image, f.next
	if i == v.index.Len() {
		return 0, false, false
	}
	f.next++
	wanted = isWanted(v.disk, i)
	if wanted {
		f.fetched += v.index.At(i).Size
	}
	if f.next%logEvery == 0 {
		f.logProgress()
	}
	return i, wanted, true
}

// logProgress logs the progress when another tenth of the image is on disk.
func (f *fillFeed) logProgress() {
	v := f.image
	n := v.index.Len()
	if tenth := 10 * (n - v.disk.Missing()) / n; tenth > f.tenths && tenth < 10 {
		f.tenths = tenth
		v.log.Info("filling the image cache", "image", v.name, "percent", 10*tenth, "fetched", f.fetched)
	}
}

// Rewind implements fetch.Feed. It logs that the image is complete, or cannot be.
func (f *fillFeed) Rewind() bool {
	v := f.image
	missing := v.disk.Missing()
	if missing == 0 {
		v.log.Info("the image is complete on disk", "image", v.name, "directory", v.disk.Path())
		f.next, f.filled = 0, true
		return true
	}
	for i := range v.index.Len() {
		if v.disk.Wants(i) {
			f.next = 0
			return true
		}
	}
	v.log.Warn("the image stays incomplete on disk: parts of it cannot be kept", "image", v.name, "chunks", missing)
	return false
}

// Budget implements fetch.Feed.
func (f *fillFeed) Budget() fetch.Budget {
	if f.filled {
		f.filled = f.image.disk.Missing() == 0
	}
	if f.filled || !f.image.disk.Room() {
		return fetch.Budget{Pause: fullPause}
	}
	return fetch.Budget{Delay: fillDelay, Idle: true}
}
