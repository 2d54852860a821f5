package nbd

import (
	"encoding/binary"
	"errors"
	"strings"
	"syscall"

	"cairn/internal/plaintext"
)

// Constants of the protocol (doc/proto.md, "Values"). All integers are big-endian.
const (
	magicServer      = 0x4e42444d41474943 // NBDMAGIC
	magicOption      = 0x49484156454f5054 // IHAVEOPT
	magicOptionReply = 0x0003e889045565a9
	magicRequest     = 0x25609513
	magicSimple      = 0x67446698
	magicChunk       = 0x668e33ef

	handshakeFixedNewstyle = 1 << 0
	handshakeNoZeroes      = 1 << 1

	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10

	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repErrUnsup    = 1<<31 + 1
	repErrInvalid  = 1<<31 + 3
	repErrPlatform = 1<<31 + 4
	repErrTLSReqd  = 1<<31 + 5
	repErrUnknown  = 1<<31 + 6
	repErrShutdown = 1<<31 + 7
	repErrTooBig   = 1<<31 + 9

	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3

	hasFlags        = 1 << 0
	readOnly        = 1 << 1
	sendFlush       = 1 << 2
	sendFUA         = 1 << 3
	sendWriteZeroes = 1 << 6
	sendDF          = 1 << 7
	canMultiConn    = 1 << 8
	sendCache       = 1 << 10

	flagFUA    = 1 << 0
	flagNoHole = 1 << 1
	flagDF     = 1 << 2
	flagReqOne = 1 << 3

	chunkDone        = 1 << 0
	chunkOffsetData  = 1
	chunkOffsetHole  = 2
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2

	contextAllocation = "base:allocation"
	stateHole         = 1 << 0
	stateZero         = 1 << 1
)

// Sizes on the wire, and limits of requests.
const (
	requestSize = 28
	simpleSize  = 16
	chunkSize   = 20 // header of a chunk of a structured reply

	maxString     = 4096
	minBlock      = 1
	blockSize     = 4096     // preferred block size, and the unit in which zeros are reported
	maxPayload    = 32 << 20 // bytes of data in one request or reply
	maxErrorText  = 1024
	maxErrorReply = chunkSize + 14 + maxErrorText
)

// Command is the type of a request.
type Command uint16

// The commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	cmdDisconnect  Command = 2
	CmdFlush       Command = 3
	cmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
)

// String returns the specification's name of the command in lower case, or "unknown".
func (c Command) String() string {
	names := [...]string{"read", "write", "disc", "flush", "trim", "cache", "write_zeroes", "block_status"}
	if int(c) < len(names) {
		return names[c]
	}
	return "unknown"
}

type request struct {
	flags   uint16
	command Command
	cookie  uint64
	offset  uint64
	length  uint32
}

// parseRequest parses requestSize bytes. It reports false if they do not start with the magic
// number.
func parseRequest(p []byte) (request, bool) {
	return request{
		flags:   binary.BigEndian.Uint16(p[4:]),
		command: Command(binary.BigEndian.Uint16(p[6:])),
		cookie:  binary.BigEndian.Uint64(p[8:]),
		offset:  binary.BigEndian.Uint64(p[16:]),
		length:  binary.BigEndian.Uint32(p[24:]),
	}, binary.BigEndian.Uint32(p) == magicRequest
}

func appendU16(p []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(p, v) }
func appendU32(p []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(p, v) }
func appendU64(p []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(p, v) }

func appendSimple(p []byte, q request, code errno) []byte {
	return appendU64(appendU32(appendU32(p, magicSimple), uint32(code)), q.cookie)
}

func appendChunk(p []byte, q request, flags, kind uint16, length int64) []byte {
	p = appendU16(appendU16(appendU32(p, magicChunk), flags), kind)
	return appendU32(appendU64(p, q.cookie), uint32(length))
}

// errno is an error number of the protocol. It may differ from the system's number.
type errno uint32

const (
	errPERM     errno = 1
	errIO       errno = 5
	errINVAL    errno = 22
	errNOSPC    errno = 28
	errSHUTDOWN errno = 108
)

// refusal is an error with the protocol's number for it.
type refusal struct {
	code errno
	text string
}

func (r *refusal) Error() string { return r.text }

// readError adds the offset in the device at which a read failed.
type readError struct {
	offset int64
	err    error
}

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

func errnoOf(err error) errno {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.code
	}
	if isAny(err, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG) {
		return errNOSPC
	}
	return errIO
}

// appendError appends the complete error reply to a request, of at most maxErrorReply bytes. Only
// structured replies have room for the text.
func appendError(p []byte, q request, err error, structured bool) []byte {
	if !structured {
		return appendSimple(p, q, errnoOf(err))
	}
	text := sanitizeText(err.Error(), maxErrorText)
	at, located := errors.AsType[*readError](err)
	kind, length := uint16(chunkError), 6+len(text)
	if located {
		kind, length = chunkErrorOffset, length+8
	}
	p = appendChunk(p, q, chunkDone, kind, int64(length))
	p = appendU16(appendU32(p, uint32(errnoOf(err))), uint16(len(text)))
	p = append(p, text...)
	if located {
		p = appendU64(p, uint64(at.offset))
	}
	return p
}

// sanitizeText returns s for display on one line, of at most n bytes.
func sanitizeText(s string, n int) string {
	if s = plaintext.Clean(s, n); len(s) > n {
		s = strings.ToValidUTF8(s[:n], "")
	}
	return s
}

// cursor parses a message. After the first missing field, all fields are zero and ok reports false.
type cursor struct {
	p     []byte
	short bool
}

func (c *cursor) takeBytes(n uint32) []byte {
	if c.short || uint64(n) > uint64(len(c.p)) {
		c.short = true
		return nil
	}
	p := c.p[:n]
	c.p = c.p[n:]
	return p
}

func (c *cursor) u16() uint16 {
	if p := c.takeBytes(2); p != nil {
		return binary.BigEndian.Uint16(p)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if p := c.takeBytes(4); p != nil {
		return binary.BigEndian.Uint32(p)
	}
	return 0
}

// readString reads a string that follows its length.
func (c *cursor) readString() string { return string(c.takeBytes(c.u32())) }

// ok reports whether all fields were present and nothing follows them.
func (c *cursor) ok() bool { return !c.short && len(c.p) == 0 }
