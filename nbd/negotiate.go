package nbd

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Limits of a handshake. Data beyond maxDrain ends the connection.
const (
	maxOptionData = 64 << 10
	maxDrain      = 1 << 20  // an option's data that is read only to be thrown away
	listPiece     = 64 << 10 // a list is sent in pieces of about this size
)

var (
	errAborted = errors.New("the client gave up")
	errNoTLS   = errors.New("the client wants an export without TLS")
	errNoPlace = errors.New("its place was given to a newer connection")
)

// session is what a handshake agreed on.
type session struct {
	export     *Export
	size       uint64
	structured bool     // replies to reads are structured
	contexts   []string // that were chosen; each one's id is its place, from 1 on
}

func (s *session) flags() uint16 {
	flags := uint16(hasFlags | readOnly)
	if s.export.writer() != nil {
		flags = hasFlags | sendFlush | sendFUA | sendWriteZeroes
	}
	if s.structured {
		flags |= sendDF
	}
	if s.export.MultiConn {
		flags |= canMultiConn
	}
	if _, ok := s.export.Device.(Prefetcher); ok {
		flags |= sendCache
	}
	return flags
}

// handshake is the negotiation with one client. It reads exactly the bytes of each message and holds none
// back, so that whatever comes next may read from conn, be it transmission or the TLS layer, and nothing
// that a man in the middle put behind an option is taken for protected. All it remembers is in its fields.
type handshake struct {
	conn    io.ReadWriter
	exports Exports
	budget  budget
	// extend moves the time at which conn's reads and writes fail. It fails when conn does.
	extend func(time.Time) error
	// settle makes the connection's place its own. It reports false if the place is lost.
	settle func() bool
	// secure puts TLS around conn. Until it has, the client is told nothing. Nil if there is no TLS.
	secure func() (io.ReadWriter, error)

	protected  bool // by TLS
	noZeroes   bool
	structured bool
	contexts   contexts
	listed     bool      // the client has seen the list
	described  described // the export that the client asked about last
	deadline   time.Time // of the option being answered
	data, out  []byte    // buffers
}

// described is which export a name stood for when a client asked about it.
type described struct{ name, canonical string }

// contexts is what the last SET_META_CONTEXT chose, and for which export.
type contexts struct {
	export string
	names  []string
}

// option is a client's wish.
type option struct {
	id     uint32
	data   []byte // valid until the next option is read
	tooBig bool   // the data was longer than maxOptionData and is not here
}

// run speaks with the client until it is agreed what is served, or the client, or its breach of the
// protocol, ends the session. When ctx is over, options are refused. The session's export is to be released by
// the caller.
func (h *handshake) run(ctx context.Context) (*session, error) {
	if err := h.greet(); err != nil {
		return nil, err
	}
	for {
		o, err := h.next()
		if err != nil {
			return nil, err
		}
		s, verdict := h.answer(ctx, o)
		if s != nil {
			return h.conclude(s)
		}
		if err := cmp.Or(h.flush(), verdict); err != nil {
			return nil, err
		}
	}
}

// conclude tells the client that its export is chosen. Its place is its own before it hears of it.
func (h *handshake) conclude(s *session) (*session, error) {
	err := errNoPlace
	if h.settle() {
		err = h.flush()
	}
	if err != nil {
		s.export.release()
		return nil, err
	}
	return s, nil
}

// startTLS begins anew under TLS: of what was said in the open, nothing counts.
func (h *handshake) startTLS(o option) error {
	switch {
	case h.secure == nil:
		h.refuse(o, repErrUnsup, "the server has no TLS")
		return nil
	case h.protected:
		h.refuse(o, repErrInvalid, "TLS is on already")
		return nil
	case len(o.data) > 0:
		h.refuse(o, repErrInvalid, "STARTTLS takes no data")
		return nil
	}
	h.reply(o, repAck, nil)
	if err := h.flush(); err != nil {
		return err
	}
	conn, err := h.secure()
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.conn, h.protected = conn, true
	h.structured, h.contexts = false, contexts{}
	return nil
}

