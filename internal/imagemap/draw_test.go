package imagemap

import (
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSplit(t *testing.T) {
	for _, c := range []struct {
		name string
		a    amounts
		want []part
	}{
		{"one", amounts{classZero: 1}, []part{{classZero, 12}}},
		{"halves", amounts{classZero: 500, classInPlace: 500}, []part{{classInPlace, 6}, {classZero, 6}}},
		{"quarter", amounts{classDownload: 750, classRepeat: 250}, []part{{classRepeat, 3}, {classDownload, 9}}},
		{"hardly any", amounts{classInPlace: 1 << 50, classSeed: 1}, []part{{classInPlace, 10}, {classSeed, 2}}},
		{"third place is not shown", amounts{classInPlace: 60, classSeed: 30, classZero: 10},
			[]part{{classInPlace, 8}, {classSeed, 4}}},
		{"downloads always are", amounts{classInPlace: 600, classSeed: 398, classZero: 1, classDownload: 1},
			[]part{{classInPlace, 6}, {classSeed, 4}, {classDownload, 2}}},
	} {
		got := c.a.splitUnits(cellHeight, c.a.shownClasses())
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(part{})); diff != "" {
			t.Errorf("%s: splitUnits (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestSplitFits checks that the parts fill a cell and the bar, that each is visible, and that downloads have one.
func TestSplitFits(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	for range 5000 {
		var a amounts
		for k := range a {
			if random.IntN(3) > 0 {
				a[k] = random.Int64N(1 << random.IntN(59))
			}
		}
		if a.sum() == 0 {
			continue
		}
		checkParts(t, &a, cellHeight, a.shownClasses())
		checkParts(t, &a, barUnits, a.presentClasses())
	}
}

func checkParts(t *testing.T, a *amounts, units int, among []class) {
	t.Helper()
	sum, downloads := 0, 0
	for _, part := range a.splitUnits(units, among) {
		if part.units < minPart {
			t.Fatalf("split of %v: %d units for class %d, want at least %d", a, part.units, part.class, minPart)
		}
		if part.class == classDownload {
			downloads = part.units
		}
		sum += part.units
	}
	if sum != units || (downloads > 0) != (a[classDownload] > 0) {
		t.Fatalf("split of %v: %d of %d units, %d for downloads", a, sum, units, downloads)
	}
}

func TestDrawMap(t *testing.T) {
	cells := make([]amounts, columns+2)
	for i := range cells {
		cells[i][classZero] = 1
	}
	cells[1] = amounts{classZero: 1, classDownload: 3}
	cells[2] = amounts{classZero: 2, classDownload: 6}
	want := []shape{
		{classZero, "M0 0h8v12h-8zM8 0h16v3h-16zM24 0h1000v12h-1000zM0 12h16v12h-16z"},
		{classDownload, "M8 3h16v9h-16z"},
	}
	if diff := cmp.Diff(want, drawMap(cells)); diff != "" {
		t.Errorf("drawMap (-want +got):\n%s", diff)
	}
}

func TestEncodeCells(t *testing.T) {
	cells := []amounts{{classInPlace: 5}, {classInPlace: 1, classDownload: 3}, {classZero: 999, classSeed: 1}}
	if got, want := encodeCells(cells), "a,i75a25,g99b0"; got != want {
		t.Errorf("encodeCells = %q, want %q", got, want)
	}
}
