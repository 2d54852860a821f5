package transfer

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Send sets data as the body of a request. The transport does not read data after stop returns.
// Send calls abort in two cases: the server takes less than 32 KiB of data within the patience, or
// it does not answer within twice the patience after it has all data. The timer starts with the
// first read of the body and ends with stop.
func Send(request *http.Request, data []byte, patience time.Duration, abort func(error)) (stop func()) {
	if len(data) == 0 {
		return func() {}
	}
	o := &outgoing{data: data, patience: patience, abort: abort}
	request.ContentLength = int64(len(data))
	request.GetBody = func() (io.ReadCloser, error) { return &sending{out: o}, nil }
	request.Body = &sending{out: o}
	return o.stop
}

// outgoing is the body of a request. The transport may read it a second time if the first
// connection was already closed.
type outgoing struct {
	patience time.Duration
	abort    func(error)

	mu      sync.Mutex // guards all below
	data    []byte
	recent  int
	stalled *time.Timer // nil before the first read
	stopped bool
}

// errStopped ends the reading of a body after stop.
var errStopped = errors.New("the request has ended")

func (o *outgoing) readAt(p []byte, at int) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		return 0, errStopped
	}
	n := copy(p, o.data[at:])
	if o.recent += n; o.stalled == nil || o.recent >= window {
		o.resetTimer(o.patience)
	}
	if at+n < len(o.data) || n > 0 {
		return n, nil
	}
	o.resetTimer(2 * o.patience) // ResponseHeaderTimeout starts after the last bytes are sent, and should end first
	return 0, io.EOF
}

func (o *outgoing) resetTimer(d time.Duration) {
	o.recent = 0
	if o.stalled == nil {
		o.stalled = time.AfterFunc(d, func() { o.abort(ErrStalled) })
		return
	}
	o.stalled.Reset(d)
}

func (o *outgoing) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.stopped = true
	if o.stalled != nil {
		o.stalled.Stop()
	}
}

// sending is one reader of the data, from its start.
type sending struct {
	out *outgoing
	at  int
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.out.readAt(p, s.at)
	s.at += n
	return n, err
}

func (s *sending) Close() error { return nil }
