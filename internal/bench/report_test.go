package main

import (
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.values, got, c.want)
		}
	}
}

func TestMarkdown(t *testing.T) {
	r := results{Machine: machine{Date: "2026-01-02", CPU: "Abacus", CPUs: 2, Kernel: "6.1", Tools: []string{"cairn 1", "casync 2"}}, Rounds: 2}
	for _, wall := range []float64{1, 3} {
		r.Samples = append(r.Samples,
			sample{Image: "ext4", Job: "make", Tool: "cairn", User: 1.5, Sys: 0.5, Wall: wall, RSS: 40 << 20},
			sample{Image: "ext4", Job: "make", Tool: "casync", User: 4, Sys: 1, Wall: 4 * wall, RSS: 7 << 20})
	}
	got := r.markdown()
	for _, want := range []string{
		"2026-01-02, Abacus, 2 CPUs, Linux 6.1; medians of 2 rounds.\ncairn 1 · casync 2.\n",
		"\n### ext4\n",
		"\n| make | cairn | 1.50 + 0.50 | 2.00 | 40 | 1.0 | 1.0 |\n",
		"\n| make | casync | 4.00 + 1.00 | 8.00 | 7 | 2.5 | 4.0 |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("markdown lacks %q:\n%s", want, got)
		}
	}
}
