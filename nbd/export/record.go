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
	write    func(ctx context.Context, p *profile.Profile) error
	saved    int // reads
}

// record begins a recording of an image, if the options ask for one.
func (im *images) record(x *blob.Index) *view.Recorder {
	if im.o.Record == nil {
		return nil
	}
	r := &recording{recorder: view.NewRecorder(x, im.o.RecordTime), index: x, write: im.o.Record}
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
				im.logFailure("the recording is not written", r.save())
			}
		}
	})
	return r.recorder
}

// save writes what was read so far, if there is more than the last time.
func (r *recording) save() error {
	touches := r.recorder.Reads()
	if len(touches) == r.saved {
		return nil
	}
	reads := make([]profile.Read, len(touches))
	for i, t := range touches {
		reads[i] = profile.Read{Chunk: t.Chunk, After: t.After}
	}
	ctx, cancel := context.WithTimeout(context.Background(), saveTime)
	defer cancel()
	if err := r.write(ctx, profile.New(r.index, reads)); err != nil {
		return fmt.Errorf("writing the recording: %w", err)
	}
	r.saved = len(touches)
	return nil
}
