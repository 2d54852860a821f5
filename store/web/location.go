package web

import (
	"fmt"
	"net/url"
	"strings"

	"cairn/store"
)

// Location is the http or https URL of a directory or an object. String omits its user, password,
// query and fragment, which may be secret. The zero value is not a valid location.
type Location struct {
	whole **url.URL // never changed; two pointers, since some verbs of fmt print the target of one
}

func newLocation(u *url.URL) Location { return Location{&u} }

func (l Location) url() *url.URL { return *l.whole }

// Parse parses a URL. Its errors contain no secrets.
func Parse(text string) (Location, error) {
	u, err := store.ParseURL(text)
	if err != nil {
		return Location{}, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return Location{}, fmt.Errorf("%s is not an http or https URL with a host", publicURL(u))
	}
	return newLocation(u), nil
}

// String returns the URL without its user, password, query and fragment.
func (l Location) String() string { return publicURL(l.url()) }

// Secret returns the whole URL. Use it to compare and hash, never to show.
func (l Location) Secret() string { return l.url().String() }

// Split returns the location of the directory that contains an object, and the object's name in it.
// The directory keeps the query, since it may hold a signature.
func (l Location) Split() (dir Location, name string, err error) {
	full := l.url().EscapedPath()
	cut := strings.LastIndex(full, "/")
	name, err = url.PathUnescape(full[cut+1:])
	if err != nil || strings.Contains(name, "/") || store.CheckName(name) != nil {
		return Location{}, "", fmt.Errorf("the path of a URL, %q, does not end in a file's name", full)
	}
	u := *l.url()
	u.RawPath = full[:cut+1] // with its slash: "//name" is not "/name"
	u.Path, err = url.PathUnescape(u.RawPath)
	return newLocation(&u), name, err
}

// Join returns the location of a name in the directory. It keeps the query.
func (l Location) Join(name string) Location {
	u := *l.url()
	u.Path = strings.TrimSuffix(l.url().Path, "/") + "/" + name
	u.RawPath = strings.TrimSuffix(l.url().EscapedPath(), "/") + "/" + escapePath(name)
	return newLocation(&u)
}

// TrimSlash returns the location without the slash at its end.
func (l Location) TrimSlash() Location {
	u := *l.url()
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), strings.TrimSuffix(u.EscapedPath(), "/")
	return newLocation(&u)
}

// publicURL returns a URL without the parts that may be secret.
func publicURL(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}
