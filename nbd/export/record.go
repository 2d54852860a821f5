package export

import (
	"context"
	"fmt"
	"time"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/blob/view"
)

const (
	saveInterval = 15 * time.Second // between saves of a recording
	saveTime     = 10 * time.Second // that a save may take: a reader of a pipe may be slow
)

// recording is a profile that grows with what is read of an image.
type recording struct {
	recorder *view.Recorder
	index    *blob.Index
	saved    int // reads
}

// record begins a recording of an image, if the options ask for one.
func (im *images) record(x *blob.Index) *view.Recorder {
	if im.o.Record == nil {
		return nil
	}
	r := &recording{recorder: view.NewRecorder(x, im.o.RecordTime), index: x}
	im.addRecording(r)
	if im.o.RecordOnce {
		return r.recorder
	}
	im.inBackground(func(ctx context.Context) {
		tick := time.NewTicker(saveInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				im.save(r)
			}
		}
	})
	return r.recorder
}

// save writes what was read so far, if there is more than the last time.
func (im *images) save(r *recording) {
	reads := r.recorder.Reads()
	if len(reads) == r.saved {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), saveTime)
	defer cancel()
	if err := im.o.Record(ctx, profile.New(r.index, reads)); err != nil {
		im.o.Log.Warn("the recording is not written", "error", fmt.Errorf("writing the recording: %w", err))
		return
	}
	r.saved = len(reads)
}
