package locate

import (
	"cmp"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"strings"

	"cairn/store"
	"cairn/store/local"
	"cairn/store/s3"
)

const (
	defaultStore = "default.castr"
	indexMode    = fs.FileMode(0o644)
)

// Index is where an index is to be read: the reader and the object's name in it.
func Index(location string, o Options) (r store.Reader, name string, err error) {
	dir, name, err := split(location)
	if err != nil {
		return nil, "", err
	}
	r, err = Open(dir, o)
	if err == nil && Remote(dir) {
		r = store.Retry(r, o.Retry)
	}
	return r, name, err
}

// IndexBucket is where an index is to be written. A directory must exist: making one for a mistyped path helps
// nobody. The file's permissions are 0644 less the umask unless the options say otherwise.
func IndexBucket(location string, o Options) (b store.Bucket, name string, err error) {
	dir, name, err := split(location)
	if err != nil {
		return nil, "", err
	}
	if Remote(location) {
		o.SFTP.Mode = cmp.Or(o.SFTP.Mode, indexMode)
		b, err = patient(dir, o)
		return b, name, err
	}
	if o.Local.Mode == 0 {
		o.Local.Mode = indexMode
	}
	bucket, err := local.Open(dir, o.Local)
	if err != nil {
		return nil, "", err
	}
	return bucket, name, nil
}

// DefaultStore is the store of an index for which none is named: default.castr beside it, as casync has it.
// The query of a URL stays, since it may be what opens the door.
func DefaultStore(index string) (string, error) {
	dir, _, err := split(index)
	if err != nil {
		return "", err
	}
	if schemeOf(dir) == "" {
		return filepath.Join(dir, defaultStore), nil
	}
	if isS3(dir) {
		return s3.Below(dir, defaultStore)
	}
	u, err := store.ParseURL(dir)
	if err != nil {
		return "", err
	}
	u.Path += "/" + defaultStore
	if u.RawPath != "" {
		u.RawPath += "/" + defaultStore
	}
	return u.String(), nil
}

// split is the location of the directory that an object lies in, and its name there.
func split(location string) (dir, name string, err error) {
	if isS3(location) {
		return s3.Split(location)
	}
	if schemeOf(location) != "" {
		return splitURL(location)
	}
	if strings.HasSuffix(location, "/") {
		return "", "", fmt.Errorf("%q is a directory's name, not a file's", location)
	}
	name = filepath.Base(location)
	return filepath.Dir(location), name, store.CheckName(name)
}

func splitURL(location string) (dir, name string, err error) {
	u, err := store.ParseURL(location)
	if err != nil {
		return "", "", err
	}
	full := u.EscapedPath()
	cut := strings.LastIndex(full, "/")
	name, err = url.PathUnescape(full[cut+1:])
	if err != nil || strings.Contains(name, "/") || store.CheckName(name) != nil {
		return "", "", fmt.Errorf("the path of a URL, %q, does not end in a file's name", full)
	}
	u.RawPath = full[:max(cut, 0)]
	u.Path, err = url.PathUnescape(u.RawPath)
	return u.String(), name, err
}