func (h *handshake) greet() error {
	if err := h.startTimer(); err != nil {
		return err
	}
	h.out = appendU64(appendU64(h.out, magicServer), magicOption)
	h.out = appendU16(h.out, handshakeFixedNewstyle|handshakeNoZeroes)
	if err := h.flush(); err != nil {
		return err
	}
	var p [4]byte
	if _, err := io.ReadFull(h.conn, p[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(p[:])
	if unknown := flags &^ (handshakeFixedNewstyle | handshakeNoZeroes); unknown != 0 {
		return fmt.Errorf("unknown client flags %#x", unknown)
	}
	h.noZeroes = flags&handshakeNoZeroes != 0
	return nil
}

func (h *handshake) flush() error {
	if len(h.out) == 0 {
		return nil
	}
	_, err := h.conn.Write(h.out)
	h.out = h.out[:0]
	return err
}

// startTimer sets the time by which the client's next message must be here and answered.
func (h *handshake) startTimer() error {
	h.deadline = h.budget.deadline(time.Now())
	return h.extend(h.deadline)
}

// next reads an option, if the client may send one more.
func (h *handshake) next() (option, error) {
	if err := h.startTimer(); err != nil {
		return option{}, err
	}
	var head [16]byte
	if _, err := io.ReadFull(h.conn, head[:]); err != nil {
		return option{}, err
	}
	if magic := binary.BigEndian.Uint64(head[:]); magic != magicOption {
		return option{}, fmt.Errorf("an option starts with %#x", magic)
	}
	o := option{id: binary.BigEndian.Uint32(head[8:])}
	if err := h.budget.spend(o.id); err != nil {
		return option{}, err
	}
	n := binary.BigEndian.Uint32(head[12:])
	if n > maxDrain {
		return option{}, fmt.Errorf("option %d has %d bytes of data", o.id, n)
	}
	if n > maxOptionData {
		o.tooBig = true
		_, err := io.CopyN(io.Discard, h.conn, int64(n))
		return o, err
	}
	h.data = slices.Grow(h.data[:0], int(n))[:n]
	o.data = h.data
	_, err := io.ReadFull(h.conn, o.data)
	return o, err
}

// answer appends the replies to an option. A session or an error ends the handshake.
func (h *handshake) answer(ctx context.Context, o option) (*session, error) {
	if o.id == optSetMetaContext {
		h.contexts = contexts{} // "including when this command fails"
	}
	switch {
	case o.id == optAbort:
		h.reply(o, repAck, nil)
		return nil, errAborted
	case o.id == optExportName && h.veiled():
		return nil, errNoTLS
	case o.id == optExportName:
		return h.exportName(ctx, o)
	case ctx.Err() != nil:
		h.refuse(o, repErrShutdown, "the server is stopping")
	case o.tooBig:
		h.refuse(o, repErrTooBig, fmt.Sprintf("the option's data is longer than %d bytes", maxOptionData))
	case o.id == optStartTLS:
		return nil, h.startTLS(o)
	case h.veiled():
		h.refuse(o, repErrTLSReqd, "this server speaks TLS only")
	case o.id == optInfo || o.id == optGo:
		return h.info(ctx, o)
	case o.id == optList:
		return nil, h.list(ctx, o)
	case o.id == optStructuredReply:
		h.structuredReply(o)
	case o.id == optListMetaContext || o.id == optSetMetaContext:
		h.metaContext(ctx, o)
	default:
		h.refuse(o, repErrUnsup, fmt.Sprintf("option %d is not supported", o.id))
	}
	return nil, nil
}

// veiled says whether the client is to be told nothing yet.
func (h *handshake) veiled() bool { return h.secure != nil && !h.protected }

func (h *handshake) reply(o option, kind uint32, data []byte) {
	h.out = appendU32(appendU32(appendU64(h.out, magicOptionReply), o.id), kind)
	h.out = append(appendU32(h.out, uint32(len(data))), data...)
}

func (h *handshake) refuse(o option, kind uint32, text string) {
	h.reply(o, kind, []byte(cut(text, maxErrorText)))
}

// findExport finds an export that a client asks about, while there is time.
func (h *handshake) findExport(ctx context.Context, name string) (*Export, error) {
	ctx, cancel := context.WithDeadline(ctx, h.deadline)
	defer cancel()
	export, err := h.exports.Describe(ctx, name)
	if err == nil {
		h.described = described{name, export.canonical()}
	}
	return export, err
}

// openExport opens an export while there is time. A client that has asked about this name gets the export that it was told
// of, as long as that can be had.
func (h *handshake) openExport(ctx context.Context, name string) (*Export, error) {
	ctx, cancel := context.WithDeadline(ctx, h.deadline)
	defer cancel()
	if h.described.name == name && h.described.canonical != name {
		export, err := h.exports.Open(ctx, h.described.canonical)
		if !errors.Is(err, ErrUnknown) {
			return export, err
		}
	}
	return h.exports.Open(ctx, name)
}

// session is what is agreed if the client chooses this export, which it knows by this name.
func (h *handshake) session(export *Export, name string) *session {
	s := &session{export: export, size: uint64(export.Device.Size()), structured: h.structured}
	if h.contexts.export == name && containsAll(export.contexts(), h.contexts.names) {
		s.contexts = h.contexts.names
	}
	return s
}

func containsAll(all, some []string) bool {
	return !slices.ContainsFunc(some, func(name string) bool { return !slices.Contains(all, name) })
}

// exportName is the old way to choose an export. It has no reply for an error, only the end.
func (h *handshake) exportName(ctx context.Context, o option) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if len(o.data) > maxString || o.tooBig {
		return nil, fmt.Errorf("an export name is longer than %d bytes", maxString)
	}
	name := string(o.data)
	export, err := h.openExport(ctx, name)
	if err != nil {
		return nil, err
	}
	s := h.session(export, name)
	h.out = appendU16(appendU64(h.out, s.size), s.flags())
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, 124)...)
	}
	return s, nil
}

