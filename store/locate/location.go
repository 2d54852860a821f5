package locate

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"cairn/internal/escape"
	"cairn/store"
	"cairn/store/s3"
	"cairn/store/sftp"
	"cairn/store/web"
)

// Location is the location of a file or a store: a local path, a stream (stdin or stdout), a URL,
// an S3 or an SFTP location. Parse makes one from a user's text; all others are derived from it. A
// Location prints no secret: not as a string, not with any verb of fmt, not in JSON. The zero value
// names nothing.
type Location struct{ at place }

// place is one kind of location. Implementations hold secrets behind pointers only, so that fmt
// cannot reach them.
type place interface {
	fmt.Stringer // without secrets
	secret() string
	split() (dir place, name string, err error)
	join(name string) place
	trimSlash() place
}

// Parse parses a location as users write it: - for stdin or stdout, a scheme and :// for a server,
// else a path. An unknown scheme is ErrKind. Its errors hold no secret.
func Parse(text string) (Location, error) {
	switch scheme := schemeOf(text); scheme {
	case "":
		if text == "-" {
			return Location{stream{}}, nil
		}
		return Path(text), nil
	case "http", "https":
		l, err := web.Parse(text)
		return newLocation(webPlace{l}, err)
	case "s3", "s3+http", "s3+https":
		l, err := s3.Parse(text)
		return newLocation(s3Place{l}, err)
	case "sftp":
		l, err := sftp.Parse(text)
		return newLocation(sftpPlace{l}, err)
	default:
		return Location{}, fmt.Errorf("%w %s:// (a path, http, https, s3, s3+http, s3+https or sftp)", ErrKind, scheme)
	}
}

// sshLike matches a remote file as scp, rsync and casync write it. A host has at least two
// characters.
var sshLike = regexp.MustCompile(`^((?:[A-Za-z0-9._-]+@)?[A-Za-z0-9][A-Za-z0-9.-]+):(.*)$`)

// addressKinds are prefixes before a colon that are not hosts: listen addresses and file URIs.
var addressKinds = []string{"unix", "tcp", "file"}

// OverSSH reports whether a path looks like a file on an ssh server, and returns that file's sftp
// location. A path that exists, or whose first directory exists, does not.
func OverSSH(text string) (location string, is bool) {
	m := sshLike.FindStringSubmatch(text)
	if m == nil || schemeOf(text) != "" || m[2] == "" || slices.Contains(addressKinds, m[1]) || pathExists(text) {
		return "", false
	}
	if top, _, below := strings.Cut(text, "/"); below && pathExists(top) {
		return "", false
	}
	switch {
	case strings.HasPrefix(m[2], "/"):
		return "sftp://" + m[1] + m[2], true
	case strings.Contains(m[1], "@"):
		return "sftp://" + m[1] + "/~/" + m[2], true
	}
	return "", false
}

func newLocation(p place, err error) (Location, error) {
	if err != nil {
		return Location{}, err
	}
	return Location{p}, nil
}

// Path returns the location of a local file or directory. Any characters are allowed in path.
func Path(path string) Location { return Location{localPath(path)} }

// ErrKind reports that no backend knows a location's scheme.
var ErrKind = errors.New("unknown kind of location")

// ParseGroup parses the locations of alternative stores, A|B|C. Most groups have a single one. Text
// that names an existing path is that path; otherwise \| is a | within a path.
func ParseGroup(text string) ([]Location, error) {
	parts := escape.Split(text, '|')
	if schemeOf(text) == "" && pathExists(text) {
		parts = []string{text}
	}
	var group []Location
	for _, part := range parts {
		if part == "" {
			return nil, errors.New("a location is empty")
		}
		l, err := Parse(part)
		if err != nil {
			return nil, err
		}
		group = append(group, l)
	}
	return group, nil
}

func pathExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// String returns the location for messages: a URL without its user, password, query and fragment.
// An SFTP location keeps its user.
func (l Location) String() string {
	if l.at == nil {
		return ""
	}
	return l.at.String()
}

// GoString returns String, so that %#v prints no secret.
func (l Location) GoString() string { return l.String() }

// MarshalText returns String, for JSON and logs.
func (l Location) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// IsZero reports whether the location is unset.
func (l Location) IsZero() bool { return l.at == nil }

// IsStream reports whether the location is stdin or stdout.
func (l Location) IsStream() bool { return l.at == stream{} }

// Remote reports whether the location is reached over a network.
func (l Location) Remote() bool {
	_, isPath := l.at.(localPath)
	return l.at != nil && !isPath && !l.IsStream()
}

