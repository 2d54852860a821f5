package main

import (
	"fmt"
	"strings"
)

// goal is a figure that is not to be worse than it says: the peer's cost as a multiple of ours at least, or, where
// there is no peer, a limit of what we take.
type goal struct {
	what      string
	want      float64
	limit     bool   // want is the most, not the least
	unit      string // of the figure
	measure   func(costs costs) (float64, bool)
	precision int
}

// costs are the median costs of one kind of image, by job and tool.
type costs map[string]map[string]cost

func costsOf(samples []sample) costs {
	all := costs{}
	for job, samples := range groups(samples, func(s sample) string { return s.Job }) {
		all[job] = map[string]cost{}
		for tool, samples := range groups(samples, func(s sample) string { return s.Tool }) {
			all[job][tool] = costOf(samples)
		}
	}
	return all
}

// get is what a tool's job cost, and whether it was measured.
func (c costs) get(job, tool string) (cost, bool) {
	found, ok := c[job][tool]
	return found, ok
}

func cpu(c cost) float64  { return c.cpu }
func wall(c cost) float64 { return c.wall }
func peak(c cost) float64 { return c.rss }

// ahead is the goal for how many times less of a figure our tool takes for a job than a peer.
func ahead(job, ours, peer, figure string, of func(cost) float64, want float64) goal {
	return goal{
		what: fmt.Sprintf("%s: %s of %s, times less than %s", job, figure, ours, peer), want: want, precision: 2,
		measure: func(c costs) (float64, bool) {
			we, ok1 := c.get(job, ours)
			they, ok2 := c.get(job, peer)
			return of(they) / of(we), ok1 && ok2
		},
	}
}

// within is the goal for what a job takes at most.
func within(job, figure string, of func(cost) float64, most float64, unit string) goal {
	return goal{
		what: job + ": " + figure, want: most, limit: true, unit: unit,
		measure: func(c costs) (float64, bool) {
			we, ok := c.get(job, "cairn")
			return of(we), ok
		},
	}
}

const (
	jobMake     = "make"
	jobIndex    = "index only, the store has all"
	jobUpdate   = "make b, a is stored"
	jobAssemble = "assemble b from the store"
	jobSeed     = "assemble b, a is a seed"
	jobVerify   = "verify b"
	jobHole     = "index only, a and a hole of 1 TiB"
	jobCopies   = "serve b, 8 copies, hot"
	jobRandom   = "serve b, 4 KiB random, 16 in flight, hot"
	jobDisk     = "make, the store on a disk"

	jobWarmCopies = "8 copies"
	jobWarmDeep   = "4 KiB random, 64 in flight"
	jobWarmAlone  = "4 KiB random, one at a time"
)

const libzstd = "cairn, libzstd"

// goals are what cairn is to reach with an image of 1 GiB that is a real file system.
func goals() []goal {
	return []goal{
		ahead(jobIndex, "cairn", "desync", "CPU", cpu, 3.5),
		ahead(jobIndex, "cairn, AVX2", "desync", "CPU", cpu, 1.2),
		ahead(jobIndex, "cairn, no SIMD", "desync", "CPU", cpu, 1),
		ahead(jobMake, "cairn", "desync", "CPU", cpu, 1.7),
		ahead(jobMake, libzstd, "desync", "CPU", cpu, 3),
		ahead(jobMake, libzstd, "casync", "CPU", cpu, 1.8),
		ahead(jobDisk, "cairn", "casync", "wall", wall, 3),
		ahead(jobDisk, libzstd, "casync", "wall", wall, 3),
		ahead(jobUpdate, "cairn", "desync", "CPU", cpu, 3),
		ahead(jobUpdate, "cairn", "casync", "CPU", cpu, 3),
		ahead(jobUpdate, libzstd, "desync", "CPU", cpu, 4),
		ahead(jobUpdate, libzstd, "casync", "CPU", cpu, 4),
		ahead(jobAssemble, "cairn", "casync", "CPU", cpu, 1.3),
		ahead(jobAssemble, "cairn", "desync", "CPU", cpu, 1.8),
		ahead(jobAssemble, libzstd, "casync", "CPU", cpu, 1.7),
		ahead(jobAssemble, libzstd, "desync", "CPU", cpu, 2.5),
		ahead(jobSeed, "cairn", "desync", "CPU", cpu, 3.3),
		ahead(jobSeed, "cairn", "casync", "CPU", cpu, 7),
		ahead(jobVerify, "cairn", "desync", "CPU", cpu, 4),
		ahead(jobRandom, "cairn", "nbdkit", "CPU", cpu, 1),
		ahead(jobRandom, "cairn", "nbdkit", "time of a read", wall, 1),
		ahead(jobCopies, "cairn", "nbdkit", "CPU", cpu, 1.25),
		within(jobMake, "peak memory", peak, 64, "MiB"),
		within(jobAssemble, "peak memory", peak, 48, "MiB"),
		within(jobSeed, "peak memory", peak, 48, "MiB"),
		holeMemory(), holeTime(),
	}
}

