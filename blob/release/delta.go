package release

import (
	"cairn/blob"
	"cairn/blob/delta"
)

// DeltaName returns the name of a delta in the directory of deltas. The images are named by the digests
// of their indexes.
func DeltaName(to, from blob.Digest) string {
	return to.String() + "/" + from.String() + delta.Suffix
}

// DeltaIndexName returns the name of the copy of the old image's index that lies beside a delta. A client
// that never had this index needs it to find the old image's chunks in its seeds.
func DeltaIndexName(to, from blob.Digest) string {
	return to.String() + "/" + from.String() + IndexSuffix
}

// DeltaListName returns the name of the list of the deltas to an image.
func DeltaListName(to blob.Digest) string { return to.String() + "/list" }
