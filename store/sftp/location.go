package sftp

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"unicode"

	"cairn/store"
)

// location is where a bucket is: a host as ssh_config knows it, and a directory there.
type location struct {
	user, host, port string // user and port may be empty: ssh_config's hold
	dir              string // as the server takes it: absolute, or relative to the user's home
	public           string // the location as it is shown; it never holds a password
}

// parseLocation reads sftp://[user@]host[:port]/path. A path below /~/ is relative to the user's home;
// no path is the server's root.
//
// What ssh could take for an option, or its configuration (ProxyCommand with %h, Match exec) hand to a shell,
// is refused here, before anything is run.
func parseLocation(text string) (location, error) {
	u, err := store.ParseURL(text)
	if err != nil {
		return location{}, err
	}
	l := location{user: u.User.Username(), host: u.Hostname(), port: u.Port()}
	shown := &url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	if l.user != "" {
		shown.User = url.User(l.user)
	}
	l.public = strings.TrimRight(shown.String(), "/")
	if err := l.check(u); err != nil {
		return location{}, err
	}
	l.dir, err = directory(u.Path)
	return l, err
}

func (l location) check(u *url.URL) error {
	if _, has := u.User.Password(); has {
		return errors.New("a password in an sftp location would be seen by all: use a key, an agent or ~/.ssh/config")
	}
	if u.Scheme != "sftp" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%s is not sftp://[user@]host[:port]/path alone", l.public)
	}
	if !validHost(l.host) {
		return fmt.Errorf("%q is not a host's name", l.host)
	}
	if u.User != nil && !validUser(l.user) {
		return fmt.Errorf("%q is not a user's name", l.user)
	}
	return nil
}

// validHost takes names, addresses and what people call a Host in ssh_config.
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

// validUser takes what ssh takes, and no blanks: ssh itself refuses what a shell could misread.
func validUser(user string) bool {
	odd := func(r rune) bool {
		return unicode.IsControl(r) || unicode.IsSpace(r) || strings.ContainsRune("'`\"$;&<>|(){}", r)
	}
	return user != "" && user[0] != '-' && !strings.HasSuffix(user, `\`) && !strings.ContainsFunc(user, odd)
}

func directory(path string) (string, error) {
	switch {
	case strings.ContainsRune(path, 0):
		return "", fmt.Errorf("%q is not a path", path)
	case path == "/~":
		return ".", nil
	}
	if below, home := strings.CutPrefix(path, "/~/"); home {
		return "./" + strings.Trim(below, "/"), nil
	}
	return "/" + strings.Trim(path, "/"), nil
}
