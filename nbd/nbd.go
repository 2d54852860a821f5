// Package nbd serves devices over the NBD protocol: fixed newstyle negotiation, TLS, simple and
// structured replies, metadata contexts. It is written from the public specification (NetworkBlockDevice/nbd,
// doc/proto.md). It knows nothing of images, chunks or stores, and it neither opens nor makes a device.
package nbd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"unicode/utf8"
)

// Device is a run of bytes that clients read. Its methods are called by many goroutines at once. A device
// offers more by having the methods of Extenter, Describer, Prefetcher, Resident or Writer as well.
type Device interface {
	// Size is the length in bytes, at most 2^62. It does not change.
	Size() int64
	// ReadAt fills p with the bytes from off on, or fails: it has no short reads. The server asks only for
	// what lies within Size. It returns soon after ctx ends, which means that nobody waits any more, or
	// the server could not stop. The client gets the error as EIO, and its text if structured replies were negotiated.
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// Extent is a run of Length bytes that is, or is not, known to read as zeros.
type Extent struct {
	Length int64
	Zero   bool
}

// Extenter is a Device that knows where its zeros are.
type Extenter interface {
	// Extents yields in order what lies between off and off+n; the last may reach beyond. It answers from
	// memory, without I/O. What is not yielded counts as data.
	Extents(off, n int64) iter.Seq[Extent]
}

// State is a run of Length bytes that have something in common; what the bits mean is the context's affair.
type State struct {
	Length int64
	Bits   uint32
}

// Describer is a Device that can tell more of its bytes than where zeros are. Clients ask for it by the names of
// metadata contexts.
type Describer interface {
	// Contexts names what can be told, each name such as "x-vendor:thing". It is always the same, and at most
	// MaxContexts.
	Contexts() []string
	// States yields in order what holds in a context between off and off+n; the last may reach beyond. It
	// answers from memory, without I/O. What is not yielded is 0.
	States(context string, off, n int64) iter.Seq[State]
}

// MaxContexts is how many metadata contexts a device may have, besides base:allocation.
const MaxContexts = 7

// Prefetcher is a Device that can be told what will be read.
type Prefetcher interface {
	// Prefetch has the bytes between off and off+n brought near. It may return before they are.
	Prefetch(ctx context.Context, off, n int64) error
}

// Resident is a Device that has some of its bytes at hand.
type Resident interface {
	// ReadResident fills p and says true if it can do so without waiting for anything. Otherwise p holds
	// anything, and the server calls ReadAt. All requests of a connection wait while it runs.
	ReadResident(p []byte, off int64) bool
}

// Writer is a Device that can be changed.
type Writer interface {
	// WriteAt writes all of p, or fails. Its context does not end because the client has gone. An error
	// that says the device is full (syscall.ENOSPC, EDQUOT, EFBIG) is ENOSPC to the client.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// Flush makes durable every write that returned before Flush was called, whoever called it.
	Flush(ctx context.Context) error
}

// Export is a device under a name.
type Export struct {
	Name        string // at most 4096 bytes of UTF-8 without NUL, as all strings of the protocol
	Description string // for people; "" for none
	Canonical   string // the name that stays when Name moves on to another device; "" means Name
	Device      Device
	ReadOnly    bool // refuse writes although Device is a Writer
	MultiConn   bool // several connections see one device: what one of them wrote and flushed, all read

	// Release, if set, is called once for each time that Exports.Open returned the export, when the client that
	// it was opened for needs it no more and nothing uses Device on its behalf.
	Release func()
}

func (e *Export) release() {
	if e.Release != nil {
		e.Release()
	}
}

// contexts is the names of the metadata contexts that a client may choose.
func (e *Export) contexts() []string {
	names := []string{contextAllocation}
	if d, ok := e.Device.(Describer); ok {
		more := d.Contexts()
		names = append(names, more[:min(len(more), MaxContexts)]...)
	}
	return names
}

func (e *Export) canonical() string {
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

// ErrUnknown says that there is no export of a name.
var ErrUnknown = errors.New("unknown export")

// Listing is what clients see of an export before they choose one.
type Listing struct{ Name, Description string }

// Exports is what a server offers. Safe for concurrent use.
type Exports interface {
	// Open finds the export that a client wants to use, by its name; "" is the default one. ctx ends with the
	// time for the handshake. The errors' texts go to the client; no such export is ErrUnknown.
	Open(ctx context.Context, name string) (*Export, error)
	// Describe finds an export as Open does, for a client that asks about it and may ask about many: it should
	// cost little. Of the result's Device only Size and Contexts are called, besides what interfaces it has, and
	// Release is not called at all.
	Describe(ctx context.Context, name string) (*Export, error)
	// All lists the exports in the order in which clients should see them.
	All(ctx context.Context) ([]Listing, error)
}

// Static is a fixed list of exports, of which the first is the default.
type Static struct {
	exports []*Export
	byName  map[string]*Export
}

var _ Exports = (*Static)(nil)

// NewStatic makes a list. Each export answers to its Name and its Canonical name, which must be valid and
// no other's. The exports must not change afterwards.
func NewStatic(exports ...*Export) (*Static, error) {
	s := &Static{exports: exports, byName: make(map[string]*Export)}
	for _, e := range exports {
		for _, name := range []string{e.Name, e.canonical()} {
			if err := s.add(name, e); err != nil {
				return nil, err
			}
		}
		if !validString(e.Description) {
			return nil, fmt.Errorf("export %q: its description is not at most %d bytes of UTF-8 without NUL", e.Name, maxString)
		}
	}
	return s, nil
}

func (s *Static) add(name string, e *Export) error {
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

// Open finds an export by its Name or its Canonical name.
func (s *Static) Open(_ context.Context, name string) (*Export, error) {
	if e := s.byName[name]; e != nil {
		return e, nil
	}
	if name == "" && len(s.exports) > 0 {
		return s.exports[0], nil
	}
	return nil, fmt.Errorf("%w %q (%s)", ErrUnknown, name, s.offer())
}

// Describe is Open: all exports are open.
func (s *Static) Describe(ctx context.Context, name string) (*Export, error) {
	return s.Open(ctx, name)
}

// offer says in a few words what there is, for a client that asked for something else.
func (s *Static) offer() string {
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

// All lists the exports in the order of NewStatic.
func (s *Static) All(context.Context) ([]Listing, error) {
	list := make([]Listing, len(s.exports))
	for i, e := range s.exports {
		list[i] = Listing{e.Name, e.Description}
	}
	return list, nil
}
