package sftp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The packets of SFTP version 3 (draft-ietf-secsh-filexfer-02), as far as a bucket needs them.
const (
	version = 3

	typeInit     = 1
	typeVersion  = 2
	typeOpen     = 3
	typeClose    = 4
	typeRead     = 5
	typeWrite    = 6
	typeLstat    = 7
	typeFstat    = 8
	typeOpendir  = 11
	typeReaddir  = 12
	typeRemove   = 13
	typeMkdir    = 14
	typeStat     = 17
	typeRename   = 18
	typeStatus   = 101
	typeHandle   = 102
	typeData     = 103
	typeName     = 104
	typeAttrs    = 105
	typeExtended = 200
)

const (
	flagRead   = 0x01
	flagWrite  = 0x02
	flagCreate = 0x08
	flagExcl   = 0x20

	attrSize        = 0x01
	attrOwner       = 0x02
	attrPermissions = 0x04
	attrTimes       = 0x08
	attrExtended    = 0x80000000

	modeType = 0o170000
	modeDir  = 0o040000
	modeFile = 0o100000
)

const (
	blockSize  = 32 << 10  // what every server takes in a read or write
	maxPacket  = 256 << 10 // as OpenSSH has it; more is no SFTP
	maxHandle  = 256       // as the draft has it
	headerSize = 4 + 1 + 4 // length, type, number
)

// errGarbled says that the other side does not speak SFTP as we know it.
var errGarbled = errors.New("the server's answer is not SFTP (does its shell print something at login?)")

// packet is a request under construction: its length and number are put in when it is sent.
type packet []byte

// newPacket begins a packet with room for size bytes of fields.
func newPacket(kind byte, size int) packet {
	p := make(packet, headerSize, headerSize+size)
	p[4] = kind
	return p
}

func (p packet) uint32(n uint32) packet { return binary.BigEndian.AppendUint32(p, n) }
func (p packet) uint64(n uint64) packet { return binary.BigEndian.AppendUint64(p, n) }
func (p packet) string(s string) packet { return append(p.uint32(uint32(len(s))), s...) }
func (p packet) bytes(b []byte) packet  { return append(p.uint32(uint32(len(b))), b...) }

// numbered is the packet as it goes over the wire.
func (p packet) numbered(number uint32) packet {
	binary.BigEndian.PutUint32(p, uint32(len(p)-4))
	binary.BigEndian.PutUint32(p[5:], number)
	return p
}

// pathPacket is a request whose only fields are strings.
func pathPacket(kind byte, fields ...string) packet {
	size := 0
	for _, f := range fields {
		size += 4 + len(f)
	}
	p := newPacket(kind, size)
	for _, f := range fields {
		p = p.string(f)
	}
	return p
}

func openPacket(path string, flags uint32) packet {
	return pathPacket(typeOpen, path).uint32(flags).uint32(0)
}

// createPacket asks for a new file of that mode, less the server's umask.
func createPacket(path string, mode uint32) packet {
	return pathPacket(typeOpen, path).uint32(flagWrite | flagCreate | flagExcl).uint32(attrPermissions).uint32(mode)
}

func mkdirPacket(path string, mode uint32) packet {
	return pathPacket(typeMkdir, path).uint32(attrPermissions).uint32(mode)
}

func readPacket(handle string, off int64, size int) packet {
	return pathPacket(typeRead, handle).uint64(uint64(off)).uint32(uint32(size))
}

func writePacket(handle string, off int64, data []byte) packet {
	p := newPacket(typeWrite, 4+len(handle)+8+4+len(data))
	return p.string(handle).uint64(uint64(off)).bytes(data)
}

// answer is a packet that the server sent: body follows its number.
type answer struct {
	kind   byte
	number uint32
	body   []byte
}

// readAnswer reads the next packet. Its body takes no more memory than it has bytes, of maxPacket at most.
func readAnswer(r io.Reader) (a answer, err error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return a, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < headerSize-4 || size > maxPacket {
		return a, errGarbled
	}
	a = answer{kind: head[4], number: binary.BigEndian.Uint32(head[5:]), body: make([]byte, size-(headerSize-4))}
	if _, err := io.ReadFull(r, a.body); err != nil {
		return a, io.ErrUnexpectedEOF
	}
	return a, nil
}

// fields takes a body apart from its front; once something is missing, everything is zero and bad.
type fields struct {
	rest []byte
	bad  bool
}

