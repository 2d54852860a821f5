package deltadir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/blob"
	"cairn/blob/delta"
	"cairn/blob/release"
	"cairn/store"
)

// VerifyOptions configure a Verify.
type VerifyOptions struct {
	Indexes []*blob.Index // verify only the deltas to their images; then the directory need not be listed
	Workers int           // number of concurrent workers, at least 1
	// Chunks returns a Getter of the store's chunks with digests of an algorithm.
	Chunks func(blob.Algorithm) store.Getter
	Remote bool // the store is reached over a network
	// Bucket is the verified directory. If it is not nil, defective deltas are removed from it.
	Bucket store.Bucket
	Found  func(Defect)              // called for each defect; may be nil
	Show   func(report VerifyReport) // called after each delta; may be nil
}

// Defect is an object that is not what its name says.
type Defect struct {
	Name    string
	Err     error
	Removed bool
}

// VerifyReport counts the deltas of a directory.
type VerifyReport struct {
	Deltas    int64 `json:"deltas"`      // verified ones, also the damaged ones
	Bytes     int64 `json:"delta_bytes"` // of their files
	Damaged   int64 `json:"damaged"`
	Removed   int64 `json:"removed"`
	Unchecked int64 `json:"unchecked"` // whose new image has no index here, or whose old image is not in the store
	Unlisted  int64 `json:"unlisted"`  // that no list names, as after an interrupted command
}

// Verify decodes every payload of the deltas in a directory against the chunks of their old images in the
// store. Defects are in the report and passed to Found; any other failure is an error. At most one old
// image is in a temporary file, and nothing grows with the number of deltas but their names.
func Verify(ctx context.Context, dir store.Reader, o VerifyOptions) (VerifyReport, error) {
	v := &verifier{dir: dir, options: o}
	if o.Bucket != nil {
		if err := CheckRemovable(o.Bucket); err != nil {
			return v.report, err
		}
		v.remover, _ = store.As[store.Remover](o.Bucket)
	}
	if v.options.Found == nil {
		v.options.Found = func(Defect) {}
	}
	if len(o.Indexes) > 0 {
		for _, x := range o.Indexes {
			if err := v.verifyImage(ctx, x, nil); err != nil {
				return v.report, err
			}
		}
		return v.report, ctx.Err()
	}
	lister, can := store.As[store.Lister](dir)
	if !can {
		return v.report, nil
	}
	err := forEachImage(ctx, dir, lister, func(to blob.Digest, names []string) error {
		x, err := release.ReadDeltaIndex(ctx, dir, to, to, blob.MaxChunks)
		switch {
		case errors.Is(err, store.ErrNotFound) || errors.Is(err, blob.ErrInvalid):
			v.report.Unchecked += int64(len(basesOf(names)))
			return nil
		case err != nil:
			return err
		}
		return v.verifyImage(ctx, x, basesOf(names))
	})
	return v.report, err
}

