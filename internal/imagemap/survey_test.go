package imagemap

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/seed"
)

func mustSurvey(t *testing.T, p Page) *survey {
	t.Helper()
	s, err := surveyPage(p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSurveyCells(t *testing.T) {
	for _, c := range []struct {
		name   string
		chunks []Chunk
		want   []amounts
	}{
		{"empty", nil, nil},
		{"one byte", []Chunk{{Size: 1, Kind: seed.InPlace}}, []amounts{{classInPlace: 1}}},
		{"one cell", []Chunk{{Size: 4096, Kind: seed.Zero}}, []amounts{{classZero: 4096}}},
		{"across", []Chunk{{Size: 9000, Kind: seed.Fetch}},
			[]amounts{{classDownload: 4096}, {classDownload: 4096}, {classDownload: 808}}},
		{"mixed", []Chunk{{Size: 4000, Kind: seed.Local, Seed: 1}, {Size: 50, Kind: seed.Copy}, {Size: 100, Kind: seed.Local}},
			[]amounts{{classSeed + 1: 4000, classRepeat: 50, classSeed: 46}, {classSeed: 54}}},
	} {
		p := newPage(c.chunks...)
		p.Seeds = []string{"a", "b"}
		if diff := cmp.Diff(c.want, mustSurvey(t, p).cells); diff != "" {
			t.Errorf("%s: cells (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestCellSize(t *testing.T) {
	for _, c := range []struct {
		size, cellSize int64
		cells          int
	}{
		{0, 4096, 0}, {1, 4096, 1}, {4096, 4096, 1}, {4097, 4096, 2}, {16 << 20, 4096, 4096}, {16<<20 + 1, 8192, 2049},
		{1 << 40, 1 << 28, 4096}, {1<<63 - 1, 1 << 51, 4096},
	} {
		s := newSurvey(c.size)
		if s.cellSize != c.cellSize || len(s.cells) != c.cells {
			t.Errorf("%d bytes: %d cells of %d bytes, want %d of %d", c.size, len(s.cells), s.cellSize, c.cells, c.cellSize)
		}
	}
}

// TestSurveyCountsEachByte checks that the cells and the totals count each byte of an image once.
func TestSurveyCountsEachByte(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		most := int64(1) << random.IntN(40)
		var chunks []Chunk
		for range random.IntN(500) {
			chunks = append(chunks, Chunk{Size: 1 + random.Int64N(most), Kind: seed.Kind(random.IntN(5)), Seed: random.IntN(7)})
		}
		p := newPage(chunks...)
		p.Seeds = make([]string, 7)
		s := mustSurvey(t, p)
		var sum amounts
		for i := range s.cells {
			want := min(s.cellSize, p.Size-int64(i)*s.cellSize)
			if got := s.cells[i].sum(); got != want {
				t.Fatalf("cell %d holds %d bytes, want %d", i, got, want)
			}
			for k, n := range s.cells[i] {
				sum[k] += n
			}
		}
		if sum != s.bytes || sum.sum() != p.Size {
			t.Fatalf("cells hold %v, totals are %v of %d", sum, s.bytes, p.Size)
		}
	}
}

func TestSurveyLargestImage(t *testing.T) {
	s := mustSurvey(t, newPage(Chunk{Size: 1 << 62, Kind: seed.Fetch}, Chunk{Size: 1<<62 - 1, Kind: seed.Zero}))
	if got := s.bytes.sum(); got != 1<<63-1 {
		t.Errorf("the totals are %d bytes, want 2^63-1", got)
	}
}

func TestSeedClass(t *testing.T) {
	for _, c := range []struct {
		seed, seeds int
		want        class
	}{{0, 1, classSeed}, {3, 4, classSeed + 3}, {2, 5, classSeed + 2}, {3, 5, classSeed + 3}, {4, 5, classSeed + 3},
		{69_999, 70_000, classSeed + 3}} {
		if got := seedClass(c.seed, c.seeds); got != c.want {
			t.Errorf("seedClass(%d, %d) = %d, want %d", c.seed, c.seeds, got, c.want)
		}
	}
}

func TestSurveyMisses(t *testing.T) {
	get := func(size, stored int64) Chunk { return Chunk{Size: size, Kind: seed.Fetch, Stored: stored} }
	here := Chunk{Size: 1000, Kind: seed.InPlace}
	for _, c := range []struct {
		name   string
		chunks []Chunk
		want   []miss
		stored int64
	}{
		{"none", []Chunk{here}, nil, 0},
		{"merged", []Chunk{get(10, 5), get(20, 6), here}, []miss{{0, 30, 2, 11}}, 11},
		{"at the end", []Chunk{here, get(10, 5)}, []miss{{1000, 10, 1, 5}}, 5},
		{"falling, ties in order", []Chunk{get(5, 1), here, get(9, 1), here, get(5, 1)},
			[]miss{{1005, 9, 1, 1}, {0, 5, 1, 1}, {2014, 5, 1, 1}}, 3},
		{"unknown", []Chunk{get(10, 5), get(20, 0), get(5, 5), here, get(1, 1)},
			[]miss{{0, 35, 3, unknown}, {1035, 1, 1, 1}}, unknown},
		{"unknown by overflow", []Chunk{get(1, 1<<63-1), get(1, 1)}, []miss{{0, 2, 2, unknown}}, unknown},
	} {
		s := mustSurvey(t, newPage(c.chunks...))
		if diff := cmp.Diff(c.want, s.misses, cmp.AllowUnexported(miss{})); diff != "" {
			t.Errorf("%s: misses (-want +got):\n%s", c.name, diff)
		}
		if s.stored != c.stored {
			t.Errorf("%s: %d bytes as stored, want %d", c.name, s.stored, c.stored)
		}
	}
}

// TestSurveyKeepsLargest compares the misses with a sorted list of all.
func TestSurveyKeepsLargest(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	var chunks []Chunk
	var sizes []int64
	for range 1000 {
		n := 1 + random.Int64N(300)
		sizes = append(sizes, n)
		chunks = append(chunks, Chunk{Size: n, Kind: seed.Fetch}, Chunk{Size: 1, Kind: seed.InPlace})
	}
	slices.Sort(sizes)
	slices.Reverse(sizes)
	var got []int64
	for _, m := range mustSurvey(t, newPage(chunks...)).misses {
		got = append(got, m.size)
	}
	if diff := cmp.Diff(sizes[:maxMisses], got); diff != "" {
		t.Errorf("largest misses (-want +got):\n%s", diff)
	}
}
