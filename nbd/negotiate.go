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

// Limits of a handshake. An option with more than maxDrain bytes of data ends the connection.
const (
	maxOptionData = 64 << 10
	maxDrain      = 1 << 20  // bytes of an option's data that are read and discarded
	listFlushSize = 64 << 10 // size of the parts in which a long list is sent
)

var (
	errAborted = errors.New("the client aborted the handshake")
	errNoTLS   = errors.New("the client wants an export without TLS")
	errEvicted = errors.New("evicted for a newer connection")
)

// session is the result of a handshake.
type session struct {
	export     *Export
	size       uint64
	structured bool     // reads get structured replies
	contexts   []string // selected metadata contexts; the id of each is its index plus 1
}

func (s *session) transmissionFlags() uint16 {
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

// handshake is the negotiation with one client. It never reads ahead: the transmission phase or the
// TLS layer reads the following bytes from conn. So bytes that an attacker inserts behind STARTTLS
// are never taken for bytes sent over TLS.
type handshake struct {
	conn    io.ReadWriter
	exports Exports
	budget  budget
	// setDeadline sets conn's deadline. It fails if conn is closed.
	setDeadline func(time.Time) error
	// exemptConn protects the connection from eviction in its handshake. It reports false if it was
	// evicted before.
	exemptConn func() bool
	// upgradeTLS returns conn under TLS. Before that, the client gets no information. Nil without
	// TLS.
	upgradeTLS func() (io.ReadWriter, error)

	overTLS    bool // the connection uses TLS
	noZeroes   bool
	structured bool
	contexts   chosenContexts
	listed     bool      // the client has received the list
	described  described // the export of the last request for information
	deadline   time.Time // of the current option
	data, out  []byte    // buffers
}

// described is an export that a client requested information about: its name then, and its
// canonical name.
type described struct{ name, canonical string }

// chosenContexts is the selection of the last SET_META_CONTEXT.
type chosenContexts struct {
	export string
	names  []string
}

// option is a request of the handshake.
type option struct {
	id     uint32
	data   []byte // valid until the next option is read
	tooBig bool   // the data was longer than maxOptionData and is discarded
}

// run negotiates until the client has selected an export, has ended the session or has violated the
// protocol. After the end of ctx it refuses options. The caller must release the session's export.
func (h *handshake) run(ctx context.Context) (*session, error) {
	if err := h.exchangeGreeting(); err != nil {
		return nil, err
	}
	for {
		o, err := h.readOption()
		if err != nil {
			return nil, err
		}
		s, verdict := h.answerOption(ctx, o)
		if s != nil {
			return h.confirmSession(s)
		}
		if err := cmp.Or(h.flushReplies(), verdict); err != nil {
			return nil, err
		}
	}
}

// confirmSession sends the client the confirmation of its export. Before that it protects the
// connection from eviction in its handshake, so that a client which got the confirmation is evicted
// only when it is idle.
func (h *handshake) confirmSession(s *session) (*session, error) {
	err := errEvicted
	if h.exemptConn() {
		err = h.flushReplies()
	}
	if err != nil {
		s.export.callRelease()
		return nil, err
	}
	return s, nil
}

// answerStartTLS upgrades the connection to TLS, and forgets all that was negotiated before.
func (h *handshake) answerStartTLS(o option) error {
	switch {
	case h.upgradeTLS == nil:
		h.refuseOption(o, repErrUnsup, "the server has no TLS")
		return nil
	case h.overTLS:
		h.refuseOption(o, repErrInvalid, "TLS is on already")
		return nil
	case len(o.data) > 0:
		h.refuseOption(o, repErrInvalid, "STARTTLS takes no data")
		return nil
	}
	h.appendReply(o, repAck, nil)
	if err := h.flushReplies(); err != nil {
		return err
	}
	conn, err := h.upgradeTLS()
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.conn, h.overTLS = conn, true
	h.structured, h.contexts = false, chosenContexts{}
	return nil
}

func (h *handshake) exchangeGreeting() error {
	if err := h.startTimer(); err != nil {
		return err
	}
	h.out = appendU64(appendU64(h.out, magicServer), magicOption)
	h.out = appendU16(h.out, handshakeFixedNewstyle|handshakeNoZeroes)
	if err := h.flushReplies(); err != nil {
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

func (h *handshake) flushReplies() error {
	if len(h.out) == 0 {
		return nil
	}
	_, err := h.conn.Write(h.out)
	h.out = h.out[:0]
	return err
}

// startTimer sets the deadline for receiving and answering the next message.
func (h *handshake) startTimer() error {
	h.deadline = h.budget.optionDeadline(time.Now())
	return h.setDeadline(h.deadline)
}

// readOption reads an option. It fails if the client has sent too many.
func (h *handshake) readOption() (option, error) {
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
	if err := h.budget.spendOption(o.id); err != nil {
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

// answerOption appends the replies to an option. A session or an error ends the handshake.
func (h *handshake) answerOption(ctx context.Context, o option) (*session, error) {
	if o.id == optSetMetaContext {
		h.contexts = chosenContexts{} // "including when this command fails" (proto.md)
	}
	switch {
	case o.id == optAbort:
		h.appendReply(o, repAck, nil)
		return nil, errAborted
	case o.id == optExportName && h.needsTLS():
		return nil, errNoTLS
	case o.id == optExportName:
		return h.answerExportName(ctx, o)
	case ctx.Err() != nil:
		h.refuseOption(o, repErrShutdown, "the server is stopping")
	case o.tooBig:
		h.refuseOption(o, repErrTooBig, fmt.Sprintf("the option's data is longer than %d bytes", maxOptionData))
	case o.id == optStartTLS:
		return nil, h.answerStartTLS(o)
	case h.needsTLS():
		h.refuseOption(o, repErrTLSReqd, "this server speaks TLS only")
	case o.id == optInfo || o.id == optGo:
		return h.answerInfo(ctx, o)
	case o.id == optList:
		return nil, h.answerList(ctx, o)
	case o.id == optStructuredReply:
		h.answerStructuredReply(o)
	case o.id == optListMetaContext || o.id == optSetMetaContext:
		h.answerMetaContext(ctx, o)
	default:
		h.refuseOption(o, repErrUnsup, fmt.Sprintf("option %d is not supported", o.id))
	}
	return nil, nil
}

// needsTLS reports whether the client must start TLS first.
func (h *handshake) needsTLS() bool { return h.upgradeTLS != nil && !h.overTLS }

func (h *handshake) appendReply(o option, kind uint32, data []byte) {
	h.out = appendU32(appendU32(appendU64(h.out, magicOptionReply), o.id), kind)
	h.out = append(appendU32(h.out, uint32(len(data))), data...)
}

func (h *handshake) refuseOption(o option, kind uint32, text string) {
	h.appendReply(o, kind, []byte(sanitizeText(text, maxErrorText)))
}

// describeExport finds an export that a client requests information about, until the deadline.
func (h *handshake) describeExport(ctx context.Context, name string) (*Export, error) {
	ctx, cancel := context.WithDeadline(ctx, h.deadline)
	defer cancel()
	export, err := h.exports.Describe(ctx, name)
	if err == nil {
		h.described = described{name, export.canonicalName()}
	}
	return export, err
}

// openExport opens an export, until the deadline. A name that the client requested information
// about opens the version that was described, if it still exists.
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

// newSession returns the session of a client that selects an export by this name.
func (h *handshake) newSession(export *Export, name string) *session {
	s := &session{export: export, size: uint64(export.Device.Size()), structured: h.structured}
	if h.contexts.export == name && containsAll(export.contextNames(), h.contexts.names) {
		s.contexts = h.contexts.names
	}
	return s
}

func containsAll(all, some []string) bool {
	return !slices.ContainsFunc(some, func(name string) bool { return !slices.Contains(all, name) })
}

// answerExportName answers EXPORT_NAME, the older option that selects an export. It has no error
// reply: an error ends the connection.
func (h *handshake) answerExportName(ctx context.Context, o option) (*session, error) {
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
	s := h.newSession(export, name)
	h.out = appendU16(appendU64(h.out, s.size), s.transmissionFlags())
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, 124)...)
	}
	return s, nil
}

// answerInfo answers INFO and GO. Only GO ends the handshake.
func (h *handshake) answerInfo(ctx context.Context, o option) (*session, error) {
	c := cursor{p: o.data}
	name := c.readString()
	kinds := c.takeBytes(2 * uint32(c.u16()))
	if !c.ok() {
		h.refuseOption(o, repErrInvalid, "the option's data is malformed")
		return nil, nil
	}
	if len(name) > maxString {
		h.refuseOption(o, repErrTooBig, fmt.Sprintf("the export name is longer than %d bytes", maxString))
		return nil, nil
	}
	find := h.openExport
	if o.id == optInfo {
		find = h.describeExport
	}
	export, err := find(ctx, name)
	if err != nil {
		h.refuseWithError(o, err)
		return nil, nil
	}
	s := h.newSession(export, name)
	h.appendInfo(o, s, name, kinds)
	h.appendReply(o, repAck, nil)
	if o.id == optInfo {
		return nil, nil
	}
	return s, nil
}

func (h *handshake) refuseWithError(o option, err error) {
	kind := uint32(repErrPlatform)
	if errors.Is(err, ErrUnknown) {
		kind = repErrUnknown
	}
	h.refuseOption(o, kind, err.Error())
}

// appendInfo appends the size and flags of an export, and the information that the client requests.
func (h *handshake) appendInfo(o option, s *session, name string, kinds []byte) {
	var requested [infoBlockSize + 1]bool
	for c := (cursor{p: kinds}); len(c.p) > 0; {
		if kind := c.u16(); int(kind) < len(requested) {
			requested[kind] = true
		}
	}
	h.appendReply(o, repInfo, appendU16(appendU64(appendU16(nil, infoExport), s.size), s.transmissionFlags()))
	if requested[infoName] {
		h.appendReply(o, repInfo, append(appendU16(nil, infoName), h.infoName(o, s.export, name)...))
	}
	if requested[infoDescription] {
		h.appendReply(o, repInfo, append(appendU16(nil, infoDescription), s.export.Description...))
	}
	if requested[infoBlockSize] {
		sizes := appendU32(appendU32(appendU16(nil, infoBlockSize), minBlock), blockSize)
		h.appendReply(o, repInfo, appendU32(sizes, maxPayload))
	}
}

// infoName returns the name of an export in a reply to INFO or GO, which is the canonical one. But
// nbdinfo --list prints these names instead of those in the list. So a client that has received the
// list and sends INFO for a listed name gets that name.
func (h *handshake) infoName(o option, e *Export, name string) string {
	if o.id == optInfo && h.listed && name == e.Name {
		return e.Name
	}
	return e.canonicalName()
}

// answerList sends the list in parts, to limit its memory.
func (h *handshake) answerList(ctx context.Context, o option) error {
	if len(o.data) > 0 {
		h.refuseOption(o, repErrInvalid, "a list takes no data")
		return nil
	}
	ctx, cancel := context.WithDeadline(ctx, h.deadline)
	defer cancel()
	all, err := h.exports.All(ctx)
	if err != nil {
		h.refuseWithError(o, err)
		return nil
	}
	h.listed = true
	h.budget.extendForList(len(all))
	for _, e := range all {
		name := append(appendU32(nil, uint32(len(e.Name))), e.Name...)
		h.appendReply(o, repServer, append(name, e.Description...))
		if len(h.out) < listFlushSize {
			continue
		}
		if err := h.flushReplies(); err != nil {
			return err
		}
	}
	h.appendReply(o, repAck, nil)
	return nil
}

func (h *handshake) answerStructuredReply(o option) {
	if len(o.data) > 0 {
		h.refuseOption(o, repErrInvalid, "structured replies take no data")
		return
	}
	h.structured = true
	h.appendReply(o, repAck, nil)
}

// answerMetaContext lists or selects the metadata contexts of an export.
func (h *handshake) answerMetaContext(ctx context.Context, o option) {
	if !h.structured {
		h.refuseOption(o, repErrInvalid, "structured replies must be negotiated first")
		return
	}
	name, queries, ok := parseMetaContext(o.data)
	if !ok {
		h.refuseOption(o, repErrInvalid, "the option's data is malformed")
		return
	}
	export, err := h.describeExport(ctx, name)
	if err != nil {
		h.refuseWithError(o, err)
		return
	}
	list := o.id == optListMetaContext
	matches := matchContexts(export.contextNames(), queries, list)
	if !list {
		h.contexts = chosenContexts{name, matches}
	}
	for i, match := range matches {
		h.appendReply(o, repMetaContext, append(appendU32(nil, uint32(i+1)), match...))
	}
	h.appendReply(o, repAck, nil)
}

// matchContexts returns the contexts that match the queries. In a list, no query matches all
// contexts, and "base:" matches all of its namespace.
func matchContexts(contexts, queries []string, list bool) []string {
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
	name = c.readString()
	for n := c.u32(); n > 0 && !c.short; n-- {
		queries = append(queries, c.readString())
	}
	return name, queries, c.ok() && len(name) <= maxString
}
