package release

import (
	"errors"
	"io/fs"
	"strings"

	"cairn/blob"
	"cairn/blob/profile"
	"cairn/store"
	"cairn/store/locate"
	"cairn/store/pack"
)

const (
	storeSuffix    = ".castr"
	deltaDirSuffix = ".cadelta"
	packDirSuffix  = ".capack"
)

// DeltaDir returns the location of the deltas of a store: the directory NAME.cadelta beside NAME.castr.
func DeltaDir(of locate.Location) (locate.Location, error) { return beside(of, deltaDirSuffix) }

// PackDir returns the location of the packs of a store: the directory NAME.capack beside NAME.castr.
func PackDir(of locate.Location) (locate.Location, error) { return beside(of, packDirSuffix) }

// ProfileOf returns the location of an index's boot profile: NAME.caprf beside NAME.caibx.
func ProfileOf(index locate.Location) (locate.Location, error) {
	return besideIndex(index, profile.Suffix)
}

// MapOf returns the location of the map of packs of an index with a digest: NAME.DIGEST.camap beside NAME.caibx, with the
// first 16 digits. So the map of an index and that of the one that replaces it are two files, and no reader, cache or
// second publisher takes one for the other.
func MapOf(index locate.Location, digest blob.Digest) (locate.Location, error) {
	return besideIndex(index, mapSuffix(digest))
}

func mapSuffix(index blob.Digest) string { return "." + index.String()[:16] + pack.MapSuffix }

// besideIndex returns the location of a companion of an index.
func besideIndex(index locate.Location, suffix string) (locate.Location, error) {
	_, name, err := index.Split()
	if err != nil {
		return locate.Location{}, err
	}
	return index.Beside(strings.TrimSuffix(name, IndexSuffix) + suffix)
}

// IsAbsent reports whether an error of reading a companion says that there is none. S3 may deny what is absent.
func IsAbsent(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrDenied) || errors.Is(err, fs.ErrNotExist)
}
