package view

import (
	"time"

	"cairn/blob/view/fetch"
)

const (
	fillDelay = 25 * time.Millisecond // for which the link may be busy with filling
	fullPause = 10 * time.Second      // before a disk without room is looked at again
	logEvery  = 256                   // chunks that filling looks at before it counts the missing ones
)

// filling is the fetch.Feed of all chunks of an image that are not on disk. The Cache calls it one call at a time.
type filling struct {
	image   *Image
	next    int   // chunk
	fetched int64 // bytes that were named
	tenths  int   // of the image that were logged
}

// Fill fetches all chunks that are not on disk, when nothing is read: at most so many bytes a second, if that is not 0.
// It needs a disk, and does not wait.
func (v *Image) Fill(bytesPerSecond int64) {
	if v.disk != nil {
		v.chunks.StartFeed(&filling{image: v}, fetch.Fill, bytesPerSecond)
	}
}

// Next implements fetch.Feed.
func (f *filling) Next() (chunk int, wanted, more bool) {
	v, i := f.image, f.next
	if i == v.index.Len() {
		return 0, false, false
	}
	f.next++
	wanted = wants(v.disk, i)
	if wanted {
		f.fetched += v.index.At(i).Size
	}
	if f.next%logEvery == 0 {
		f.logProgress()
	}
	return i, wanted, true
}

// logProgress logs how far the filling is, a tenth at a time.
func (f *filling) logProgress() {
	v := f.image
	n := v.index.Len()
	if tenth := 10 * (n - v.disk.Missing()) / n; tenth > f.tenths && tenth < 10 {
		f.tenths = tenth
		v.log.Info("filling the image cache", "image", v.name, "percent", 10*tenth, "fetched", f.fetched)
	}
}

// Rewind implements fetch.Feed. It logs the end of the filling.
func (f *filling) Rewind() bool {
	v := f.image
	missing := v.disk.Missing()
	if missing == 0 {
		v.log.Info("the image is complete on disk", "image", v.name, "directory", v.disk.Path())
		return false
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
func (f *filling) Budget() fetch.Budget {
	if !f.image.disk.Room() {
		return fetch.Budget{Pause: fullPause}
	}
	return fetch.Budget{Delay: fillDelay, Idle: true}
}