func (f *fields) take(n int) []byte {
	if f.bad || n < 0 || n > len(f.rest) {
		f.bad = true
		return nil
	}
	taken := f.rest[:n:n]
	f.rest = f.rest[n:]
	return taken
}

func (f *fields) uint32() uint32 {
	if b := f.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (f *fields) uint64() uint64 {
	if b := f.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (f *fields) bytes() []byte  { return f.take(int(f.uint32())) }
func (f *fields) string() string { return string(f.bytes()) }

// attributes are what a server says of a file. It may leave out what it does not know.
type attributes struct {
	flags, mode uint32
	size        uint64
}

func (a attributes) isDir() bool     { return a.mode&modeType == modeDir }
func (a attributes) isRegular() bool { return a.mode&modeType == modeFile }
func (a attributes) complete() bool {
	return a.flags&attrPermissions != 0 && (a.flags&attrSize != 0 || !a.isRegular())
}

func (f *fields) attributes() (a attributes) {
	a.flags = f.uint32()
	if a.flags&attrSize != 0 {
		a.size = f.uint64()
	}
	if a.flags&attrOwner != 0 {
		f.take(8)
	}
	if a.flags&attrPermissions != 0 {
		a.mode = f.uint32()
	}
	if a.flags&attrTimes != 0 {
		f.take(8)
	}
	if a.flags&attrExtended != 0 {
		for n := f.uint32(); n > 0 && !f.bad; n-- {
			f.bytes()
			f.bytes()
		}
	}
	return a
}

// entry is a name in a directory, with what the server says of it.
type entry struct {
	name string
	attributes
}

// status is the answer of a server to what it did not do, or did without having more to say.
type status struct {
	code    uint32
	message string
}

const (
	statusOK           = 0
	statusEOF          = 1
	statusNoSuchFile   = 2
	statusDenied       = 3
	statusFailure      = 4
	statusNoConnection = 6
	statusLost         = 7
	statusUnsupported  = 8
)

func (s *status) Error() string {
	const longest = 200
	clean := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return -1
		}
		return r
	}, s.message[:min(len(s.message), longest)])
	if clean == "" {
		return fmt.Sprintf("status %d", s.code)
	}
	return fmt.Sprintf("status %d, %s", s.code, clean)
}

// status is nil for success; a body without a message is one of old servers.
func (a answer) status() error {
	f := fields{rest: a.body}
	code := f.uint32()
	switch {
	case a.kind != typeStatus || f.bad:
		return errGarbled
	case code == statusOK:
		return nil
	}
	return &status{code, f.string()}
}

// expect is what a's fields are if it is of that kind; else it is the error that the server sent.
func (a answer) expect(kind byte) (fields, error) {
	if a.kind == kind {
		return fields{rest: a.body}, nil
	}
	if err := a.status(); err != nil {
		return fields{}, err
	}
	return fields{}, errGarbled
}

func (a answer) handle() (string, error) {
	f, err := a.expect(typeHandle)
	if err != nil {
		return "", err
	}
	handle := f.string()
	if f.bad || len(handle) > maxHandle {
		return "", errGarbled
	}
	return handle, nil
}

func (a answer) data() ([]byte, error) {
	f, err := a.expect(typeData)
	if err != nil {
		return nil, err
	}
	data := f.bytes()
	if f.bad {
		return nil, errGarbled
	}
	return data, nil
}

func (a answer) attributes() (attributes, error) {
	f, err := a.expect(typeAttrs)
	if err != nil {
		return attributes{}, err
	}
	attrs := f.attributes()
	if f.bad {
		return attributes{}, errGarbled
	}
	return attrs, nil
}

// entries are those of one packet, which bounds their number.
func (a answer) entries() ([]entry, error) {
	f, err := a.expect(typeName)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for n := f.uint32(); n > 0; n-- {
		name := f.string()
		f.bytes() // the line that ls would show
		entries = append(entries, entry{name, f.attributes()})
		if f.bad {
			return nil, errGarbled
		}
	}
	return entries, nil
}

// extensions are what the server offers beside version 3, with their versions.
func (a answer) extensions() (map[string]string, error) {
	if a.kind != typeVersion || a.number != version { // the version stands where other packets have their number
		return nil, errGarbled
	}
	extensions := map[string]string{}
	for f := (fields{rest: a.body}); len(f.rest) > 0; {
		name, value := f.string(), f.string()
		if f.bad {
			return nil, errGarbled
		}
		extensions[name] = value
	}
	return extensions, nil
}
