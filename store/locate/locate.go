// Package locate opens the store or file at a location that a user wrote. It knows the backends and
// nothing of the content of stores.
package locate

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"

	"cairn/store"
	"cairn/store/local"
	"cairn/store/s3"
	"cairn/store/sftp"
	"cairn/store/web"
)

// Access opens locations. It holds a process's credentials, its TLS identity, and the options of
// the backends. The zero value has no credentials and is ready to use.
type Access struct {
	Local local.Options
	Web   web.Options
	S3    s3.Options
	SFTP  sftp.Options
	TLS   *tls.Config  // of every backend that uses TLS and has no configuration of its own
	Retry store.Policy // of files and buckets that are reached over a network
}

// Open opens a store for reading. A directory that does not exist is store.ErrNotFound; Open sends
// no request to a server. Each read is a single attempt: the caller retries, and may try other
// stores first.
func (a Access) Open(l Location) (store.Reader, error) {
	if path, ok := l.Local(); ok {
		return bucketOrNil(local.Open(path, a.Local))
	}
	return a.openRemote(l)
}

// OpenBucket opens a store for writing. It creates a directory that does not exist, but not an S3
// bucket. Failed requests to a server are retried.
func (a Access) OpenBucket(l Location) (store.Bucket, error) {
	if path, ok := l.Local(); ok {
		if _, like := OverSSH(path); like { // a directory named HOST: would be a mistake
			return nil, fmt.Errorf("%s: %w", path, store.ErrNotFound)
		}
		return bucketOrNil(local.Create(path, a.Local))
	}
	a.SFTP.MakeRoot = true
	return a.openRetrying(l)
}

// File opens the directory of a file for reading, and returns the file's name in it. Reads over a
// network are retried.
func (a Access) File(l Location) (r store.Reader, name string, err error) {
	dir, name, err := l.Split()
	if err != nil {
		return nil, "", err
	}
	r, err = a.Open(dir)
	if err == nil && dir.Remote() {
		r = store.Retry(r, a.Retry)
	}
	return r, name, err
}

const fileMode = fs.FileMode(0o644)

// FileBucket is File for writing. A local directory must exist, since a missing one is probably a
// mistyped path. The file's permissions are 0644 less the umask unless the options set others.
func (a Access) FileBucket(l Location) (b store.Bucket, name string, err error) {
	dir, name, err := l.Split()
	if err != nil {
		return nil, "", err
	}
	a.SFTP.Mode = cmp.Or(a.SFTP.Mode, fileMode)
	a.Local.Mode = cmp.Or(a.Local.Mode, fileMode)
	if path, ok := dir.Local(); ok {
		b, err = bucketOrNil(local.Open(path, a.Local))
	} else {
		b, err = a.openRetrying(dir)
	}
	return b, name, err
}

// openRetrying opens a store on a server and retries failed requests.
func (a Access) openRetrying(l Location) (store.Bucket, error) {
	b, err := a.openRemote(l)
	if err != nil {
		return nil, err
	}
	return store.RetryBucket(b, a.Retry), nil
}

// openRemote opens a store on a server.
func (a Access) openRemote(l Location) (store.Bucket, error) {
	switch at := l.at.(type) {
	case webPlace:
		if a.Web.TLS == nil {
			a.Web.TLS = a.TLS
		}
		return bucketOrNil(web.New(at.Location, a.Web))
	case s3Place:
		a.S3.Retry = a.Retry
		if a.S3.TLS == nil {
			a.S3.TLS = a.TLS
		}
		return bucketOrNil(s3.New(at.Location, a.S3))
	case sftpPlace:
		return bucketOrNil(sftp.New(at.Location, a.SFTP))
	case stream:
		return nil, fmt.Errorf("%w: - is stdin or stdout, not a store (a directory of that name is ./-)", ErrKind)
	}
	return nil, errors.New("no location")
}

// bucketOrNil returns b as an interface, or nil on an error; a nil b never becomes a non-nil
// interface.
func bucketOrNil[B store.Bucket](b B, err error) (store.Bucket, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}
