// Package release reads and publishes an index and the files that belong to it. It reads and checks an
// index at any location. It knows nothing of targets, exports or terminals.
package release

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/internal/openfile"
	"cairn/store"
	"cairn/store/locate"
)

// Access reads published files. The zero value is ready to use; it has no credentials and no stdin.
type Access struct {
	// Locate returns the access to locations, with credentials. It is called only for locations on a
	// server, since an index on this machine needs no credentials.
	Locate func() (locate.Access, error)
	// Stdin returns the reader of a location that is a stream. Its reads fail when ctx ends.
	Stdin func(ctx context.Context) io.Reader
}

// Open reads and checks the index at a location: a path, a server's file, or stdin. An error about its
// content wraps blob.ErrInvalid. Absence is store.ErrNotFound or fs.ErrNotExist.
func Open(ctx context.Context, a Access, at locate.Location) (*blob.Index, error) {
	x, err := a.readIndex(ctx, at)
	if err != nil {
		return nil, fmt.Errorf("reading index %s: %w", at, err)
	}
	return x, nil
}

// readIndex reads an index. A local one may be any file or pipe, such as /dev/fd/3. An invalid index
// from a server may have been damaged in transit, and is read once more.
func (a Access) readIndex(ctx context.Context, at locate.Location) (x *blob.Index, err error) {
	decode := func(r io.Reader) error {
		x, err = blob.Decode(bufio.NewReaderSize(r, 1<<16))
		return err
	}
	if path, ok := at.Local(); ok {
		f, err := openfile.OpenReader(ctx, path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		err = decode(f)
		return x, err
	}
	err = a.streamFile(ctx, at, maxIndexSize, decode)
	if at.Remote() && errors.Is(err, blob.ErrInvalid) {
		err = a.streamFile(ctx, at, maxIndexSize, decode)
	}
	return x, err
}

// maxIndexSize is the size in bytes of an index with blob.MaxChunks chunks.
const maxIndexSize = 104 + 40*blob.MaxChunks

// streamFile passes a file to use while it arrives, so that a wrong file is refused by its first bytes.
// A file on a server that is larger than limit is store.ErrTooLarge.
func (a Access) streamFile(ctx context.Context, at locate.Location, limit int64, use func(io.Reader) error) error {
	if at.IsStream() {
		if a.Stdin == nil {
			return errors.New("there is no stdin to read")
		}
		return use(a.Stdin(ctx))
	}
	var access locate.Access
	if a.Locate != nil && at.Remote() {
		var err error
		if access, err = a.Locate(); err != nil {
			return err
		}
	}
	r, name, err := access.File(at)
	if err != nil {
		return err
	}
	defer store.Close(r)
	return store.Stream(ctx, r, name, limit, use)
}