// forEachImage calls do for each image with deltas in a directory, with the names of its objects.
func forEachImage(ctx context.Context, dir store.Reader, l store.Lister, do func(to blob.Digest, names []string) error) error {
	names, err := listNames(ctx, dir, l, "")
	if err != nil {
		return err
	}
	images := map[blob.Digest][]string{}
	for _, name := range names {
		first, _, _ := strings.Cut(name, "/")
		if to, err := blob.ParseDigest(first); err == nil {
			images[to] = append(images[to], name)
		}
	}
	order := make([]blob.Digest, 0, len(images))
	for to := range images {
		order = append(order, to)
	}
	slices.SortFunc(order, func(a, b blob.Digest) int { return bytes.Compare(a[:], b[:]) })
	for _, to := range order {
		if err := do(to, images[to]); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// basesOf returns the old images of the deltas with these names.
func basesOf(names []string) (bases []blob.Digest) {
	for _, name := range names {
		if from, ok := baseOf(name); ok {
			bases = append(bases, from)
		}
	}
	return bases
}

type verifier struct {
	dir     store.Reader
	options VerifyOptions
	remover store.Remover // nil: nothing is removed
	report  VerifyReport
}

// verifyImage verifies the deltas to an image. there are the old images of which the directory has a
// delta, as far as that is known. If the list is damaged, these deltas are verified instead.
func (v *verifier) verifyImage(ctx context.Context, to *blob.Index, there []blob.Digest) error {
	bases, err := ReadList(ctx, v.dir, to)
	broken := errors.Is(err, delta.ErrInvalid)
	switch {
	case broken:
		v.report.Damaged++
		v.addDefect(Defect{release.DeltaListName(to.Digest()), err, v.remover != nil})
		for _, from := range there {
			bases = append(bases, delta.Base{Index: from, FileSize: -1})
		}
	case err != nil:
		return err
	default:
		v.countUnlisted(bases, there)
	}
	var good []delta.Base
	var bad []Defect
	for _, base := range bases {
		verified, err := v.verifyDelta(ctx, to, base)
		switch {
		case errors.Is(err, delta.ErrInvalid) || errors.Is(err, blob.ErrInvalid) || errors.Is(err, store.ErrNotFound):
			v.report.Damaged++
			bad = append(bad, Defect{release.DeltaName(to.Digest(), base.Index), err, v.remover != nil})
		case err != nil:
			return err
		default:
			good = append(good, verified)
		}
		if v.options.Show != nil {
			v.options.Show(v.report)
		}
	}
	if v.remover != nil && (broken || len(bad) > 0) {
		if err := v.removeBad(ctx, to, good, bad); err != nil {
			return err
		}
	}
	for _, d := range bad {
		v.addDefect(d)
	}
	return ctx.Err()
}

func (v *verifier) addDefect(d Defect) {
	if d.Removed {
		v.report.Removed++
	}
	v.options.Found(d)
}

func (v *verifier) countUnlisted(bases []delta.Base, there []blob.Digest) {
	for _, from := range there {
		if !slices.ContainsFunc(bases, func(b delta.Base) bool { return b.Index == from }) {
			v.report.Unlisted++
		}
	}
}

// removeBad replaces the list of the deltas to an image by one of the good deltas, and then removes the bad
// ones.
func (v *verifier) removeBad(ctx context.Context, to *blob.Index, good []delta.Base, bad []Defect) error {
	if err := writeList(ctx, v.options.Bucket, to, good); err != nil {
		return err
	}
	for _, d := range bad {
		if err := v.remover.Remove(ctx, d.Name); err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("removing a delta: %w", err)
		}
		index := strings.TrimSuffix(d.Name, delta.Suffix) + release.IndexSuffix
		if err := v.remover.Remove(ctx, index); err != nil && !errors.Is(err, store.ErrNotFound) {
			return fmt.Errorf("removing the index of a delta: %w", err)
		}
	}
	return nil
}

// verifyDelta verifies a delta and the copy of the old image's index, and returns its entry of a list.
func (v *verifier) verifyDelta(ctx context.Context, to *blob.Index, base delta.Base) (delta.Base, error) {
	v.report.Deltas++
	from, err := release.ReadDeltaIndex(ctx, v.dir, to.Digest(), base.Index, blob.MaxChunks)
	if err != nil {
		return base, err
	}
	name := release.DeltaName(to.Digest(), base.Index)
	limit := int64(maxFile)
	if base.FileSize >= 0 {
		limit = base.FileSize
	}
	old, err := OpenImage(ctx, from, Source{Store: v.options.Chunks(from.Algorithm()), Remote: v.options.Remote})
	if err != nil {
		return base, err
	}
	defer old.Close()
	err = spoolObject(ctx, v.dir, name, limit, func(file []byte) error {
		v.report.Bytes += int64(len(file))
		if base.FileSize >= 0 && base.FileSize != int64(len(file)) {
			return fmt.Errorf("%w: it has %d bytes, and %d on the list", delta.ErrInvalid, len(file), base.FileSize)
		}
		head, err := delta.TableEnd(file[:min(len(file), delta.FirstBytes)])
		if err != nil {
			return err
		}
		base = delta.NewBase(from, int64(len(file)), head)
		_, err = checkFile(ctx, file, old, to, -1, v.options.Workers)
		if isChunkError(err) {
			v.report.Unchecked++
			return nil
		}
		return err
	})
	if errors.Is(err, store.ErrTooLarge) {
		err = fmt.Errorf("%w: %w", delta.ErrInvalid, err)
	}
	return base, err
}

// isChunkError reports whether a chunk of the old image is not in the store, or damaged there.
func isChunkError(err error) bool {
	_, corrupt := errors.AsType[*store.CorruptError](err)
	return corrupt || errors.Is(err, store.ErrNotFound)
}
