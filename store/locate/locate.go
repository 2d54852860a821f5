// Package locate leads from the text of a location, as people write it, to a store or an index. It knows the
// backends and nothing of what is kept in them. Its errors hold no query, user or password of a URL.
package locate

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"cairn/store"
	"cairn/store/local"
	"cairn/store/s3"
	"cairn/store/sftp"
	"cairn/store/web"
)

// Options are the backends' own. The zero value is good.
type Options struct {
	Local local.Options
	Web   web.Options
	S3    s3.Options
	SFTP  sftp.Options
	TLS   *tls.Config  // of every backend that speaks it and has none of its own
	Retry store.Policy // of indexes and buckets that are reached over a network
}

// Group is the locations of a failover group, A|B|C: stores of which each may stand in for the others. Most
// groups are a single location.
func Group(location string) []string { return strings.Split(location, "|") }

// Remote says whether a location is reached over a network.
func Remote(location string) bool { return schemeOf(location) != "" }

// Open is a store to read: a directory's path, or the location of a server. A directory that does not exist is
// store.ErrNotFound; a server is not asked anything yet. It is asked once for each read: retrying is the
// caller's, who may have other stores to ask meanwhile.
func Open(location string, o Options) (store.Reader, error) {
	if Remote(location) {
		return remote(location, o)
	}
	return bucket(local.Open(location, o.Local))
}

// OpenBucket is a store to write: a directory's path, the http or https URL of a server that takes WebDAV's PUT,
// an S3 or an SFTP location. A directory is made if it does not exist; a bucket in S3 is not.
func OpenBucket(location string, o Options) (store.Bucket, error) {
	if !Remote(location) {
		return bucket(local.Create(location, o.Local))
	}
	o.SFTP.MakeRoot = true
	return patient(location, o)
}

// patient is a store on a server that is asked again when it does not answer.
func patient(location string, o Options) (store.Bucket, error) {
	b, err := remote(location, o)
	if err != nil {
		return nil, err
	}
	return store.RetryBucket(b, o.Retry), nil
}

// remote is a store on a server.
func remote(location string, o Options) (store.Bucket, error) {
	switch scheme := schemeOf(location); scheme {
	case "http", "https":
		if o.Web.TLS == nil {
			o.Web.TLS = o.TLS
		}
		return bucket(web.NewBucket(location, o.Web))
	case "s3", "s3+http", "s3+https":
		return openS3(location, o)
	case "sftp":
		return bucket(sftp.New(location, o.SFTP))
	default:
		return nil, unsupported(scheme)
	}
}

// bucket is what a backend opened, and no interface around nil.
func bucket[B store.Bucket](b B, err error) (store.Bucket, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

func openS3(location string, o Options) (store.Bucket, error) {
	l, err := s3.Parse(location)
	if err != nil {
		return nil, err
	}
	o.S3.Retry = o.Retry
	if o.S3.TLS == nil {
		o.S3.TLS = o.TLS
	}
	return bucket(s3.New(l, o.S3))
}

// isS3 says that a location is one of S3.
func isS3(location string) bool {
	scheme := schemeOf(location)
	return scheme == "s3" || strings.HasPrefix(scheme, "s3+")
}

// ErrKind says that no backend knows a location.
var ErrKind = errors.New("unknown kind of location")

func unsupported(scheme string) error {
	return fmt.Errorf("%w %s:// (a path, http, https, s3, s3+http, s3+https or sftp)", ErrKind, scheme)
}

var schemePattern = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*)://`)

// Public is a location without what may be secret: a URL's user, password, query and fragment.
func Public(location string) string {
	if schemeOf(location) == "" {
		return location
	}
	u, err := url.Parse(location)
	if err != nil {
		return schemeOf(location) + "://..."
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// schemeOf is what stands before "://" as it is written, or "" for a path.
func schemeOf(location string) string {
	if m := schemePattern.FindStringSubmatch(location); m != nil {
		return m[1]
	}
	return ""
}
