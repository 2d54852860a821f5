package main

import (
	"context"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store/locate"
)

// readIndex reads an index, and prints a note if it may be of a directory tree.
func readIndex(ctx context.Context, at locate.Location, a access) (*blob.Index, error) {
	x, err := readAnyIndex(ctx, at, a)
	if err == nil {
		noteKind(at, release.KindOf(at, x))
	}
	return x, err
}

// readIndexes reads several indexes as readIndex does.
func readIndexes(ctx context.Context, locations []locate.Location, a access) ([]*blob.Index, error) {
	var indexes []*blob.Index
	for _, at := range locations {
		x, err := readIndex(ctx, at, a)
		if err != nil {
			return nil, err
		}
		indexes = append(indexes, x)
	}
	return indexes, nil
}

// readAnyIndex reads an index of an image or of a directory tree.
func readAnyIndex(ctx context.Context, at locate.Location, a access) (*blob.Index, error) {
	x, err := release.Open(ctx, a.releaseAccess(), at)
	return x, hintIndex(err)
}

// readImageIndex reads an index that must be of an image. An index with the feature flags of a tree is accepted.
func readImageIndex(ctx context.Context, at locate.Location, a access) (*blob.Index, error) {
	x, err := release.OpenImage(ctx, a.releaseAccess(), at)
	return x, hintIndex(err)
}

// hintIndex adds a hint to the error about an index that does not exist.
func hintIndex(err error) error { return absentHint(err, "check the index's location") }

// noteKind prints a note about an index that may not be of an image. Commands that only read continue with it.
func noteKind(at locate.Location, kind release.Kind) {
	switch kind {
	case release.Tree:
		logf("note: %s is the index of a directory tree: the image is a .catar archive", at)
	case release.Either:
		logf("note: %s may be the index of a directory tree: it has feature flags for attributes of files", at)
	case release.Image:
	}
}
