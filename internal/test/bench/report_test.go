package main

import (
	"encoding/xml"
	"strings"
	"testing"

	"cairn/internal/simd"
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
	r := results{Machine: machine{Date: "2026-01-02", CPU: "Abacus", SIMD: "avx2", CPUs: 2, Kernel: "6.1", Tools: []string{"cairn 1", "casync 2"}}, Rounds: 2}
	for _, wall := range []float64{1, 3} {
		r.Samples = append(r.Samples,
			sample{Image: "ext4", Job: "make", Tool: "cairn", Bytes: 5e8, User: 1.5, Sys: 0.5, Wall: wall, RSS: 40 << 20},
			sample{Image: "ext4", Job: "make", Tool: "casync", Bytes: 5e8, User: 4, Sys: 1, Wall: 4 * wall, RSS: 7 << 20},
			sample{Image: "ext4", Job: "serve", Tool: "cairn", Bytes: 4096e4, Ops: 1e4, User: 0.05, Sys: 0.01, Wall: 1})
	}
	got := r.markdown()
	for _, want := range []string{
		"2026-01-02, Abacus (avx2), 2 CPUs, Linux 6.1; medians of 2 rounds.\ncairn 1 · casync 2.\n",
		"\n### ext4\n",
		"\n| make | cairn | 1.50 + 0.50 | 4.00 s/GB | 2.00 | 40 | 1.0 | 1.0 |\n",
		"\n| serve | cairn | 0.05 + 0.01 | 6.0 µs/read | 1.00 | 0 | 1.0 | 1.0 |\n",
		"\n| make | casync | 4.00 + 1.00 | 10.00 s/GB | 8.00 | 7 | 2.5 | 4.0 |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("markdown lacks %q:\n%s", want, got)
		}
	}
}

func TestDownloads(t *testing.T) {
	r := results{}
	for tool, download := range map[string]int64{"cairn": 8e6, "zstd -3": 10e6, "zstd -19": 12e6, "xdelta3 -9": 16e6} {
		r.Samples = append(r.Samples, sample{Image: "erofs", Job: jobDelta, Tool: tool, User: 2, Sys: 0.5, Wall: 1, RSS: 40 << 20, Download: download})
	}
	if got, want := r.markdown(), "\n| cairn | 8.00 | 0.800 | 0.500 | 2.5 | 1.0 | 40 |\n"; !strings.Contains(got, want) {
		t.Errorf("markdown lacks %q:\n%s", want, got)
	}
}

// TestGoals: ratios and limits on both sides of the bound, and figures that were not measured.
func TestGoals(t *testing.T) {
	took := func(job, tool string, cpu, wall float64, mib int64) sample {
		return sample{Image: "ext4", Job: job, Tool: tool, Bytes: 1 << 30, User: cpu, Wall: wall, RSS: mib << 20}
	}
	r := results{goals: goals(simd.AVX512), Samples: []sample{
		took(jobMake, "cairn", 2, 1, 65), took(jobMake, "desync", 3.4, 1, 10), took(jobMake, "casync", 4, 5, 10),
		took(jobIndex, "cairn", 1, 0.5, 20), took(jobIndex, "desync", 3.4, 1, 10),
		took(jobHole, "cairn", 1, 0.75, 20+4*40), took(jobAssemble, "cairn", 1, 1, 48),
		took(jobDisk, "cairn", 1, 2, 10), took(jobDisk, "casync", 1, 6, 10),
	}}
	got := r.markdown()
	for _, want := range []string{
		"| make: CPU of cairn, times less than desync | ≥ 1.7 | 1.70 | yes |\n",
		"| make: CPU of cairn, libzstd, times less than desync | ≥ 3 | not measured | |\n",
		"| index only, the store has all: CPU of cairn, times less than desync | ≥ 3.5 | 3.40 | **no** |\n",
		"| make, the store on a disk: wall of cairn, times less than casync | ≥ 3 | 3.00 | yes |\n",
		"| make: peak memory | ≤ 64 MiB | 65 | **no** |\n",
		"| assemble b from the store: peak memory | ≤ 48 MiB | 48 | yes |\n",
		"hole adds to a chunk | ≤ 64 bytes | 40 | yes |\n",
		"wall to that of make | ≤ 1.5 | 1.25 | yes |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the report lacks %q:\n%s", want, got)
		}
	}
	r.goals = goals(simd.AVX2) // a class has its own bounds
	if want, got := "times less than desync | ≥ 2 | 3.40 | yes |", r.markdown(); !strings.Contains(got, want) {
		t.Errorf("with AVX2 the report lacks %q:\n%s", want, got)
	}
	small := results{goals: goals(simd.AVX512), Samples: []sample{{Image: "squashfs", Job: jobMake, Tool: "cairn", Bytes: 1 << 20, User: 1, Wall: 1}}}
	if strings.Contains(small.markdown(), "wanted") {
		t.Error("a small image is held to the goals of a large one")
	}
}

