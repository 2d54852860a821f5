package store

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
)

// UploadOptions are the limits of NewUploads. The zero value has the defaults.
type UploadOptions struct {
	AtOnce int   // objects; 0 is 32
	Bytes  int64 // of the objects being written, or one object if it is larger; 0 is 64 MiB
}

// NewUploads returns a batch for a bucket whose every Write is durable and slow, as over a network.
// It writes several objects at once, each as soon as it is added.
//
// Failures are reported late: after a failed upload every Write fails until a Commit, which retries
// the object, has written it. Close ends the uploads under way.
func NewUploads(b Bucket, o UploadOptions) Batch {
	if o.AtOnce < 1 {
		o.AtOnce = 32
	}
	if o.Bytes < 1 {
		o.Bytes = 64 << 20
	}
	// Uploads outlive the call that starts them, whose context may end before Commit, as an
	// errgroup's does.
	ctx, cancel := context.WithCancel(context.Background())
	return &uploads{bucket: b, limits: o, ctx: ctx, cancel: cancel,
		running: map[string]*upload{}, changed: make(chan struct{})}
}

type uploads struct {
	bucket  Bucket
	limits  UploadOptions
	ctx     context.Context // of the uploads; Close ends it
	cancel  context.CancelFunc
	workers sync.WaitGroup

	mu        sync.Mutex // guards the fields below
	running   map[string]*upload
	heldBytes int64         // bytes of the running uploads
	failed    []*upload     // at most AtOnce, since no object is added after a failure
	changed   chan struct{} // closed and replaced when an upload ends
	closed    bool
}

// upload is one object and the state of its upload.
type upload struct {
	name string
	data []byte
	err  error
	done chan struct{} // closed when err is final
}

var errClosed = errors.New("the batch is closed")

// Write implements Batch. Of two objects of one name the second waits for the first, so that the
// second remains.
func (u *uploads) Write(ctx context.Context, name string, data []byte) error {
	if err := CheckName(name); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		changed, err := u.tryStart(name, data)
		if changed == nil || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// tryStart starts an upload, or returns a channel that closes when the caller can try again.
func (u *uploads) tryStart(name string, data []byte) (changed chan struct{}, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.closed:
		return nil, errClosed
	case len(u.failed) > 0:
		return nil, u.failed[0].err
	case u.running[name] != nil || len(u.running) >= u.limits.AtOnce,
		len(u.running) > 0 && u.heldBytes+int64(len(data)) > u.limits.Bytes:
		return u.changed, nil
	}
	u.startUpload(name, bytes.Clone(data))
	return nil, nil
}

// startUpload starts an upload. The caller holds mu.
func (u *uploads) startUpload(name string, data []byte) {
	up := &upload{name: name, data: data, done: make(chan struct{})}
	u.running[name] = up
	u.heldBytes += int64(len(data))
	u.workers.Go(func() {
		up.err = u.bucket.Write(u.ctx, name, data)
		u.endUpload(up)
	})
}

func (u *uploads) endUpload(up *upload) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.running, up.name)
	u.heldBytes -= int64(len(up.data))
	if up.err != nil {
		u.failed = append(u.failed, up)
	}
	close(up.done)
	close(u.changed)
	u.changed = make(chan struct{})
}

// Commit implements Batch.
func (u *uploads) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	running, err := u.restartFailed()
	if err != nil {
		return err
	}
	for _, up := range running {
		select {
		case <-up.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return u.firstFailure()
}

// restartFailed restarts the failed uploads, and returns all running ones.
func (u *uploads) restartFailed() ([]*upload, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil, errClosed
	}
	for _, up := range u.failed {
		u.startUpload(up.name, up.data)
	}
	u.failed = nil
	return slices.Collect(maps.Values(u.running)), nil
}

func (u *uploads) firstFailure() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.failed) > 0 {
		return u.failed[0].err
	}
	return nil
}

// Close implements Batch. It cancels the running uploads and waits for them.
func (u *uploads) Close() error {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.cancel()
	u.workers.Wait()
	return nil
}
