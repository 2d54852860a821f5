package sftp

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"unicode"

	"cairn/store"
)

// Location is the location of a bucket: a host, which may be an alias in ssh_config, and a
// directory. It holds no secrets.
type Location struct {
	user, host, port string // an empty user or port means the one of ssh_config
	path             string // as written, unescaped
}

// Parse parses sftp://[user@]host[:port]/path. A path below /~/ is relative to the user's home. An
// empty path means the server's root.
//
// Parse refuses text that ssh could take for an option, or that its configuration (ProxyCommand
// with %h, Match exec) could pass to a shell.
func Parse(text string) (Location, error) {
	u, err := store.ParseURL(text)
	if err != nil {
		return Location{}, err
	}
	l := Location{user: u.User.Username(), host: u.Hostname(), port: u.Port(), path: u.Path}
	return l, l.validate(u)
}

func (l Location) validate(u *url.URL) error {
	if _, has := u.User.Password(); has {
		return errors.New("other users could see a password in an sftp location: use a key, an agent or ~/.ssh/config")
	}
	if u.Scheme != "sftp" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%s is not sftp://[user@]host[:port]/path alone", l)
	}
	if !validHost(l.host) {
		return fmt.Errorf("%q is not a host's name", l.host)
	}
	if u.User != nil && !validUser(l.user) {
		return fmt.Errorf("%q is not a user's name", l.user)
	}
	if strings.ContainsRune(l.path, 0) {
		return fmt.Errorf("%q is not a path", l.path)
	}
	return nil
}

// String returns the location in its canonical spelling.
func (l Location) String() string {
	u := &url.URL{Scheme: "sftp", Host: l.host, Path: strings.TrimRight(l.path, "/")}
	if strings.Contains(l.host, ":") {
		u.Host = "[" + l.host + "]"
	}
	if l.port != "" {
		u.Host += ":" + l.port
	}
	if l.user != "" {
		u.User = url.User(l.user)
	}
	return u.String()
}

// Split returns the location of the directory that contains an object, and the object's name in it.
func (l Location) Split() (dir Location, name string, err error) {
	parent, name := path.Split(l.path)
	if store.CheckName(name) != nil {
		return Location{}, "", fmt.Errorf("%s does not end in a file's name", l)
	}
	l.path = strings.TrimRight(parent, "/")
	return l, name, nil
}

// Join returns the location of a name in the directory.
func (l Location) Join(name string) Location {
	l.path = strings.TrimRight(l.path, "/") + "/" + name
	return l
}

// TrimSlash returns the location without slashes at its end. The user's home keeps one: it has no name.
func (l Location) TrimSlash() Location {
	if trimmed := strings.TrimRight(l.path, "/"); trimmed != "/~" {
		l.path = trimmed
	}
	return l
}

// dir returns the directory in the server's form: absolute, or relative to the user's home.
func (l Location) dir() string {
	if strings.TrimRight(l.path, "/") == "/~" {
		return "."
	}
	if below, home := strings.CutPrefix(l.path, "/~/"); home {
		return "./" + strings.Trim(below, "/")
	}
	return "/" + strings.Trim(l.path, "/")
}

// validHost reports whether host is a host name, an address, or a valid Host alias of ssh_config.
func validHost(host string) bool {
	odd := func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._:%-", r)
	}
	if host == "" || host[0] == '-' || strings.ContainsFunc(host, odd) {
		return false
	}
	_, err := netip.ParseAddr(host)
	return err == nil || !strings.ContainsAny(host, ":%")
}

// validUser reports whether ssh accepts the user, and the user has no blanks. ssh itself refuses
// names that a shell could misread.
func validUser(user string) bool {
	odd := func(r rune) bool {
		return unicode.IsControl(r) || unicode.IsSpace(r) || strings.ContainsRune("'`\"$;&<>|(){}", r)
	}
	return user != "" && user[0] != '-' && !strings.HasSuffix(user, `\`) && !strings.ContainsFunc(user, odd)
}