// TestGoalsAreOfJobs: each job and tool of a goal is measured.
func TestGoalsAreOfJobs(t *testing.T) {
	s := suite{cairn: "cairn", libzstd: "other", disk: "disk"}
	for _, c := range []struct {
		jobs  []job
		goals []goal
	}{{s.jobs(), goals(simd.Off)}, {s.serveJobs(), serveGoals()}} {
		all := costs{}
		for _, j := range c.jobs {
			all[j.name] = map[string]cost{}
			for _, c := range j.commands {
				all[j.name][c.tool] = cost{cpu: 1, wall: 1, rss: 1}
			}
		}
		for _, b := range c.goals {
			if _, ok := b.measure(all); !ok {
				t.Errorf("nothing measures %q", b.what)
			}
		}
	}
}

func TestParseStat(t *testing.T) {
	const stat = "42 (a) R (b) S 1 2 3 0 -1 4194304 10 0 0 0 250 75 9 9 20 0 1 0"
	user, sys, err := parseStat([]byte(stat))
	if user != 2.5 || sys != 0.75 || err != nil {
		t.Errorf("parseStat = %v, %v, %v, want 2.5, 0.75", user, sys, err)
	}
	for _, bad := range []string{"", "42 (a) S 1 2", "42 (a) S 1 2 3 0 -1 4194304 10 0 0 0 x 75 9"} {
		if _, _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q) succeeded", bad)
		}
	}
}

func TestParseFio(t *testing.T) {
	const words = "fio: a note\n"
	if n, err := parseFio([]byte(words + `{"jobs": [{"read": {"total_ios": 77}}]}`)); n != 77 || err != nil {
		t.Errorf("parseFio = %v, %v, want 77", n, err)
	}
	for _, bad := range []string{"", words, `{"jobs": []}`, `{"jobs": [{"read": {"total_ios": 0}}]}`} {
		if _, err := parseFio([]byte(bad)); err == nil {
			t.Errorf("parseFio(%q) succeeded", bad)
		}
	}
}

func TestScaleOps(t *testing.T) {
	s := sample{Ops: 50_000, Bytes: 50_000 * 4096, User: 0.5, Sys: 1, Wall: 3}
	s.scaleOps()
	if want := (sample{Ops: 100_000, Bytes: 100_000 * 4096, User: 1, Sys: 2, Wall: 6}); s != want {
		t.Errorf("scaled to %+v, want %+v", s, want)
	}
}

// TestChart: the drawing is XML, has a bar for each tool, and the longest bar fits.
func TestChart(t *testing.T) {
	samples := []sample{
		{Job: "make <a>", Tool: "cairn", User: 1}, {Job: "make <a>", Tool: "casync", User: 4},
		{Job: "verify", Tool: "cairn", User: 2}, {Job: "verify", Tool: "desync", User: 100},
	}
	svg := chartOf("CPU & more", samples, func(c cost) float64 { return c.cpu })
	type rect struct {
		X     float64 `xml:"x,attr"`
		Width float64 `xml:"width,attr"`
	}
	var drawing struct {
		Width float64 `xml:"width,attr"`
		Bars  []rect  `xml:"rect"`
	}
	if err := xml.Unmarshal([]byte(svg), &drawing); err != nil {
		t.Fatalf("%v in\n%s", err, svg)
	}
	if len(drawing.Bars) != 1+len(samples) { // the background is one
		t.Fatalf("%d rectangles, want %d:\n%s", len(drawing.Bars), 1+len(samples), svg)
	}
	for i, bar := range drawing.Bars {
		if bar.Width < 0 || bar.X+bar.Width > drawing.Width {
			t.Errorf("bar %d, %+v, does not fit in %v", i, bar, drawing.Width)
		}
	}
	if bars := drawing.Bars[1:]; bars[1].Width < 3*bars[0].Width {
		t.Errorf("bars for 4 and 1 are %v and %v wide", bars[1].Width, bars[0].Width)
	}
}
