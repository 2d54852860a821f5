package release

import (
	"context"
	"fmt"
	"strings"

	"cairn/blob"
	"cairn/store/locate"
)

// IndexSuffix ends the name of an image's index.
const IndexSuffix = ".caibx"

const treeSuffix = ".caidx"

// Kind is the kind of content that an index describes, as far as its name and its feature flags tell.
type Kind string

// The kinds.
const (
	Image  Kind = "image"
	Tree   Kind = "directory tree"
	Either Kind = "image or directory tree" // casync --with sets a tree's flags in an image's index too
)

// KindOf returns the kind of the index x that was read at a location.
func KindOf(at locate.Location, x *blob.Index) Kind {
	_, name, err := at.Split()
	switch {
	case err == nil && strings.HasSuffix(name, treeSuffix):
		return Tree
	case x.HasFileFlags():
		return Either
	}
	return Image
}

// TreeError means that an index is of a directory tree where an image is needed.
type TreeError struct{ how string }

func (e TreeError) Error() string {
	return "it is the index of a directory tree (" + e.how + "), not of an image"
}

// OpenImage is Open for an index that must be an image's: one whose name says otherwise is a TreeError. An index with
// the flags of a tree may be an image's; RefuseArchive tells by its content.
func OpenImage(ctx context.Context, a Access, at locate.Location) (*blob.Index, error) {
	x, err := Open(ctx, a, at)
	if err == nil && KindOf(at, x) == Tree {
		return nil, fmt.Errorf("reading index %s: %w", at, TreeError{"its name ends in " + treeSuffix})
	}
	return x, err
}

// RefuseArchive returns a TreeError if an image that begins with these bytes is an archive of a directory tree. The name
// of its index does not count.
func RefuseArchive(first []byte) error {
	if blob.IsArchive(first) {
		return TreeError{"what it describes begins as a .catar archive"}
	}
	return nil
}
