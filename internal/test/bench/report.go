package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"cairn/internal/simd"
)

// results are all measured samples, and the goals.
type results struct {
	Machine machine  `json:"machine"`
	Rounds  int      `json:"rounds"`
	Samples []sample `json:"samples"`
	goals   []goal
}

// machine describes the environment of the figures, without the images.
type machine struct {
	Date   string   `json:"date"`
	CPU    string   `json:"cpu"`
	SIMD   string   `json:"simd"` // the class of the goals: off, avx2 or avx512
	CPUs   int      `json:"cpus"`
	Kernel string   `json:"kernel"`
	Tools  []string `json:"tools"`
}

// describeMachine returns this machine, with the versions that the commands print.
func describeMachine(ctx context.Context, tools ...[]string) (machine, error) {
	m := machine{Date: time.Now().Format(time.DateOnly), SIMD: simd.Allowed().String(), CPUs: runtime.NumCPU()}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, err
	}
	m.CPU = valueOf(info, "model name")
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return m, err
	}
	m.Kernel = strings.TrimSpace(string(kernel))
	for _, tool := range tools {
		out, err := exec.CommandContext(ctx, tool[0], tool[1:]...).CombinedOutput() // nginx prints it to stderr
		if err != nil {
			return m, fmt.Errorf("asking %s for its version: %w", tool[0], err)
		}
		line, _, _ := bytes.Cut(out, []byte("\n"))
		m.Tools = append(m.Tools, string(line))
	}
	return m, nil
}

// valueOf returns the first value of a key in "key : value" lines.
func valueOf(text []byte, key string) string {
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		if k, v, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

// writeFiles writes the results as JSON, with every sample, as tables, and as charts.
func (r *results) writeFiles(path string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	files := map[string]string{path + ".json": string(text) + "\n", path + ".md": r.markdown()}
	for image, samples := range groupBy(r.Samples, func(s sample) string { return s.Image }) {
		files[path+"-"+image+"-cpu.svg"] = chartOf(image+": CPU time, cairn's is 1", samples, func(c cost) float64 { return c.cpu })
		files[path+"-"+image+"-wall.svg"] = chartOf(image+": wall time, cairn's is 1", samples, func(c cost) float64 { return c.wall })
	}
	for name, text := range files {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// cost is the median of a tool's samples of a job, for each figure separately.
type cost struct{ user, sys, cpu, wall, rss, perGB, perOp float64 }

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	return (values[(n-1)/2] + values[n/2]) / 2
}

func costOf(samples []sample) cost {
	of := func(figure func(sample) float64) float64 {
		var values []float64
		for _, s := range samples {
			values = append(values, figure(s))
		}
		return median(values)
	}
	return cost{
		user:  of(func(s sample) float64 { return s.User }),
		sys:   of(func(s sample) float64 { return s.Sys }),
		cpu:   of(func(s sample) float64 { return s.User + s.Sys }),
		wall:  of(func(s sample) float64 { return s.Wall }),
		rss:   of(func(s sample) float64 { return float64(s.RSS) / (1 << 20) }),
		perGB: of(func(s sample) float64 { return (s.User + s.Sys) / float64(s.Bytes) * 1e9 }),
		perOp: of(func(s sample) float64 { return (s.User + s.Sys) / float64(max(s.Ops, 1)) * 1e6 }),
	}
}

// markdown returns the results as a table for each kind of image.
func (r *results) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s (%s), %d CPUs, Linux %s; medians of %d rounds.\n", r.Machine.Date, r.Machine.CPU, r.Machine.SIMD,
		r.Machine.CPUs, r.Machine.Kernel, r.Rounds)
	fmt.Fprintf(&b, "%s.\n", strings.Join(r.Machine.Tools, " · "))
	for image, samples := range groupBy(r.Samples, func(s sample) string { return s.Image }) {
		fmt.Fprintf(&b, "\n### %s\n\n", image)
		if samples[0].Job == jobDelta {
			writeDownloads(&b, samples)
			continue
		}
		b.WriteString("| job | tool | user + sys, s | CPU | wall, s | peak, MiB | CPU to cairn's | wall to cairn's |\n")
		b.WriteString("|---|---|---|---|---|---|---|---|\n")
		for job, samples := range groupBy(samples, func(s sample) string { return s.Job }) {
			writeJob(&b, job, samples)
		}
		if isLarge(samples) {
			b.WriteString(goalsTable(r.goals, samples))
		}
	}
	return b.String()
}

// isLarge reports whether the image has the size for which there are goals.
func isLarge(samples []sample) bool { return samples[0].Bytes >= 1<<30 }

// writeJob writes the rows of a job. cairn's row is the first.
func writeJob(b *strings.Builder, job string, samples []sample) {
	var ours cost
	for tool, samples := range groupBy(samples, func(s sample) string { return s.Tool }) {
		c := costOf(samples)
		if ours == (cost{}) {
			ours = c
		}
		rate := fmt.Sprintf("%.2f s/GB", c.perGB)
		if samples[0].Ops > 0 {
			rate = fmt.Sprintf("%.1f µs/read", c.perOp)
		}
		fmt.Fprintf(b, "| %s | %s | %.2f + %.2f | %s | %.2f | %.0f | %.1f | %.1f |\n",
			job, tool, c.user, c.sys, rate, c.wall, c.rss, c.cpu/ours.cpu, c.wall/ours.wall)
	}
}

// groupBy yields the samples of each name, in the order in which the names first appear.
func groupBy[S any](samples []S, name func(S) string) func(yield func(string, []S) bool) {
	return func(yield func(string, []S) bool) {
		var names []string
		by := map[string][]S{}
		for _, s := range samples {
			n := name(s)
			if by[n] == nil {
				names = append(names, n)
			}
			by[n] = append(by[n], s)
		}
		for _, n := range names {
			if !yield(n, by[n]) {
				return
			}
		}
	}
}