// Local returns the path of a local location, and reports whether it is one.
func (l Location) Local() (path string, ok bool) {
	p, ok := l.at.(localPath)
	return string(p), ok
}

// Sum returns a hash of the location with its secrets. Two locations have the same sum if they are
// the same. The sum may be stored and shown.
func (l Location) Sum() [sha256.Size]byte {
	if l.at == nil {
		return [sha256.Size]byte{}
	}
	return sha256.Sum256([]byte(l.at.secret()))
}

// Split returns the location of a file's directory, and the file's name in it.
func (l Location) Split() (dir Location, name string, err error) {
	if l.at == nil {
		return Location{}, "", errors.New("no location")
	}
	at, name, err := l.at.split()
	return Location{at}, name, err
}

// Beside returns the location of another file in the same directory. It keeps the query of a URL,
// which may hold the credentials for the directory. Beside a stream is the working directory.
func (l Location) Beside(name string) (Location, error) {
	if l.IsStream() {
		return Path(name), nil
	}
	dir, _, err := l.Split()
	if err != nil {
		return Location{}, err
	}
	return dir.Join(name), nil
}

// Join returns the location of a file in the directory l. It keeps the query of a URL, as Beside does.
func (l Location) Join(name string) Location {
	if l.at == nil {
		return Path(name)
	}
	return Location{l.at.join(name)}
}

// TrimSlash returns the location of a directory without slashes at its end, so that Split finds its name. A
// local directory without a name, such as "..", gets its absolute path.
func (l Location) TrimSlash() Location {
	if l.at == nil {
		return l
	}
	return Location{l.at.trimSlash()}
}

// DefaultStore returns the default store of an index: default.castr beside it, as in casync.
func (l Location) DefaultStore() (Location, error) { return l.Beside("default.castr") }

// stream is stdin or stdout.
type stream struct{}

func (stream) String() string                { return "-" }
func (stream) secret() string                { return "-" }
func (stream) join(name string) place        { return localPath(name) }
func (stream) trimSlash() place              { return stream{} }
func (stream) split() (place, string, error) { return nil, "", errors.New("a stream has no name") }

// localPath is a path on this machine.
type localPath string

func (p localPath) String() string { return string(p) }

// secret returns the absolute path, so that a directory has one sum in every working directory.
func (p localPath) secret() string {
	if abs, err := filepath.Abs(string(p)); err == nil {
		return abs
	}
	return string(p)
}

func (p localPath) join(name string) place { return localPath(filepath.Join(string(p), name)) }

func (p localPath) split() (place, string, error) {
	if strings.HasSuffix(string(p), "/") {
		return nil, "", fmt.Errorf("%q is a directory's name, not a file's", string(p))
	}
	name := filepath.Base(string(p))
	return localPath(filepath.Dir(string(p))), name, store.CheckName(name)
}

func (p localPath) trimSlash() place {
	path := strings.TrimRight(string(p), "/")
	if base := filepath.Base(path); path != "" && base != "." && base != ".." {
		return localPath(path)
	}
	return localPath(p.secret())
}

type webPlace struct{ web.Location }

func (p webPlace) secret() string         { return p.Secret() }
func (p webPlace) join(name string) place { return webPlace{p.Join(name)} }
func (p webPlace) trimSlash() place       { return webPlace{p.TrimSlash()} }

func (p webPlace) split() (place, string, error) {
	dir, name, err := p.Split()
	return webPlace{dir}, name, err
}

type s3Place struct{ s3.Location }

func (p s3Place) String() string         { return p.Public() }
func (p s3Place) secret() string         { return p.Location.String() }
func (p s3Place) join(name string) place { return s3Place{p.Join(name)} }
func (p s3Place) trimSlash() place       { return s3Place{p.TrimSlash()} }

func (p s3Place) split() (place, string, error) {
	dir, name, err := p.Split()
	return s3Place{dir}, name, err
}

type sftpPlace struct{ sftp.Location }

func (p sftpPlace) secret() string         { return p.String() }
func (p sftpPlace) join(name string) place { return sftpPlace{p.Join(name)} }
func (p sftpPlace) trimSlash() place       { return sftpPlace{p.TrimSlash()} }

func (p sftpPlace) split() (place, string, error) {
	dir, name, err := p.Split()
	return sftpPlace{dir}, name, err
}

var schemePattern = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*)://`)

// schemeOf returns the text before "://" unchanged, or "" for a path.
func schemeOf(location string) string {
	if m := schemePattern.FindStringSubmatch(location); m != nil {
		return m[1]
	}
	return ""
}

// IsURL reports whether text begins with a scheme and "://".
func IsURL(text string) bool { return schemeOf(text) != "" }