// serveGoals are what a server of a warm image is to reach.
func serveGoals() (goals []goal) {
	for _, ours := range []string{"cairn", inMemory} {
		for _, peer := range []string{"nbdkit", "qemu-nbd"} {
			goals = append(goals,
				ahead(jobWarmCopies, ours, peer, "wall", wall, 1),
				ahead(jobWarmDeep, ours, peer, "time of a read", wall, 1.3),
				ahead(jobWarmAlone, ours, peer, "time of a read", wall, 0.8),
				ahead(jobWarmDeep, ours, peer, "CPU of a read", cpu, 1),
				ahead(jobWarmAlone, ours, peer, "CPU of a read", cpu, 1))
		}
	}
	return goals
}

// holeMemory is what a hole of 1 TiB adds to the peak for each of its chunks.
func holeMemory() goal {
	const chunks = 1 << 40 / (256 << 10)
	return goal{
		what: jobHole + ": memory that the hole adds to a chunk", want: 64, limit: true, unit: "bytes",
		measure: func(c costs) (float64, bool) {
			with, ok1 := c.get(jobHole, "cairn")
			without, ok2 := c.get(jobIndex, "cairn")
			return (with.rss - without.rss) * (1 << 20) / chunks, ok1 && ok2
		},
	}
}

// holeTime is a make with such a hole to one without: the hole adds to it what it adds to one that stores nothing.
func holeTime() goal {
	return goal{
		what: "make with a hole of 1 TiB, its index included: wall to that of make", want: 1.5, limit: true, precision: 2,
		measure: func(c costs) (float64, bool) {
			with, ok1 := c.get(jobHole, "cairn")
			without, ok2 := c.get(jobIndex, "cairn")
			whole, ok3 := c.get(jobMake, "cairn")
			return 1 + (with.wall-without.wall)/whole.wall, ok1 && ok2 && ok3
		},
	}
}

// goalsTable says of each goal what was measured and whether it is met.
func goalsTable(goals []goal, samples []sample) string {
	var b strings.Builder
	b.WriteString("\n| goal | wanted | measured | met |\n|---|---|---|---|\n")
	all := costsOf(samples)
	for _, g := range goals {
		b.WriteString(g.row(all))
	}
	return b.String()
}

func (g goal) row(all costs) string {
	relation := "≥"
	if g.limit {
		relation = "≤"
	}
	wanted := strings.TrimSpace(fmt.Sprintf("%s %v %s", relation, g.want, g.unit))
	got, measured := g.measure(all)
	if !measured {
		return fmt.Sprintf("| %s | %s | not measured | |\n", g.what, wanted)
	}
	met := "yes"
	if g.limit && got > g.want || !g.limit && !(got >= g.want) {
		met = "**no**"
	}
	return fmt.Sprintf("| %s | %s | %.*f | %s |\n", g.what, wanted, g.precision, got, met)
}
