package main

import (
	"context"
	"fmt"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store/locate"
)

// readIndex reads an index, and prints a note if it may be of a directory tree.
func readIndex(ctx context.Context, at locate.Location, a access) (*blob.Index, error) {
	x, err := readAnyIndex(ctx, at, a)
	if err != nil {
		return nil, err
	}
	if note := kindNote(at, release.KindOf(at, x)); note != "" {
		logf("note: %s", note)
	}
	return x, nil
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

// kindNote returns a note about an index that may not be of an image, or "". Commands that only read continue with it.
func kindNote(at locate.Location, kind release.Kind) string {
	switch kind {
	case release.Tree:
		return fmt.Sprintf("%s is the index of a directory tree: the image is a .catar archive", at)
	case release.Either:
		return fmt.Sprintf("%s may be the index of a directory tree: it has feature flags for attributes of files", at)
	case release.Image:
	}
	return ""
}
