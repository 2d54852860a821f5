package main

import (
	"fmt"
	"strings"

	"cairn/internal/simd"
)

// goal is the bound of a figure: the least ratio of a peer's cost to cairn's or, without a peer, a limit of cairn's
// cost.
type goal struct {
	what      string
	want      float64
	limit     bool   // want is the upper bound, not the lower
	unit      string // of the figure
	measure   func(costs costs) (float64, bool)
	precision int
}

// costs are the median costs of one kind of image, by job and tool.
type costs map[string]map[string]cost

func costsOf(samples []sample) costs {
	all := costs{}
	for job, samples := range groupBy(samples, func(s sample) string { return s.Job }) {
		all[job] = map[string]cost{}
		for tool, samples := range groupBy(samples, func(s sample) string { return s.Tool }) {
			all[job][tool] = costOf(samples)
		}
	}
	return all
}

func cpu(c cost) float64  { return c.cpu }
func wall(c cost) float64 { return c.wall }
func peak(c cost) float64 { return c.rss }

// ratioGoal returns the goal that a peer's figure for a job is at least want times ours.
func ratioGoal(job, ours, peer, figure string, of func(cost) float64, want float64) goal {
	return goal{
		what: fmt.Sprintf("%s: %s of %s, times less than %s", job, figure, ours, peer), want: want, precision: 2,
		measure: func(c costs) (float64, bool) {
			we, ok1 := c[job][ours]
			they, ok2 := c[job][peer]
			return of(they) / of(we), ok1 && ok2
		},
	}
}

// limitGoal returns the goal that a job's figure is at most most.
func limitGoal(job, figure string, of func(cost) float64, most float64, unit string) goal {
	return goal{
		what: job + ": " + figure, want: most, limit: true, unit: unit,
		measure: func(c costs) (float64, bool) {
			we, ok := c[job]["cairn"]
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

// goals returns the goals for an image of 1 GiB that is a real file system, on a machine of that class. Hashing and
// cutting take more CPU time with fewer vector instructions; the peers have few or none of their own.
func goals(class simd.Level) []goal {
	byClass := func(off, avx2, avx512 float64) float64 {
		return [...]float64{simd.Off: off, simd.AVX2: avx2, simd.AVX512: avx512}[class]
	}
	ahead := func(job, ours, peer string, off, avx2, avx512 float64) goal {
		return ratioGoal(job, ours, peer, "CPU", cpu, byClass(off, avx2, avx512))
	}
	return []goal{
		ahead(jobIndex, "cairn", "desync", 1.7, 2, 3.5),
		ahead(jobMake, "cairn", "desync", 1.6, 1.7, 1.7),
		ahead(jobMake, libzstd, "desync", 1.8, 2, 3),
		ahead(jobMake, libzstd, "casync", 1.6, 1.7, 1.8),
		ahead(jobUpdate, "cairn", "desync", 2.2, 2.4, 3),
		ahead(jobUpdate, "cairn", "casync", 1.8, 1.9, 3),
		ahead(jobUpdate, libzstd, "desync", 2.4, 2.7, 4),
		ahead(jobUpdate, libzstd, "casync", 2, 2.2, 4),
		ahead(jobAssemble, "cairn", "desync", 1.4, 1.5, 1.8),
		ahead(jobAssemble, "cairn", "casync", 1.3, 1.3, 1.3),
		ahead(jobAssemble, libzstd, "desync", 1.5, 1.8, 2.5),
		ahead(jobAssemble, libzstd, "casync", 1.4, 1.6, 1.7),
		ahead(jobSeed, "cairn", "desync", 1.5, 1.8, 3.3),
		ahead(jobSeed, "cairn", "casync", 5, 5.5, 7),
		ahead(jobVerify, "cairn", "desync", 1.8, 2.2, 4),
		ratioGoal(jobDisk, "cairn", "casync", "wall", wall, byClass(2.2, 2.2, 3)),
		ratioGoal(jobDisk, libzstd, "casync", "wall", wall, byClass(2.2, 2.5, 3)),
		ratioGoal(jobRandom, "cairn", "nbdkit", "CPU", cpu, 1),
		ratioGoal(jobRandom, "cairn", "nbdkit", "time of a read", wall, 1),
		ratioGoal(jobCopies, "cairn", "nbdkit", "CPU", cpu, 1.25),
		limitGoal(jobMake, "peak memory", peak, 64, "MiB"),
		limitGoal(jobAssemble, "peak memory", peak, 48, "MiB"),
		limitGoal(jobSeed, "peak memory", peak, 48, "MiB"),
		holeMemory(), holeTime(),
	}
}

// serveGoals returns the goals for a server of a warm image.
func serveGoals() (goals []goal) {
	for _, ours := range []string{"cairn", inMemory} {
		for _, peer := range []string{"nbdkit", "qemu-nbd"} {
			goals = append(goals,
				ratioGoal(jobWarmCopies, ours, peer, "wall", wall, 1),
				ratioGoal(jobWarmDeep, ours, peer, "time of a read", wall, 1.3),
				ratioGoal(jobWarmAlone, ours, peer, "time of a read", wall, 0.8),
				ratioGoal(jobWarmDeep, ours, peer, "CPU of a read", cpu, 1),
				ratioGoal(jobWarmAlone, ours, peer, "CPU of a read", cpu, 1))
		}
	}
	return goals
}

// holeMemory returns the goal for the peak memory that a hole of 1 TiB adds, for each of its chunks.
func holeMemory() goal {
	const chunks = 1 << 40 / (256 << 10)
	return goal{
		what: jobHole + ": memory that the hole adds to a chunk", want: 64, limit: true, unit: "bytes",
		measure: func(c costs) (float64, bool) {
			with, ok1 := c[jobHole]["cairn"]
			without, ok2 := c[jobIndex]["cairn"]
			return (with.rss - without.rss) * (1 << 20) / chunks, ok1 && ok2
		},
	}
}

// holeTime returns the goal for a make with such a hole. The hole adds to it the time that it adds to an index alone.
func holeTime() goal {
	return goal{
		what: "make with a hole of 1 TiB, its index included: wall to that of make", want: 1.5, limit: true, precision: 2,
		measure: func(c costs) (float64, bool) {
			with, ok1 := c[jobHole]["cairn"]
			without, ok2 := c[jobIndex]["cairn"]
			whole, ok3 := c[jobMake]["cairn"]
			return 1 + (with.wall-without.wall)/whole.wall, ok1 && ok2 && ok3
		},
	}
}

// goalsTable returns a table of the goals with the measured figures.
func goalsTable(goals []goal, samples []sample) string {
	var b strings.Builder
	b.WriteString("\n| goal | wanted | measured | met |\n|---|---|---|---|\n")
	all := costsOf(samples)
	for _, g := range goals {
		b.WriteString(g.tableRow(all))
	}
	return b.String()
}

func (g goal) tableRow(all costs) string {
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
