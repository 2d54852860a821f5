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
	saveTime     = 10 * time.Second // timeout of a save: the reader of a pipe may be slow
)

// recording is a profile that grows with the reads of an image.
type recording struct {
	recorder *view.Recorder
	index    *blob.Index
	saved    int // reads in the saved profile
}

// startRecording starts a recording of an image, if Options.Record is set.
func (im *images) startRecording(x *blob.Index) *view.Recorder {
	if im.o.Record == nil {
		return nil
	}
	r := &recording{recorder: view.NewRecorder(x, im.o.RecordTime), index: x}
	im.mu.Lock()
	im.recordings = append(im.recordings, r)
	im.mu.Unlock()
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
				im.saveRecording(r)
			}
		}
	})
	return r.recorder
}

// saveRecording saves the reads so far, if there are new ones.
func (im *images) saveRecording(r *recording) {
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
