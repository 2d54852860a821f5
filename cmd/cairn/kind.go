package main

import (
	"context"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store/locate"
	"cairn/store/supply"
)

// noteKind tells of an index that may not be an image's. Commands that only read go on with it.
func noteKind(at locate.Location, kind release.Kind) {
	switch kind {
	case release.Tree:
		say("note: %s is the index of a directory tree: what it calls an image is a .catar archive", at)
	case release.Either:
		say("note: %s may be the index of a directory tree: its feature flags say what was kept of files", at)
	case release.Image:
	}
}

const treeHint = "casync and desync extract directory trees; an image's index has a name that ends in .caibx"

// readImageIndex reads an index that must be an image's. One with the flags of a tree may be.
func readImageIndex(ctx context.Context, at locate.Location, a access) (*blob.Index, error) {
	x, err := release.OpenImage(ctx, a.releases(), at)
	return x, hintIndex(err)
}

// noteArchive tells of an image in the stores that begins as an archive of a directory tree does, where its index did not
// say so already.
func noteArchive(ctx context.Context, from *supply.Supply, at locate.Location, x *blob.Index) {
	if release.KindOf(at, x) != release.Image || x.Len() == 0 || x.IsZero(0) {
		return
	}
	first := make([]byte, x.At(0).Size)
	if from.GetUncached(ctx, x.At(0).Digest, first) != nil {
		return
	}
	if err := release.RefuseArchive(first); err != nil {
		say("note: %s: %v", at, err)
	}
}
