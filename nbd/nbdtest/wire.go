package nbdtest

import (
	"encoding/binary"
	"fmt"
)

// The protocol's numbers, deliberately not shared with the server: an error in one of the two
// copies makes a test fail.
const (
	OptExportName      = 1
	OptAbort           = 2
	OptList            = 3
	OptStartTLS        = 5
	OptInfo            = 6
	OptGo              = 7
	OptStructuredReply = 8
	OptListMetaContext = 9
	OptSetMetaContext  = 10
	OptExtendedHeaders = 11

	RepErrUnsup    = 0x80000001
	RepErrPolicy   = 0x80000002
	RepErrInvalid  = 0x80000003
	RepErrPlatform = 0x80000004
	RepErrTLSReqd  = 0x80000005
	RepErrUnknown  = 0x80000006
	RepErrShutdown = 0x80000007
	RepErrTooBig   = 0x80000009

	FlagHasFlags    = 0x001
	FlagReadOnly    = 0x002
	FlagFlush       = 0x004
	FlagFUA         = 0x008
	FlagTrim        = 0x020
	FlagWriteZeroes = 0x040
	FlagDF          = 0x080
	FlagMultiConn   = 0x100
	FlagCache       = 0x400

	CmdRead        = 0
	CmdWrite       = 1
	CmdDisc        = 2
	CmdFlush       = 3
	CmdTrim        = 4
	CmdCache       = 5
	CmdWriteZeroes = 6
	CmdBlockStatus = 7

	CmdFlagFUA    = 0x1
	CmdFlagNoHole = 0x2
	CmdFlagDF     = 0x4
	CmdFlagReqOne = 0x8

	EPERM     = 1
	EIO       = 5
	EINVAL    = 22
	ENOSPC    = 28
	ESHUTDOWN = 108
)

const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4
	repError       = 0x80000000

	magicReply  = 0x3e889045565a9
	magicSimple = 0x67446698
	magicChunk  = 0x668e33ef

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkError       = 0x8001
	chunkErrorOffset = 0x8002

	maxString  = 4096
	maxPayload = 32 << 20
	maxStatus  = 4 + 8<<20
)

// OptionError is a server's refusal of an option.
type OptionError struct {
	Type uint32 // RepErr…
	Text string
}

func (e *OptionError) Error() string { return fmt.Sprintf("refused with %#x: %s", e.Type, e.Text) }

// Error is a server's error reply to a request.
type Error struct {
	Code   uint32
	Text   string
	Offset int64 // the offset of the error, or -1
}

func (e *Error) Error() string { return fmt.Sprintf("error %d: %s", e.Code, e.Text) }

// AppendString appends the length of s and s, the form of strings in options.
func AppendString(p []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(p, uint32(len(s))), s...)
}

// OptionBytes returns the encoding of an option.
func OptionBytes(id uint32, data []byte) []byte {
	p := binary.BigEndian.AppendUint32([]byte("IHAVEOPT"), id)
	return append(binary.BigEndian.AppendUint32(p, uint32(len(data))), data...)
}

// Request is a request of the transmission phase.
type Request struct {
	Flags   uint16
	Command uint16
	Offset  uint64
	Length  uint32
	Data    []byte // of a write
}

// RequestBytes returns the encoding of a request.
func RequestBytes(cookie uint64, q Request) []byte {
	p := binary.BigEndian.AppendUint32(nil, 0x25609513)
	p = binary.BigEndian.AppendUint16(p, q.Flags)
	p = binary.BigEndian.AppendUint16(p, q.Command)
	p = binary.BigEndian.AppendUint64(p, cookie)
	p = binary.BigEndian.AppendUint64(p, q.Offset)
	p = binary.BigEndian.AppendUint32(p, q.Length)
	return append(p, q.Data...)
}
