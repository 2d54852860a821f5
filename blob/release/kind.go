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

// Kind is the kind of content that an index describes, judged by its name and its feature flags.
type Kind string

// The kinds.
const (
	Image  Kind = "image"
	Tree   Kind = "directory tree"
	Either Kind = "image or directory tree" // casync --with also sets a tree's flags in an image's index
)

// KindOf returns the kind of the index x, which was read from a location.
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

// TreeError reports that an index describes a directory tree where an image is needed.
type TreeError struct{ how string }

func (e TreeError) Error() string {
	return "it is the index of a directory tree (" + e.how + "), not of an image"
}

// OpenImage is Open for the index of an image. An index with the name of a tree's index is a TreeError.
// An index with a tree's flags may describe an image; RefuseArchive decides by the content.
func OpenImage(ctx context.Context, a Access, at locate.Location) (*blob.Index, error) {
	x, err := Open(ctx, a, at)
	if err == nil && KindOf(at, x) == Tree {
		return nil, fmt.Errorf("reading index %s: %w", at, TreeError{"its name ends in " + treeSuffix})
	}
	return x, err
}

// RefuseArchive returns a TreeError if the first bytes of an image show an archive of a directory tree.
// It ignores the name of the index.
func RefuseArchive(first []byte) error {
	if blob.IsArchive(first) {
		return TreeError{"what it describes begins as a .catar archive"}
	}
	return nil
}
