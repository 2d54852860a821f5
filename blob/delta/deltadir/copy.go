package deltadir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/blob/release"
	"cairn/store"
)

// Amount is a number of deltas and their bytes.
type Amount struct {
	Deltas int64 `json:"deltas"`
	Bytes  int64 `json:"bytes"`
}

func (a *Amount) add(bytes int64) {
	a.Deltas++
	a.Bytes += bytes
}

// Count counts the deltas in a directory: all if it can be listed, else those to the images of indexes.
func Count(ctx context.Context, dir store.Reader, indexes []*blob.Index) (a Amount, err error) {
	lister, can := store.As[store.Lister](dir)
	if can {
		for o, err := range lister.List(ctx, "") {
			if err != nil {
				return a, fmt.Errorf("listing the deltas in %v: %w", dir, err)
			}
			if _, is := baseOf(o.Name); is {
				a.add(o.Size)
			}
		}
		return a, ctx.Err()
	}
	for _, x := range indexes {
		bases, err := ReadList(ctx, dir, x)
		if err != nil {
			return a, err
		}
		for _, base := range bases {
			a.add(base.FileSize)
		}
	}
	return a, ctx.Err()
}

// CopyReport counts the deltas of a Copy.
type CopyReport struct {
	Copied  Amount `json:"copied"`
	Held    int64  `json:"held"`    // present in the destination before
	Damaged int64  `json:"damaged"` // not copied
}

// CopyOptions configure a Copy.
type CopyOptions struct {
	Indexes []*blob.Index                // copy the deltas to their images; without any, all if the source can be listed
	To      func() (store.Bucket, error) // opens the destination, when there is a delta to copy
	Found   func(Defect)                 // called for each delta that is left out; may be nil
}

// Copy copies deltas from one directory to another. It checks the table and the size of each delta, and
// leaves out damaged ones.
func Copy(ctx context.Context, from store.Reader, o CopyOptions) (CopyReport, error) {
	c := &copier{from: from, options: o}
	if len(o.Indexes) > 0 {
		for _, x := range o.Indexes {
			if err := c.copyImage(ctx, x); err != nil {
				return c.report, err
			}
		}
		return c.report, ctx.Err()
	}
	lister, can := store.As[store.Lister](from)
	if !can {
		return c.report, nil
	}
	err := forEachImage(ctx, from, lister, func(image blob.Digest, _ []string) error {
		x, err := release.ReadDeltaIndex(ctx, from, image, image, blob.MaxChunks)
		switch {
		case errors.Is(err, store.ErrNotFound) || errors.Is(err, blob.ErrInvalid):
			return nil // without the index, the deltas cannot be checked
		case err != nil:
			return err
		}
		return c.copyImage(ctx, x)
	})
	return c.report, err
}

type copier struct {
	from    store.Reader
	to      store.Bucket // nil until there is a delta to copy
	options CopyOptions
	report  CopyReport
}

func (c *copier) copyImage(ctx context.Context, x *blob.Index) error {
	bases, err := ReadList(ctx, c.from, x)
	switch {
	case errors.Is(err, delta.ErrInvalid):
		c.addDefect(release.DeltaListName(x.Digest()), err)
		return nil
	case err == nil && len(bases) > 0 && c.to == nil:
		c.to, err = c.options.To()
	}
	for _, base := range slices.Backward(bases) { // the newest is added last
		if err == nil {
			err = c.copyDelta(ctx, x, base)
		}
	}
	return err
}

func (c *copier) addDefect(name string, err error) {
	c.report.Damaged++
	if c.options.Found != nil {
		c.options.Found(Defect{Name: name, Err: err})
	}
}

func (c *copier) copyDelta(ctx context.Context, x *blob.Index, base delta.Base) error {
	name := release.DeltaName(x.Digest(), base.Index)
	old, err := release.ReadDeltaIndex(ctx, c.from, x.Digest(), base.Index, blob.MaxChunks)
	if err != nil {
		return c.skipDamaged(name, err)
	}
	there, err := readDelta(ctx, c.to, x, base.Index)
	switch {
	case err == nil:
		c.report.Held++
		base.FileSize, base.HeadSize = there.FileSize(), there.HeadSize()
	case !errors.Is(err, store.ErrNotFound):
		return err
	default:
		if err := c.copyFile(ctx, x, base); err != nil {
			return c.skipDamaged(name, err)
		}
		c.report.Copied.add(base.FileSize)
	}
	for _, copied := range []*blob.Index{old, x} {
		if err := createIndex(ctx, c.to, x, copied); err != nil {
			return err
		}
	}
	return addToList(ctx, c.to, x, delta.NewBase(old, base.FileSize, base.HeadSize))
}

// copyFile copies the file of a delta.
func (c *copier) copyFile(ctx context.Context, x *blob.Index, base delta.Base) error {
	name := release.DeltaName(x.Digest(), base.Index)
	return spoolObject(ctx, c.from, name, base.FileSize, func(file []byte) error {
		d, err := delta.Decode(bytes.NewReader(file), x)
		switch {
		case err != nil:
			return err
		case d.Old != base.Index || d.FileSize() != int64(len(file)) || base.FileSize != int64(len(file)):
			return fmt.Errorf("%w: it has %d bytes, and %d on the list", delta.ErrInvalid, len(file), base.FileSize)
		}
		return create(ctx, c.to, name, file)
	})
}

// skipDamaged reports a delta that cannot be read, and returns any other error.
func (c *copier) skipDamaged(name string, err error) error {
	if isAnyOf(err, delta.ErrInvalid, blob.ErrInvalid, store.ErrNotFound, store.ErrTooLarge) {
		c.addDefect(name, err)
		return nil
	}
	return err
}

func isAnyOf(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
}
