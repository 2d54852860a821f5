package trust

import (
	"os/exec"
	"strings"
	"testing"
)

// TestCompareVersions has pairs of versions of which the first is older, and equal ones. They are compared by systemd-analyze,
// too, where it is installed.
func TestCompareVersions(t *testing.T) {
	for _, pair := range []string{
		"1 2", "9 10", "1.9 1.10", "2026.11.29 2026.12.1", "1~rc1 1", "1~rc1 1~rc2", "1~ 1", "1-1 1-2", "1-9 1.1-1", "122.1-1 123-1",
		"1 1.1", "1.0 1.0.1", "1^1 1.1", "1 1^1", "1a 1b", "1 1a", "a 1", "A a", "1.a 1.1", "v1 v2", "1.0-1 1.0.1-1", "1.0~beta 1.0-1",
		"0 00001", "a+b ab", "1_0 10", "123.a 123.a.1", "123~rc1-1 123-1",
	} {
		a, b, _ := strings.Cut(pair, " ")
		check(t, a, b, -1)
		check(t, b, a, 1)
	}
	for _, pair := range []string{"1 1", "1.0 1.00", "007 7", "a+b a_b", "1.0 1.0"} {
		a, b, _ := strings.Cut(pair, " ")
		check(t, a, b, 0)
	}
}

func check(t *testing.T, a, b string, want int) {
	t.Helper()
	if got := CompareVersions(a, b); got != want {
		t.Errorf("CompareVersions(%q, %q) = %d, want %d", a, b, got, want)
	}
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return
	}
	out, _ := exec.Command(tool, "compare-versions", a, b).Output()
	if sign := map[int]string{-1: " < ", 0: " == ", 1: " > "}[want]; len(out) > 0 && !strings.Contains(string(out), sign) {
		t.Errorf("systemd-analyze compare-versions %q %q: %s", a, b, out)
	}
}

// FuzzCompareVersions: the order is antisymmetric, and every version equals itself.
func FuzzCompareVersions(f *testing.F) {
	f.Add("1.2~rc1-3^4", "1.2-3")
	f.Fuzz(func(t *testing.T, a, b string) {
		if CompareVersions(a, b) != -CompareVersions(b, a) || CompareVersions(a, a) != 0 {
			t.Fatalf("%q and %q: %d and %d", a, b, CompareVersions(a, b), CompareVersions(b, a))
		}
	})
}
