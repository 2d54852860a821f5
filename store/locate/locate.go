// Package locate leads from the text of a location, as people write it, to a store or an index. It knows the
// backends and nothing of what is kept in them. Its errors hold no query, user or password of a URL.
package locate

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"cairn/store"
	"cairn/store/local"
	"cairn/store/sftp"
	"cairn/store/web"
)

// Options are the backends' own. The zero value is good.
type Options struct {
	Local local.Options
	Web   web.Options
	SFTP  sftp.Options
	Retry store.Policy // of indexes and buckets that are reached over a network
}

// Group is the locations of a failover group, A|B|C: stores of which each may stand in for the others. Most
// groups are a single location.
func Group(location string) []string { return strings.Split(location, "|") }

// Remote says whether a location is reached over a network.
func Remote(location string) bool { return schemeOf(location) != "" }

// Open is a store to read: a directory's path, or an http, https or sftp URL. A directory that does not exist is
// store.ErrNotFound; a server is not asked anything yet. It is asked once for each read: retrying is the
// caller's, who may have other stores to ask meanwhile.
func Open(location string, o Options) (store.Reader, error) {
	switch scheme := schemeOf(location); scheme {
	case "":
		b, err := local.Open(location, o.Local)
		if err != nil {
			return nil, err
		}
		return b, nil
	case "http", "https":
		r, err := web.New(location, o.Web)
		if err != nil {
			return nil, err
		}
		return r, nil
	case "sftp":
		b, err := sftp.New(location, o.SFTP)
		if err != nil {
			return nil, err
		}
		return b, nil
	default:
		return nil, unsupported(scheme)
	}
}

// OpenBucket is a store to write: a directory's path, or an sftp URL. The directory is made if it does not exist.
func OpenBucket(location string, o Options) (store.Bucket, error) {
	switch scheme := schemeOf(location); scheme {
	case "":
	case "sftp":
		o.SFTP.MakeRoot = true
		b, err := sftp.New(location, o.SFTP)
		if err != nil {
			return nil, err
		}
		return store.RetryBucket(b, o.Retry), nil
	default:
		return nil, readOnly(scheme)
	}
	b, err := local.Create(location, o.Local)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func readOnly(scheme string) error {
	if scheme == "http" || scheme == "https" {
		return fmt.Errorf("a web server (%s) can be read, not written: %w", scheme, errors.ErrUnsupported)
	}
	return unsupported(scheme)
}

func unsupported(scheme string) error {
	switch scheme {
	case "s3", "s3+http", "s3+https":
		return fmt.Errorf("%s locations are not supported yet: %w", scheme, errors.ErrUnsupported)
	}
	return fmt.Errorf("unknown kind of location %s:// (a path, http, https or sftp)", scheme)
}

var schemePattern = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9+.-]*)://`)

// schemeOf is what stands before "://" as it is written, or "" for a path.
func schemeOf(location string) string {
	if m := schemePattern.FindStringSubmatch(location); m != nil {
		return m[1]
	}
	return ""
}
