package imagemap

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/seed"
)

func TestSources(t *testing.T) {
	five := []string{"a", "b", "c", "d", "e"}
	for _, c := range []struct {
		name   string
		chunks []Chunk
		seeds  []string
		want   []source
	}{
		{"nothing but zeros", []Chunk{{Size: 1024, Kind: seed.Zero}}, nil, []source{
			{classZero, "zeros", "1.0 KiB", "100.0 %", "1"}, {classDownload, "from the store", "0 B", "0.0 %", "0"}}},
		{"an unused seed", []Chunk{{Size: 1024, Kind: seed.Fetch}}, five[:1], []source{
			{classSeed, "from a", "0 B", "0.0 %", "0"}, {classDownload, "from the store", "1.0 KiB", "100.0 %", "1"}}},
		{"many seeds", []Chunk{{Size: 1, Kind: seed.Local}, {Size: 1, Kind: seed.Local, Seed: 3}, {Size: 2, Kind: seed.Local, Seed: 4}}, five,
			[]source{
				{classSeed, "from a", "1 B", "25.0 %", "1"}, {classSeed + 1, "from b", "0 B", "0.0 %", "0"},
				{classSeed + 2, "from c", "0 B", "0.0 %", "0"},
				{classSeed + 3, "from 2 other seeds", "3 B", "75.0 %", "2"},
				{classDownload, "from the store", "0 B", "0.0 %", "0"}}},
		{"an empty image", nil, nil, []source{{classDownload, "from the store", "0 B", "-", "0"}}},
	} {
		p := newPage(c.chunks...)
		p.Seeds = c.seeds
		if diff := cmp.Diff(c.want, mustSurvey(t, p).sourceRows(p.Seeds)); diff != "" {
			t.Errorf("%s: sourceRows (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestFigures(t *testing.T) {
	here, get := Chunk{Size: 3 << 20, Kind: seed.InPlace}, Chunk{Size: 1 << 20, Kind: seed.Fetch, Stored: 1 << 19}
	stored := figure{"To download", "512 KiB", "1 chunk, as stored"}
	rest := []figure{{"From the store", "1.0 MiB", "25.0 % of the image"},
		{"Needs no download", "3.0 MiB", "75.0 % of the image"}, {"Image", "4.0 MiB", "4,194,304 bytes"}}
	if diff := cmp.Diff(slices.Concat([]figure{stored}, rest), mustSurvey(t, newPage(here, get)).figureList()); diff != "" {
		t.Errorf("figureList (-want +got):\n%s", diff)
	}
	get.Stored = 0
	if diff := cmp.Diff(rest, mustSurvey(t, newPage(here, get)).figureList()); diff != "" {
		t.Errorf("figures without stored sizes (-want +got):\n%s", diff)
	}
}
