package transfer

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Send makes data the body of a request. Nobody reads data after stop, whatever the transport still does; and when
// the server takes less than 32 KiB of it within the patience, or does not answer when it has it all, abort is
// called. The watch begins with the connection, and ends with stop.
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

// outgoing is data under way, maybe for a second time, since a connection may turn out to be closed already.
type outgoing struct {
	patience time.Duration
	abort    func(error)

	mu      sync.Mutex // guards all below
	data    []byte
	recent  int
	stalled *time.Timer // nil before the first byte is asked for
	stopped bool
}

// errStopped ends the reading of a body that is not needed any more.
var errStopped = errors.New("the request has ended")

func (o *outgoing) read(p []byte, at int) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stopped {
		return 0, errStopped
	}
	n := copy(p, o.data[at:])
	if o.recent += n; o.stalled == nil || o.recent >= window {
		o.wait(o.patience)
	}
	if at+n < len(o.data) || n > 0 {
		return n, nil
	}
	o.wait(2 * o.patience) // the transport's own time for the answer begins when it has sent the last bytes
	return 0, io.EOF
}

func (o *outgoing) wait(d time.Duration) {
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

// sending is one reading of the data, from its start.
type sending struct {
	out *outgoing
	at  int
}

func (s *sending) Read(p []byte) (int, error) {
	n, err := s.out.read(p, s.at)
	s.at += n
	return n, err
}

func (s *sending) Close() error { return nil }
