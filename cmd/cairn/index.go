package main

import (
	"context"
	"io"
	"os"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/internal/openfile"
	"cairn/store/locate"
)

// readIndex reads an index, and notes on the terminal if it may be of a directory tree.
func readIndex(ctx context.Context, at locate.Location, a access) (*blob.Index, error) {
	x, err := readAnyIndex(ctx, at, a)
	if err == nil {
		noteKind(at, release.KindOf(at, x))
	}
	return x, err
}

func readAnyIndex(ctx context.Context, at locate.Location, a access) (*blob.Index, error) {
	x, err := release.Open(ctx, a.releases(), at)
	return x, hintIndex(err)
}

// hintIndex adds a hint to the error about an index that is not there.
func hintIndex(err error) error { return absentHint(err, "check the index's location") }

// releases is the access to what is published.
func (f *access) releases() release.Access {
	return release.Access{Locate: f.open, Stdin: func(ctx context.Context) io.Reader { return openfile.NewReader(ctx, os.Stdin) }}
}

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
