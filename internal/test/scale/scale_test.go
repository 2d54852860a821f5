package main

import (
	"math"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDocs: the tables in docs/scale.md are those of this program, with its date of the prices.
func TestDocs(t *testing.T) {
	const file = "../../../docs/scale.md"
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want, err := fillTables(string(data))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	if diff := cmp.Diff(string(data), want); diff != "" {
		t.Errorf("%s is stale: run 'go run ./internal/test/scale' (-old +new):\n%s", file, diff)
	}
	if !strings.Contains(string(data), pricesOf) {
		t.Errorf("%s does not say that the prices are of %s", file, pricesOf)
	}
}

// TestFillTables: a place without a table and a table without a place are errors.
func TestFillTables(t *testing.T) {
	var text strings.Builder
	for name := range tables() {
		text.WriteString("<!-- table of " + name + " -->\nold\n<!-- end -->\n")
	}
	got, err := fillTables(text.String())
	if err != nil || strings.Contains(got, "old") {
		t.Errorf("fillTables = %q, %v, want all tables", got, err)
	}
	if _, err := fillTables(text.String() + "<!-- table of nothing -->\n<!-- end -->\n"); err == nil {
		t.Error("fillTables with a place for an unknown table succeeds")
	}
	if _, err := fillTables(""); err == nil {
		t.Error("fillTables without places succeeds")
	}
}

func TestEgressPrice(t *testing.T) {
	for bytes, want := range map[float64]float64{
		0: 0, giga: 0.085, 10 * tera: 850, 20 * tera: 850 + 800, 50 * tera: 850 + 3200, 6000 * tera: 850 + 3200 + 6000 + 14_000 + 15_720 + 102_400 + 17_600,
	} {
		if got := egressPrice(cdnEgress, bytes); math.Abs(got-want) > 1e-6 {
			t.Errorf("egressPrice(%v) = %v, want %v", bytes, got, want)
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{count(22), "22"},
		{count(267.4), "267"},
		{count(2804), "2,804"},
		{count(9999), "9,999"},
		{count(10_000), "10 k"},
		{count(999_600), "1.00 M"},
		{count(5.608e12), "5.61 T"},
		{bytes(88_000_000), "88 MB"},
		{dollars(0.256), "$0.26"},
		{dollars(206.4), "$206"},
		{dollars(173_960), "$174,000"},
		{dollars(9_710_000), "$9.71 million"},
		{duration(510e9), "8.5 min"},
		{duration(3 * 86400e9), "3.0 days"},
		{duration(0.5e9), "0.5 s"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
