package release

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"cairn/blob"
	"cairn/blob/trust"
	"cairn/store"
	"cairn/store/locate"
)

// ReadNote reads a signed file: a release, a channel or a key set. Nobody has checked its signatures. A file that is too
// large is a trust.ErrUntrusted.
func ReadNote(ctx context.Context, a Access, at locate.Location) (file []byte, err error) {
	err = a.streamFile(ctx, at, trust.MaxSize+1, func(r io.Reader) error {
		file, err = io.ReadAll(io.LimitReader(r, trust.MaxSize+1))
		return err
	})
	if err == nil && len(file) > trust.MaxSize || errors.Is(err, store.ErrTooLarge) {
		err = fmt.Errorf("%w: it has more than %d bytes", trust.ErrUntrusted, trust.MaxSize)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", at, err)
	}
	return file, nil
}

// OpenListed opens an index that a signed file at a location lists, and returns its location. Its size and SHA-256 are
// checked before anything of it is used; another file is a *trust.RefusedError.
func OpenListed(ctx context.Context, a Access, note locate.Location, f trust.File) (x *blob.Index, at locate.Location, err error) {
	dir, _, err := note.Split()
	if err != nil {
		return nil, at, fmt.Errorf("there is no index beside %s: %w", note, err)
	}
	at = dir.Join(f.Path)
	var file bytes.Buffer
	err = a.streamFile(ctx, at, f.Size+1, func(r io.Reader) error {
		file.Reset()
		_, err := io.Copy(&file, io.LimitReader(r, f.Size+1))
		return err
	})
	if err != nil && !errors.Is(err, store.ErrTooLarge) {
		return nil, at, fmt.Errorf("reading index %s: %w", at, err)
	}
	if sum := trust.Sum(sha256.Sum256(file.Bytes())); int64(file.Len()) != f.Size || sum != f.SHA256 {
		return nil, at, trust.Refuse("index %s is not the one that %s lists, which has %d bytes and the SHA-256 %v", at, note, f.Size, f.SHA256)
	}
	if x, err = blob.Decode(&file); err != nil {
		return nil, at, fmt.Errorf("reading index %s: %w", at, err)
	}
	return x, at, nil
}

// OpenReleaseOf opens the release that a verified channel at a location names, and returns its location.
func OpenReleaseOf(ctx context.Context, a Access, keys *trust.Keys, channel locate.Location, c *trust.Channel) (r *trust.Release, at locate.Location, err error) {
	dir, _, err := channel.Split()
	if err != nil {
		return nil, at, fmt.Errorf("there is nothing beside %s: %w", channel, err)
	}
	at = dir.Join(c.Release.Path)
	file, err := ReadNote(ctx, a, at)
	if err != nil {
		return nil, at, err
	}
	if int64(len(file)) != c.Release.Size || sha256.Sum256(file) != c.Release.SHA256 {
		return nil, at, trust.Refuse("release %s is not the one that the channel %s lists, which has %d bytes and the SHA-256 %v", at, channel, c.Release.Size, c.Release.SHA256)
	}
	r, err = keys.OpenRelease(file)
	if err != nil {
		return nil, at, fmt.Errorf("release %s: %w", at, err)
	}
	if r.Name != c.Name || r.Serial != c.Release.Serial {
		return nil, at, trust.Refuse("release %s is of %s with the serial %d, and the channel %s is of %s with %d", at, r.Name, r.Serial, channel, c.Name, c.Release.Serial)
	}
	return r, at, nil
}

// IndexesOf returns the locations of the indexes that a release lists, or the release of a channel. Nobody has checked the
// signatures: it is for the publisher.
func IndexesOf(ctx context.Context, a Access, at locate.Location) (indexes []locate.Location, err error) {
	file, err := ReadNote(ctx, a, at)
	if err != nil {
		return nil, err
	}
	if c, err := trust.DecodeChannel(file); err == nil {
		dir, _, err := at.Split()
		if err != nil {
			return nil, err
		}
		at = dir.Join(c.Release.Path)
		if file, err = ReadNote(ctx, a, at); err != nil {
			return nil, err
		}
		if sha256.Sum256(file) != c.Release.SHA256 {
			return nil, trust.Refuse("release %s is not the one that the channel lists, which has the SHA-256 %v", at, c.Release.SHA256)
		}
	}
	r, err := trust.DecodeRelease(file)
	if err != nil {
		return nil, fmt.Errorf("%s is neither a release nor a channel: %w", at, err)
	}
	dir, _, err := at.Split()
	for _, m := range r.Images {
		indexes = append(indexes, dir.Join(m.Index.Path))
	}
	return indexes, err
}

// WriteNote writes a signed file at a location, as a whole. With createOnly it is a store.ErrExists if there is one, and an
// errors.ErrUnsupported if the location cannot tell.
func WriteNote(ctx context.Context, a locate.Access, at locate.Location, file []byte, createOnly bool) error {
	b, name, err := a.FileBucket(at)
	if err != nil {
		return fmt.Errorf("writing %s: %w", at, err)
	}
	defer store.Close(b)
	if createOnly {
		creator, can := store.As[store.Creator](b)
		if !can {
			return fmt.Errorf("writing %s: creating a file only if there is none: %w", at, errors.ErrUnsupported)
		}
		if checker, can := store.As[store.CreateChecker](b); can {
			if err := checker.CheckCreate(ctx); err != nil {
				return fmt.Errorf("writing %s: %w", at, err)
			}
		}
		err = creator.Create(ctx, name, file)
	} else {
		err = b.Write(ctx, name, file)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", at, err)
	}
	return nil
}

// ListFile reads a file at a path below the directory of a signed file, and returns it with what the signed file lists
// of it. A file of more than limit bytes is an error.
func ListFile(ctx context.Context, a Access, note locate.Location, path string, limit int64) (file []byte, f trust.File, err error) {
	dir, _, err := note.Split()
	if err != nil {
		return nil, f, fmt.Errorf("there is nothing beside %s: %w", note, err)
	}
	at := dir.Join(path)
	err = a.streamFile(ctx, at, limit, func(r io.Reader) error {
		file, err = io.ReadAll(io.LimitReader(r, limit+1))
		return err
	})
	if err == nil && int64(len(file)) > limit {
		err = store.ErrTooLarge
	}
	if err != nil {
		return nil, f, fmt.Errorf("reading %s: %w", at, err)
	}
	return file, trust.File{Path: path, Size: int64(len(file)), SHA256: sha256.Sum256(file)}, nil
}
