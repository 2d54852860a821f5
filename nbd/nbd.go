// Package nbd serves devices over the NBD protocol: fixed newstyle negotiation, TLS, simple and
// structured replies, and metadata contexts. It is written from the public specification
// (NetworkBlockDevice/nbd, doc/proto.md). It knows nothing of images, chunks or stores, and it
// neither opens nor creates devices.
package nbd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"unicode/utf8"
)

// Device is a block device that clients read. Its methods must be safe for concurrent use. A device
// may also implement Extenter, Describer, Prefetcher, Resident and Writer.
type Device interface {
	// Size returns the length in bytes, at most 2^62. It never changes.
	Size() int64
	// ReadAt fills p with the bytes at off, or fails: there are no short reads. The range lies
	// within Size. ctx ends when the client is gone, or when DrainTimeout has passed after the
	// server's stop. ReadAt must return soon after that, because the server waits for it.
	//
	// The client receives the error as EIO. It receives ENOSPC for the errors that Writer names,
	// and ESHUTDOWN if DrainTimeout has passed. Only structured replies carry the error's text, up
	// to 1024 bytes.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Extent is a run of Length bytes. Zero means that they read as zeros; otherwise they may be
// anything.
type Extent struct {
	Length int64
	Zero   bool
}

// Extenter is a Device that knows which of its bytes are zeros.
type Extenter interface {
	// Extents yields the extents from off to off+n, in order. The last one may reach beyond off+n.
	// Bytes after the last extent count as data. Extents answers from memory, without I/O.
	Extents(off, n int64) iter.Seq[Extent]
}

// State is a run of Length bytes that have the same Bits. The metadata context defines the meaning
// of Bits.
type State struct {
	Length int64
	Bits   uint32
}

// Describer is a Device that has metadata contexts of its own, besides base:allocation.
type Describer interface {
	// Contexts returns the names of the contexts, such as "x-vendor:thing". It always returns the
	// same names, at most MaxContexts.
	Contexts() []string
	// States yields the states of a context from off to off+n, in order. The last one may reach
	// beyond off+n. Bytes after the last state have state 0. States answers from memory, without
	// I/O.
	States(context string, off, n int64) iter.Seq[State]
}

// MaxContexts is the number of metadata contexts that a device may have, without base:allocation.
const MaxContexts = 7

// Prefetcher is a Device that can fetch bytes before they are read.
type Prefetcher interface {
	// Prefetch starts to fetch n bytes at off. It may return before they are fetched.
	Prefetch(ctx context.Context, off, n int64) error
}

// Resident is a Device that has some of its bytes in memory.
type Resident interface {
	// ReadResident fills p with the bytes at off and reports true, if it can do so without
	// blocking. Otherwise p is undefined, and the server calls ReadAt. All requests of the
	// connection wait for ReadResident.
	ReadResident(p []byte, off int64) bool
}

// Writer is a Device that can be written.
type Writer interface {
	// WriteAt writes all of p at off, or fails. ctx does not end when the client disconnects. The
	// client receives the errors syscall.ENOSPC, EDQUOT and EFBIG as ENOSPC, and others as ReadAt
	// says.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Flush makes all writes durable that returned before Flush was called, whichever connection
	// made them.
	Flush(ctx context.Context) error
}

// Export is a device with a name.
type Export struct {
	Name        string // at most 4096 bytes of UTF-8 without NUL, as all strings of the protocol
	Description string // for humans; "" for none
	Canonical   string // name that always means this device, even when Name means another one; "" means Name
	Device      Device
	ReadOnly    bool // refuse writes even if Device is a Writer
	MultiConn   bool // all connections see the same device: a flushed write of one is visible to the others

	// Release, if not nil, is called once for each time that Exports.Open returned the export: when
	// its client has disconnected and no call uses Device for that client any more.
	Release func()
}

func (e *Export) callRelease() {
	if e.Release != nil {
		e.Release()
	}
}

// contextNames returns the names of the metadata contexts that a client may select.
func (e *Export) contextNames() []string {
	names := []string{contextAllocation}
	if d, ok := e.Device.(Describer); ok {
		more := d.Contexts()
		names = append(names, more[:min(len(more), MaxContexts)]...)
	}
	return names
}

func (e *Export) canonicalName() string {
	if e.Canonical == "" {
		return e.Name
	}
	return e.Canonical
}

func (e *Export) writer() Writer {
	w, ok := e.Device.(Writer)
	if !ok || e.ReadOnly {
		return nil
	}
	return w
}

// ErrUnknown means that no export has the requested name.
var ErrUnknown = errors.New("unknown export")

// Listing is an export in the list that the server sends to a client.
type Listing struct{ Name, Description string }

// Exports finds and lists the exports of a server. It must be safe for concurrent use.
type Exports interface {
	// Open returns the export that a client selects by name; "" selects the default export. ctx
	// ends at the deadline of the client's option. The client receives the text of the error. If no
	// export has the name, the error wraps ErrUnknown.
	Open(ctx context.Context, name string) (*Export, error)
	// Describe finds an export as Open does, for a client that requests information about it. It
	// should be cheap, because a client may do so for every export. The server does not read the
	// result's Device and does not call Release. It calls only Size and Contexts, and checks which
	// interfaces Device implements.
	Describe(ctx context.Context, name string) (*Export, error)
	// All lists the exports in the order that clients see.
	All(ctx context.Context) ([]Listing, error)
}

// Static is a fixed list of exports. The first one is the default.
type Static struct {
	exports []*Export
	byName  map[string]*Export
}

var _ Exports = (*Static)(nil)

// NewStatic returns a list of exports. A client may use the Name or the Canonical name of an
// export. Both must be valid, and no other export may have them. The exports must not change
// afterwards.
func NewStatic(exports ...*Export) (*Static, error) {
	s := &Static{exports: exports, byName: make(map[string]*Export)}
	for _, e := range exports {
		for _, name := range []string{e.Name, e.canonicalName()} {
			if err := s.addName(name, e); err != nil {
				return nil, err
			}
		}
		if !validString(e.Description) {
			return nil, fmt.Errorf("export %q: its description is not at most %d bytes of UTF-8 without NUL", e.Name, maxString)
		}
	}
	return s, nil
}

func (s *Static) addName(name string, e *Export) error {
	if !validString(name) {
		return fmt.Errorf("export name %q is not at most %d bytes of UTF-8 without NUL", name, maxString)
	}
	if other := s.byName[name]; other != nil && other != e {
		return fmt.Errorf("two exports are named %q", name)
	}
	s.byName[name] = e
	return nil
}

func validString(s string) bool {
	return len(s) <= maxString && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// Open returns the export that has name as its Name or Canonical name.
func (s *Static) Open(_ context.Context, name string) (*Export, error) {
	if e := s.byName[name]; e != nil {
		return e, nil
	}
	if name == "" && len(s.exports) > 0 {
		return s.exports[0], nil
	}
	return nil, fmt.Errorf("%w %q (%s)", ErrUnknown, name, s.listNames())
}

// Describe is the same as Open.
func (s *Static) Describe(ctx context.Context, name string) (*Export, error) {
	return s.Open(ctx, name)
}

// listNames lists the first exports, for the error that a client gets for an unknown name.
func (s *Static) listNames() string {
	const few = 8
	var names []string
	for _, e := range s.exports[:min(few, len(s.exports))] {
		names = append(names, fmt.Sprintf("%q", e.Name))
	}
	if len(s.exports) > few {
		names = append(names, fmt.Sprintf("and %d more", len(s.exports)-few))
	}
	if names == nil {
		return "there are no exports"
	}
	return "there is " + strings.Join(names, ", ")
}

// All lists the exports in the order of NewStatic's arguments.
func (s *Static) All(context.Context) ([]Listing, error) {
	list := make([]Listing, len(s.exports))
	for i, e := range s.exports {
		list[i] = Listing{e.Name, e.Description}
	}
	return list, nil
}