// info answers INFO and GO, which differ only in what follows.
func (h *handshake) info(ctx context.Context, o option) (*session, error) {
	c := cursor{p: o.data}
	name := c.text()
	wanted := c.take(2 * uint32(c.u16()))
	if !c.ok() {
		h.refuse(o, repErrInvalid, "the option's data is malformed")
		return nil, nil
	}
	if len(name) > maxString {
		h.refuse(o, repErrTooBig, fmt.Sprintf("the export name is longer than %d bytes", maxString))
		return nil, nil
	}
	find := h.openExport
	if o.id == optInfo {
		find = h.findExport
	}
	export, err := find(ctx, name)
	if err != nil {
		h.fail(o, err)
		return nil, nil
	}
	s := h.session(export, name)
	h.replyInfo(o, s, name, wanted)
	h.reply(o, repAck, nil)
	if o.id == optInfo {
		return nil, nil
	}
	return s, nil
}

func (h *handshake) fail(o option, err error) {
	kind := uint32(repErrPlatform)
	if errors.Is(err, ErrUnknown) {
		kind = repErrUnknown
	}
	h.refuse(o, kind, err.Error())
}

// replyInfo sends the size and flags of an export, and what else the client wants to know.
func (h *handshake) replyInfo(o option, s *session, name string, wanted []byte) {
	var asked [infoBlockSize + 1]bool
	for c := (cursor{p: wanted}); len(c.p) > 0; {
		if kind := c.u16(); int(kind) < len(asked) {
			asked[kind] = true
		}
	}
	h.reply(o, repInfo, appendU16(appendU64(appendU16(nil, infoExport), s.size), s.flags()))
	if asked[infoName] {
		h.reply(o, repInfo, append(appendU16(nil, infoName), h.infoName(o, s.export, name)...))
	}
	if asked[infoDescription] {
		h.reply(o, repInfo, append(appendU16(nil, infoDescription), s.export.Description...))
	}
	if asked[infoBlockSize] {
		sizes := appendU32(appendU32(appendU16(nil, infoBlockSize), minBlock), block)
		h.reply(o, repInfo, appendU32(sizes, maxPayload))
	}
}

// infoName is the name of an export in a reply to INFO or GO: the canonical one. nbdinfo --list prints these names, not
// those of the list. So a client that has listed the exports, and asks about one by its listed name, gets that name.
func (h *handshake) infoName(o option, e *Export, name string) string {
	if o.id == optInfo && h.listed && name == e.Name {
		return e.Name
	}
	return e.canonical()
}

// list sends the list in pieces, so that a long one takes little memory.
func (h *handshake) list(ctx context.Context, o option) error {
	if len(o.data) > 0 {
		h.refuse(o, repErrInvalid, "a list takes no data")
		return nil
	}
	ctx, cancel := context.WithDeadline(ctx, h.deadline)
	defer cancel()
	all, err := h.exports.All(ctx)
	if err != nil {
		h.fail(o, err)
		return nil
	}
	h.listed = true
	h.budget.grow(len(all))
	for _, e := range all {
		name := append(appendU32(nil, uint32(len(e.Name))), e.Name...)
		h.reply(o, repServer, append(name, e.Description...))
		if len(h.out) < listPiece {
			continue
		}
		if err := h.flush(); err != nil {
			return err
		}
	}
	h.reply(o, repAck, nil)
	return nil
}

func (h *handshake) structuredReply(o option) {
	if len(o.data) > 0 {
		h.refuse(o, repErrInvalid, "structured replies take no data")
		return
	}
	h.structured = true
	h.reply(o, repAck, nil)
}

// metaContext lists or sets the contexts of an export.
func (h *handshake) metaContext(ctx context.Context, o option) {
	if !h.structured {
		h.refuse(o, repErrInvalid, "structured replies must be negotiated first")
		return
	}
	name, queries, ok := parseMetaContext(o.data)
	if !ok {
		h.refuse(o, repErrInvalid, "the option's data is malformed")
		return
	}
	export, err := h.findExport(ctx, name)
	if err != nil {
		h.fail(o, err)
		return
	}
	list := o.id == optListMetaContext
	matches := matching(export.contexts(), queries, list)
	if !list {
		h.contexts = contexts{name, matches}
	}
	for i, match := range matches {
		h.reply(o, repMetaContext, append(appendU32(nil, uint32(i+1)), match...))
	}
	h.reply(o, repAck, nil)
}

// matching is those of the contexts that a client asks for. In a list, no query stands for all, and one such as
// "base:" for all of a namespace.
func matching(contexts, queries []string, list bool) []string {
	if list && len(queries) == 0 {
		return contexts
	}
	var matches []string
	for _, c := range contexts {
		namespace, _, _ := strings.Cut(c, ":")
		if slices.Contains(queries, c) || list && slices.Contains(queries, namespace+":") {
			matches = append(matches, c)
		}
	}
	return matches
}

func parseMetaContext(p []byte) (name string, queries []string, ok bool) {
	c := cursor{p: p}
	name = c.text()
	for n := c.u32(); n > 0 && !c.bad; n-- {
		queries = append(queries, c.text())
	}
	return name, queries, c.ok() && len(name) <= maxString
}
