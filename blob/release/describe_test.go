package release_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
	"cairn/blob/release"
	"cairn/store/locate"
)

// TestDescribe describes an image with a repeated chunk and a chunk of zeros.
func TestDescribe(t *testing.T) {
	builder, err := blob.NewBuilder(blob.SHA256, blob.Params{Min: 1, Avg: 2, Max: 4})
	if err != nil {
		t.Fatal(err)
	}
	chunks := [][]byte{{1, 2, 3}, {0, 0, 0, 0}, {1, 2, 3}, {4}}
	for _, c := range chunks {
		if _, err := builder.Add(int64(len(c)), blob.SHA256.Sum(c)); err != nil {
			t.Fatal(err)
		}
	}
	x := builder.Index()
	want := release.Description{
		Index: "v1.caibx", Kind: release.Image, Digest: x.Digest().String(), Size: 11, Chunks: 4, Distinct: 3, DistinctBytes: 8,
		ZeroBytes: 4, Algorithm: "sha256", Min: 1, Avg: 2, Max: 4,
	}
	if diff := cmp.Diff(want, release.Describe(locate.Path("v1.caibx"), x, false)); diff != "" {
		t.Error(diff)
	}
	offset := int64(0)
	for i, c := range chunks {
		want.List = append(want.List, release.ChunkDescription{
			Offset: offset, Size: int64(len(c)), Digest: blob.SHA256.Sum(c).String(), Zero: i == 1,
		})
		offset += int64(len(c))
	}
	if diff := cmp.Diff(want, release.Describe(locate.Path("v1.caibx"), x, true)); diff != "" {
		t.Error(diff)
	}
}
