package seed

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/blob"
)

var params = blob.Params{Min: 10, Avg: 100, Max: 1000}

// index returns an index whose chunks are named by letters. The chunk "a" is 97 bytes long. "0" is a
// chunk of zeros of the maximum size.
func index(t *testing.T, chunks string) *blob.Index {
	t.Helper()
	b, err := blob.NewBuilder(blob.SHA256, params)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chunks {
		d, size := blob.Digest{byte(c)}, int64(c)
		if c == '0' {
			d, size = blob.SHA256.SumZeros(params.Max), params.Max
		}
		if _, err := b.Add(size, d); err != nil {
			t.Fatal(err)
		}
	}
	return b.Index()
}

func TestPlan(t *testing.T) {
	local := func(seed uint16, from uint32) Step { return Step{Local, seed, from} }
	again := func(from uint32) Step { return Step{Kind: Copy, From: from} }
	for _, c := range []struct {
		name, image string
		seeds       []string
		want        []Step
	}{
		{"empty", "", []string{"abc"}, nil},
		{"no seeds", "aba0", nil, []Step{{}, {}, again(0), {Kind: Zero}}},
		{"first seed first", "abc", []string{"xb", "abc"}, []Step{local(1, 0), local(1, 1), local(1, 2)}},
		{"runs stay together", "ab", []string{"ba", "ab"}, []Step{local(0, 1), local(0, 0)}},
		{"runs go on", "abx", []string{"xyzabx"}, []Step{local(0, 3), local(0, 4), local(0, 5)}},
		{"repeats come from seeds", "aa", []string{"a"}, []Step{local(0, 0), local(0, 0)}},
		{"zeros need no seed", "0a0", []string{"0a0"}, []Step{{Kind: Zero}, local(0, 1), {Kind: Zero}}},
		{"mixed", "axby0x", []string{"ab"}, []Step{local(0, 0), {}, local(0, 1), {}, {Kind: Zero}, again(1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var seeds []Seed
			for _, s := range c.seeds {
				seeds = append(seeds, Seed{Name: s, Index: index(t, s)})
			}
			p := NewPlan(index(t, c.image), seeds...)
			var got []Step
			for i := range p.Index.Len() {
				got = append(got, p.At(i))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("steps (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlaces(t *testing.T) {
	p := NewPlan(index(t, "xc"), Seed{Index: index(t, "abc")}, Seed{Index: index(t, "d")}, Seed{Index: index(t, "ac")})
	want := []Place{{0, 'a' + 'b'}, {2, 'a'}}
	if diff := cmp.Diff(want, p.Places(1)); diff != "" {
		t.Errorf("places (-want +got):\n%s", diff)
	}
	if got := p.Place(p.At(1)); got != want[0] {
		t.Errorf("Place = %v, want %v", got, want[0])
	}
	if got := p.Places(0); got != nil {
		t.Errorf("places of an unknown chunk = %v, want none", got)
	}
}

func TestTotals(t *testing.T) {
	p := NewPlan(index(t, "axby0x"), Seed{Index: index(t, "b")}, Seed{Index: index(t, "a")})
	want := Totals{Fetch: 'x' + 'y', Zero: 1000, Copy: 'x', Seeds: []int64{'b', 'a'}, Fetches: 2}
	if diff := cmp.Diff(want, p.Totals()); diff != "" {
		t.Errorf("totals (-want +got):\n%s", diff)
	}
}

// TestTwoSizes: chunks of different sizes are never equal, even with the same digest.
func TestTwoSizes(t *testing.T) {
	b, _ := blob.NewBuilder(blob.SHA256, params)
	b.Add(5, blob.Digest{'a'})
	b.Add(7, blob.Digest{'a'})
	p := NewPlan(b.Index())
	if got := p.At(1).Kind; got != Fetch || p.First(1) != 1 {
		t.Errorf("kind = %v, first = %d, want Fetch, 1", got, p.First(1))
	}
}

// TestLyingSize: a seed whose index gives a digest another size is not used.
func TestLyingSize(t *testing.T) {
	b, _ := blob.NewBuilder(blob.SHA256, params)
	b.Add(5, blob.Digest{'a'})
	p := NewPlan(index(t, "a"), Seed{Index: b.Index()})
	if got := p.At(0).Kind; got != Fetch {
		t.Errorf("kind = %v, want Fetch", got)
	}
}

// TestMaxSeeds: a step has 16 bits for its seed, so further seeds are not used.
func TestMaxSeeds(t *testing.T) {
	seeds := make([]Seed, MaxSeeds+1)
	none := index(t, "")
	for i := range seeds {
		seeds[i].Index = none
	}
	seeds[MaxSeeds-1].Index = index(t, "a")
	seeds[MaxSeeds].Index = index(t, "b")
	p := NewPlan(index(t, "ab"), seeds...)
	if got := []Kind{p.At(0).Kind, p.At(1).Kind}; len(p.Seeds) != MaxSeeds || got[0] != Local || got[1] != Fetch {
		t.Errorf("%d seeds, steps %v, want %d, %v", len(p.Seeds), got, MaxSeeds, []Kind{Local, Fetch})
	}
}
